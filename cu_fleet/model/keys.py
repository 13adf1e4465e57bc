"""Key names to X keysyms: X's names, xdotool's, OpenAI's, Anthropic's and plain ones, in any case.

Only a single letter keeps its case, because "A" typed singly means shift. In a combination the case of a letter says
nothing: `ctrl+A` is ctrl and a, and shift is there when it is named. A server makes exactly the keysym it is sent, if
need be by lifting shift for a moment; so with shift named, `shift+1` must send what shift makes of 1 on a US keyboard,
as a viewer with such a keyboard would.
"""

import difflib
import re
import sys
from collections.abc import Iterable

from cu_fleet.model.errors import InvalidError

MOST_KEYS = 8  # in one combination
_UNICODE = 0x01000000

_ASCII = (
    "space exclam quotedbl numbersign dollar percent ampersand apostrophe parenleft parenright asterisk plus comma "
    "minus period slash 0 1 2 3 4 5 6 7 8 9 colon semicolon less equal greater question at "
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z bracketleft backslash bracketright asciicircum underscore "
    "grave a b c d e f g h i j k l m n o p q r s t u v w x y z braceleft bar braceright asciitilde"
)
_LATIN1 = (
    "nobreakspace exclamdown cent sterling currency yen brokenbar section diaeresis copyright ordfeminine "
    "guillemotleft notsign hyphen registered macron degree plusminus twosuperior threesuperior acute mu paragraph "
    "periodcentered cedilla onesuperior masculine guillemotright onequarter onehalf threequarters questiondown "
    "Agrave Aacute Acircumflex Atilde Adiaeresis Aring AE Ccedilla Egrave Eacute Ecircumflex Ediaeresis Igrave "
    "Iacute Icircumflex Idiaeresis ETH Ntilde Ograve Oacute Ocircumflex Otilde Odiaeresis multiply Oslash Ugrave "
    "Uacute Ucircumflex Udiaeresis Yacute THORN ssharp agrave aacute acircumflex atilde adiaeresis aring ae ccedilla "
    "egrave eacute ecircumflex ediaeresis igrave iacute icircumflex idiaeresis eth ntilde ograve oacute ocircumflex "
    "otilde odiaeresis division oslash ugrave uacute ucircumflex udiaeresis yacute thorn ydiaeresis"
)
# Runs of names with consecutive keysyms, each after the first of them; "-" leaves one out.
_RUNS = {
    0x20: _ASCII,
    0xA0: _LATIN1,
    0x20AC: "EuroSign",
    0xFE01: "ISO_Lock ISO_Level2_Latch ISO_Level3_Shift ISO_Level3_Latch ISO_Level3_Lock",
    0xFE08: "ISO_Next_Group - ISO_Prev_Group - ISO_First_Group - ISO_Last_Group",
    0xFE11: "ISO_Level5_Shift ISO_Level5_Latch ISO_Level5_Lock",
    0xFE20: "ISO_Left_Tab",
    0xFE50: "dead_grave dead_acute dead_circumflex dead_tilde dead_macron dead_breve dead_abovedot dead_diaeresis "
    "dead_abovering dead_doubleacute dead_caron dead_cedilla dead_ogonek dead_iota dead_voiced_sound "
    "dead_semivoiced_sound dead_belowdot dead_hook dead_horn dead_stroke dead_abovecomma dead_abovereversedcomma "
    "dead_doublegrave dead_belowring dead_belowmacron dead_belowcircumflex dead_belowtilde dead_belowbreve "
    "dead_belowdiaeresis dead_invertedbreve dead_belowcomma dead_currency",
    0xFF08: "BackSpace Tab Linefeed Clear - Return",
    0xFF13: "Pause Scroll_Lock Sys_Req",
    0xFF1B: "Escape",
    0xFF20: "Multi_key Kanji Muhenkan Henkan Romaji Hiragana Katakana Hiragana_Katakana Zenkaku Hankaku "
    "Zenkaku_Hankaku Touroku Massyo Kana_Lock Kana_Shift Eisu_Shift Eisu_toggle Hangul - - Hangul_Hanja",
    0xFF37: "Codeinput - - - - SingleCandidate MultipleCandidate PreviousCandidate",
    0xFF50: "Home Left Up Right Down Page_Up Page_Down End Begin",
    0xFF60: "Select Print Execute Insert - Undo Redo Menu Find Cancel Help Break",
    0xFF7E: "Mode_switch Num_Lock KP_Space",
    0xFF89: "KP_Tab - - - KP_Enter",
    0xFF91: "KP_F1 KP_F2 KP_F3 KP_F4 KP_Home KP_Left KP_Up KP_Right KP_Down KP_Page_Up KP_Page_Down KP_End KP_Begin "
    "KP_Insert KP_Delete",
    0xFFAA: "KP_Multiply KP_Add KP_Separator KP_Subtract KP_Decimal KP_Divide KP_0 KP_1 KP_2 KP_3 KP_4 KP_5 KP_6 KP_7 "
    "KP_8 KP_9 - - - KP_Equal",
    0xFFBE: " ".join(f"F{n}" for n in range(1, 36)),
    0xFFE1: "Shift_L Shift_R Control_L Control_R Caps_Lock Shift_Lock Meta_L Meta_R Alt_L Alt_R Super_L Super_R "
    "Hyper_L Hyper_R",
    0xFFFF: "Delete",
    0x1008FF02: "XF86MonBrightnessUp XF86MonBrightnessDown XF86KbdLightOnOff XF86KbdBrightnessUp XF86KbdBrightnessDown",
    0x1008FF10: "XF86Standby XF86AudioLowerVolume XF86AudioMute XF86AudioRaiseVolume XF86AudioPlay XF86AudioStop "
    "XF86AudioPrev XF86AudioNext XF86HomePage XF86Mail XF86Start XF86Search XF86AudioRecord XF86Calculator XF86Memo "
    "XF86ToDoList XF86Calendar XF86PowerDown - XF86RockerUp XF86RockerDown XF86RockerEnter XF86Back XF86Forward "
    "XF86Stop XF86Refresh XF86PowerOff XF86WakeUp XF86Eject XF86ScreenSaver XF86WWW XF86Sleep XF86Favorites "
    "XF86AudioPause XF86AudioMedia XF86MyComputer",
    0x1008FF40: "XF86Launch0 XF86Launch1 XF86Launch2 XF86Launch3 XF86Launch4 XF86Launch5 XF86Launch6 XF86Launch7 "
    "XF86Launch8 XF86Launch9",
    0x1008FF56: "XF86Close XF86Copy XF86Cut XF86Display XF86DOS XF86Documents XF86Excel XF86Explorer",
    0x1008FF68: "XF86New",
    0x1008FF6B: "XF86Open XF86Option XF86Paste",
    0x1008FF72: "XF86Reply XF86Reload",
    0x1008FF77: "XF86Save",
    0x1008FF7B: "XF86Send",
    0x1008FF8B: "XF86ZoomIn XF86ZoomOut",
    0x1008FFB2: "XF86AudioMicMute",
}
# Other spellings, each of a name above. Written without case, and `_` stands for a space, a dash or nothing too.
_ALSO = """
    Return: enter ret newline linefeed_key cr      Escape: esc         BackSpace: backspace back_space bksp
    Delete: del forward_delete delete_forward      Insert: ins         space: spacebar space_bar blank
    Page_Up: pageup pgup prior page_prior          Page_Down: pagedown pgdn pgdown next page_next
    Left: arrow_left left_arrow                    Right: arrow_right right_arrow
    Up: arrow_up up_arrow                          Down: arrow_down down_arrow
    Shift_L: shift lshift shift_left left_shift                  Shift_R: rshift shift_right right_shift
    Control_L: ctrl control lctrl ctrl_l control_left left_ctrl ctrl_left
    Control_R: rctrl ctrl_r control_right right_ctrl ctrl_right
    Alt_L: alt option opt lalt alt_left left_alt option_left             Alt_R: ralt alt_right right_alt option_right
    ISO_Level3_Shift: altgr alt_gr alt_graph
    Super_L: super cmd command win windows lwin os super_left cmd_l left_cmd meta_left os_left win_left command_left
    Super_R: rwin super_right cmd_r right_cmd meta_right os_right win_right command_right
    Meta_L: meta     Hyper_L: hyper
    Menu: context_menu apps menu_key               Print: print_screen prtsc prtscr prt_sc prntscrn sysrq snapshot
    Caps_Lock: caps capslock                       Num_Lock: numlock   Scroll_Lock: scrolllock
    Pause: pause_break                             Multi_key: compose  Sys_Req: sys_rq
    KP_Enter: numpad_enter                         KP_Add: numpad_add kp_plus numpad_plus add
    KP_Subtract: numpad_subtract kp_minus numpad_minus subtract   KP_Multiply: numpad_multiply kp_asterisk
    KP_Divide: numpad_divide kp_slash divide              KP_Decimal: numpad_decimal kp_period kp_dot decimal
    KP_Equal: numpad_equal
    KP_0: numpad_0 num_0   KP_1: numpad_1 num_1   KP_2: numpad_2 num_2   KP_3: numpad_3 num_3   KP_4: numpad_4 num_4
    KP_5: numpad_5 num_5   KP_6: numpad_6 num_6   KP_7: numpad_7 num_7   KP_8: numpad_8 num_8   KP_9: numpad_9 num_9
    KP_Page_Up: kp_prior  KP_Page_Down: kp_next
    XF86AudioMute: mute volume_mute audio_volume_mute    XF86AudioRaiseVolume: volume_up audio_volume_up
    XF86AudioLowerVolume: volume_down audio_volume_down  XF86AudioPlay: play media_play media_play_pause play_pause
    XF86AudioStop: media_stop    XF86AudioNext: media_next media_track_next next_track
    XF86AudioPrev: media_prev media_track_previous prev_track    XF86Back: browser_back    XF86Forward: browser_forward
    XF86Refresh: browser_refresh    XF86HomePage: browser_home    XF86Search: browser_search
    XF86Stop: browser_stop    XF86Favorites: browser_favorites    XF86Mail: launch_mail
    Mode_switch: mode_change    Henkan: convert    Muhenkan: nonconvert non_convert    Hangul_Hanja: hanja
    exclam: exclamation_mark    quotedbl: double_quote quote_dbl    numbersign: hash    dollar: dollar_sign
    percent: percent_sign    ampersand: and_sign    apostrophe: quote single_quote quoteright
    parenleft: left_paren    parenright: right_paren    asterisk: star    plus: plus_sign    comma: comma_key
    minus: dash minus_sign    period: dot full_stop    slash: forward_slash    colon: colon_key
    semicolon: semi_colon    less: less_than    equal: equals equal_sign    greater: greater_than
    question: question_mark    at: at_sign    bracketleft: left_bracket open_bracket
    backslash: back_slash    bracketright: right_bracket close_bracket    asciicircum: caret circumflex
    underscore: under_score    grave: backtick back_quote backquote quoteleft    braceleft: left_brace open_brace
    bar: pipe vertical_bar    braceright: right_brace close_brace    asciitilde: tilde
"""
_US_SHIFT = dict(zip("`1234567890-=[]\\;',./", '~!@#$%^&*()_+{}|:"<>?', strict=True))
_US_UNSHIFTED = {ord(shifted): ord(char) for char, shifted in _US_SHIFT.items()}


def _names() -> dict[str, int]:
    return {
        name: first + place for first, names in _RUNS.items() for place, name in enumerate(names.split()) if name != "-"
    }


def _plain(name: str) -> str:
    """The name without its case and without what joins its words."""
    return name.lower().removeprefix("xk_").replace("_", "").replace("-", "").replace(" ", "")


def _spellings(names: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, sym in names.items():  # of Agrave and agrave the second, lower one wins
        found[_plain(name)] = sym
    for line in _ALSO.replace(":", ": ").split("\n"):
        target = ""
        for word in line.split():
            if word.endswith(":"):
                target = word[:-1]
            else:
                found.setdefault(_plain(word), names[target])
    for char in "abcdefghijklmnopqrstuvwxyz0123456789":  # what the web calls them
        found[f"{'digit' if char.isdigit() else 'key'}{char}"] = ord(char)
    return {**found, **{_plain(name.removeprefix("XF86")): sym for name, sym in names.items() if _media(name, found)}}


def _media(name: str, found: dict[str, int]) -> bool:
    return name.startswith("XF86") and _plain(name.removeprefix("XF86")) not in found


NAMES = _names()
_SPELLINGS = _spellings(NAMES)
_SHIFTS = frozenset(NAMES[name] for name in ("Shift_L", "Shift_R"))
_LEVELS = frozenset(NAMES[name] for name in ("ISO_Level3_Shift", "ISO_Level5_Shift", "Mode_switch"))
MODIFIERS = (
    _SHIFTS
    | _LEVELS
    | frozenset(NAMES[f"{name}_{side}"] for name in ("Control", "Alt", "Meta", "Super", "Hyper") for side in ("L", "R"))
)


def char_keysym(char: str) -> int:
    """The keysym of a character: Latin-1 stands for itself, newline and tab are keys, the rest is Unicode's range."""
    if char in "\n\r":
        return NAMES["Return"]
    if char == "\t":
        return NAMES["Tab"]
    code = ord(char)
    return code if 0x20 <= code <= 0x7E or 0xA0 <= code <= 0xFF else _UNICODE | code


def keysym(name: str) -> int:
    """The keysym of one key, by any of its names; a single character is itself, also as `U20AC`."""
    if re.fullmatch(r"[Uu]\+?[0-9A-Fa-f]{4,6}", name) and int(name.lstrip("Uu+"), 16) <= sys.maxunicode:
        name = chr(int(name.lstrip("Uu+"), 16))
    if len(name) == 1 and name.isprintable():
        return char_keysym(name)
    found = NAMES.get(name.removeprefix("XK_"), _SPELLINGS.get(_plain(name)) if name.strip() else None)
    if found is None:
        raise _unknown(name)
    return found


def name_of(sym: int) -> str:
    """X's name of a key, or its character."""
    known = {each: name for name, each in NAMES.items()}
    return known.get(sym) or (chr(sym & 0xFFFFFF) if sym >> 24 == 1 else f"0x{sym:x}")


def combo(text: str) -> tuple[int, ...]:
    """The keysyms of `ctrl+shift+t` in the order they are pressed."""
    names = _split(text)
    if len(names) > MOST_KEYS:
        raise InvalidError(f"{text[:80]!r} names {len(names)} keys; at most {MOST_KEYS} go together", code="bad_key")
    syms = [keysym(name) for name in names]
    if len(set(syms)) < len(syms):
        raise InvalidError(f"{text[:80]!r} names one key twice", code="bad_key")
    if not MODIFIERS.intersection(syms):
        return tuple(syms)
    shift = bool(_SHIFTS.intersection(syms))
    return tuple(_cased(sym, shift) if sym <= 0xFF or sym >> 24 == 1 else sym for sym in syms)


def modifier(name: str) -> int:
    """The keysym of a modifier key; another key is refused."""
    sym = keysym(name)
    if sym not in MODIFIERS:
        raise InvalidError(
            f"{name!r} is not a modifier key",
            remedy="use ctrl, shift, alt, altgr, super, meta or hyper",
            code="bad_key",
            key=name,
        )
    return sym


def needs_shift(sym: int) -> bool:
    """Whether a US keyboard makes this character with shift only."""
    return 0x41 <= sym <= 0x5A or sym in _US_UNSHIFTED


def unshifted(sym: int) -> int:
    """The key of a US keyboard that makes this character, by what it makes without shift."""
    return _US_UNSHIFTED.get(sym, sym + 0x20 if 0x41 <= sym <= 0x5A else sym)


def prints(syms: Iterable[int]) -> bool:
    """Whether pressing these together writes text rather than giving a command."""
    syms = list(syms)
    if any(sym in MODIFIERS - _SHIFTS - _LEVELS for sym in syms):
        return False
    return any(
        0x20 <= sym <= 0xFF or sym == 0x20AC or _UNICODE + 0xFF < sym < 0x02000000 or _types(sym) for sym in syms
    )


def _types(sym: int) -> bool:
    """Keypad digits and signs, and dead keys."""
    return 0xFFAA <= sym <= 0xFFB9 or sym in (0xFF80, 0xFFBD) or 0xFE50 <= sym <= 0xFE6F


def _split(text: str) -> list[str]:
    names = [*text[:-2].split("+"), "+"] if text.endswith("++") else ["+"] if text == "+" else text.split("+")
    names = [name if len(name) == 1 else name.strip() for name in names]
    if not all(names):
        raise InvalidError(
            f"{text[:80]!r} has an empty key name",
            remedy="write keys as ctrl+shift+t, and the plus key as + or plus",
            code="bad_key",
        )
    return names


def _cased(sym: int, shift: bool) -> int:
    char = chr(sym & 0xFFFFFF)
    if not shift:
        return char_keysym(char.lower()) if len(char.lower()) == 1 else sym
    shifted = _US_SHIFT.get(char, char.upper())
    return char_keysym(shifted) if len(shifted) == 1 else sym


def _unknown(name: str) -> InvalidError:
    close = difflib.get_close_matches(_plain(name)[:40], _SPELLINGS, n=3, cutoff=0.6)
    return InvalidError(
        f"there is no key {name[:80]!r}",
        remedy="did you mean " + " or ".join(dict.fromkeys(name_of(_SPELLINGS[word]) for word in close))
        if close
        else "use names such as a, enter, pageup, F5, ctrl, super, or X's for others",
        code="bad_key",
        key=name[:80],
    )
