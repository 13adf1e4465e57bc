"""Key names: every spelling agents are trained on, and refusals that help."""

from pathlib import Path

import pytest

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.keys import MODIFIERS, NAMES, char_keysym, combo, keysym, modifier, prints


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        ("Return return enter ENTER Enter ret XK_Return", "Return"),
        ("Escape esc ESC escape", "Escape"),
        ("Page_Up pageup PAGEUP PageUp Page-Up prior Prior pgup", "Page_Up"),
        ("Page_Down pagedown PAGEDOWN next pgdn", "Page_Down"),
        ("Left left ARROWLEFT ArrowLeft arrow_left", "Left"),
        ("ARROWUP up", "Up"),
        ("Control_L ctrl CTRL Ctrl control CONTROL", "Control_L"),
        ("Shift_L shift SHIFT", "Shift_L"),
        ("Alt_L alt ALT OPTION option", "Alt_L"),
        ("Super_L super SUPER CMD cmd command win WIN windows", "Super_L"),
        ("ISO_Level3_Shift altgr AltGr ALT_GR", "ISO_Level3_Shift"),
        ("BackSpace backspace BACKSPACE", "BackSpace"),
        ("Delete delete del DEL DELETE", "Delete"),
        ("Insert ins INSERT", "Insert"),
        ("space SPACE Space spacebar", "space"),
        ("Tab tab TAB", "Tab"),
        ("Home home HOME", "Home"),
        ("Caps_Lock capslock CAPSLOCK caps_lock", "Caps_Lock"),
        ("Num_Lock numlock", "Num_Lock"),
        ("Print printscreen PRINTSCREEN prtsc", "Print"),
        ("Menu menu contextmenu ContextMenu", "Menu"),
        ("F1 f1", "F1"),
        ("F12 f12", "F12"),
        ("F35", "F35"),
        ("KP_0 kp_0 KP0 numpad0 NUMPAD_0", "KP_0"),
        ("KP_Enter kp_enter numpadenter", "KP_Enter"),
        ("KP_Add kp_plus numpadadd", "KP_Add"),
        ("plus PLUS", "plus"),
        ("minus dash", "minus"),
        ("slash", "slash"),
        ("period dot", "period"),
        ("XF86AudioMute mute audiomute VolumeMute", "XF86AudioMute"),
        ("dead_acute deadacute", "dead_acute"),
        ("Multi_key compose", "Multi_key"),
        ("EuroSign eurosign", "EuroSign"),
        ("ntilde", "ntilde"),
        ("Ntilde", "Ntilde"),
    ],
)
def test_spellings(spellings: str, name: str) -> None:
    for spelling in spellings.split():
        assert keysym(spelling) == NAMES[name], spelling


# What agents are taught to say, from their vendors' documentation and sample programs.
VENDORS = {
    "openai": """ALT=Alt_L ARROWDOWN=Down ARROWLEFT=Left ARROWRIGHT=Right ARROWUP=Up BACKSPACE=BackSpace
        CAPSLOCK=Caps_Lock CMD=Super_L CTRL=Control_L DELETE=Delete END=End ENTER=Return ESC=Escape HOME=Home
        INSERT=Insert OPTION=Alt_L PAGEDOWN=Page_Down PAGEUP=Page_Up SHIFT=Shift_L SPACE=space SUPER=Super_L TAB=Tab
        WIN=Super_L /=slash \\=backslash LEFT=Left RIGHT=Right UP=Up DOWN=Down F5=F5""",
    "anthropic": """Return=Return BackSpace=BackSpace Tab=Tab Escape=Escape Delete=Delete Page_Up=Page_Up
        Prior=Page_Up Next=Page_Down Left=Left space=space ctrl=Control_L alt=Alt_L shift=Shift_L super=Super_L
        cmd=Super_L Super_L=Super_L KP_0=KP_0 KP_Enter=KP_Enter F12=F12 minus=minus equal=equal
        bracketleft=bracketleft""",
    "xdotool": """Control_R=Control_R meta=Meta_L hyper=Hyper_L ISO_Level3_Shift=ISO_Level3_Shift Menu=Menu
        KP_Prior=KP_Page_Up XF86AudioMute=XF86AudioMute asciitilde=asciitilde question=question Agrave=Agrave
        EuroSign=EuroSign U00E9=eacute dead_acute=dead_acute Multi_key=Multi_key""",
    "pyautogui": """altleft=Alt_L altright=Alt_R apps=Menu browserback=XF86Back browserstop=XF86Stop
        ctrlleft=Control_L ctrlright=Control_R decimal=KP_Decimal divide=KP_Divide add=KP_Add subtract=KP_Subtract
        esc=Escape num0=KP_0 num9=KP_9 pgdn=Page_Down playpause=XF86AudioPlay prevtrack=XF86AudioPrev prntscrn=Print
        prtsc=Print shiftright=Shift_R volumedown=XF86AudioLowerVolume winleft=Super_L winright=Super_R
        command=Super_L optionleft=Alt_L launchmail=XF86Mail""",
    "web": """ControlLeft=Control_L ShiftRight=Shift_R AltGraph=ISO_Level3_Shift MetaLeft=Super_L ArrowUp=Up KeyA=a
        Digit7=7 Minus=minus Backquote=grave BracketLeft=bracketleft Quote=apostrophe Numpad5=KP_5 NumpadAdd=KP_Add
        NumpadEnter=KP_Enter ContextMenu=Menu PrintScreen=Print AudioVolumeUp=XF86AudioRaiseVolume
        MediaTrackNext=XF86AudioNext BrowserForward=XF86Forward CapsLock=Caps_Lock""",
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_names_that_agents_are_taught(vendor: str) -> None:
    wrong = {}
    for word in VENDORS[vendor].split():
        said, name = word.rsplit("=", 1)
        for spelling in {said, said.lower(), said.upper()} if len(said) > 1 and said != "Agrave" else {said}:
            if keysym(spelling) != NAMES[name]:
                wrong[spelling] = hex(keysym(spelling))
    assert wrong == {}


def test_a_character_may_be_named_by_its_number() -> None:
    assert keysym("U20AC") == keysym("u+20ac") == char_keysym("€")
    assert keysym("U1F600") == char_keysym("😀")
    for wrong in ("U110000", "U12", "U20ACG", "U0007"):
        with pytest.raises(InvalidError):
            keysym(wrong)


def test_with_shift_named_a_key_by_its_name_means_what_shift_makes_of_it() -> None:
    assert combo("shift+slash") == (NAMES["Shift_L"], ord("?"))
    assert combo("ctrl+shift+minus") == (NAMES["Control_L"], NAMES["Shift_L"], ord("_"))
    assert combo("ctrl+shift+XF86Back")[-1] == NAMES["XF86Back"]
    assert combo("slash") == (ord("/"),)


def test_keysyms_are_those_of_x() -> None:
    known = {
        "a": 0x61,
        "space": 0x20,
        "Return": 0xFF0D,
        "F1": 0xFFBE,
        "F35": 0xFFE0,
        "KP_Enter": 0xFF8D,
        "KP_9": 0xFFB9,
    }
    known |= {"Delete": 0xFFFF, "ydiaeresis": 0xFF, "Alt_L": 0xFFE9, "Super_L": 0xFFEB, "Menu": 0xFF67, "Break": 0xFF6B}
    known |= {"dead_grave": 0xFE50, "XF86Back": 0x1008FF26, "XF86AudioMute": 0x1008FF12, "XF86AudioMicMute": 0x1008FFB2}
    assert {name: NAMES[name] for name in known} == known
    assert len(set(NAMES.values())) == len(NAMES)


def test_keysyms_agree_with_the_headers_where_they_are_installed() -> None:
    header = Path("/usr/include/X11/keysymdef.h")
    if not header.exists():
        assert NAMES["Hyper_R"] == 0xFFEE  # the end of the last of its runs
        return
    lines = (line.split() for line in header.read_text("utf-8").splitlines() if line.startswith("#define XK_"))
    real = {words[1][3:]: int(words[2], 16) for words in lines if len(words) > 2}
    ours = {name: sym for name, sym in NAMES.items() if not name.startswith("XF86")}
    assert {name: real[name] for name in ours} == ours


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl+shift+t", ["Control_L", "Shift_L", "T"]),
        ("ctrl+C", ["Control_L", "c"]),
        ("CTRL + c", ["Control_L", "c"]),
        ("ctrl++", ["Control_L", "plus"]),
        ("ctrl+plus", ["Control_L", "plus"]),
        ("+", ["plus"]),
        ("A", ["A"]),
        ("a", ["a"]),
        ("shift+a", ["Shift_L", "A"]),
        ("shift+1", ["Shift_L", "exclam"]),
        ("shift+/", ["Shift_L", "question"]),
        ("shift+Tab", ["Shift_L", "Tab"]),
        ("alt+F4", ["Alt_L", "F4"]),
        (" ", ["space"]),
        ("w+a", ["w", "a"]),
        ("é", ["eacute"]),
        ("shift+é", ["Shift_L", "Eacute"]),
        ("Control_L+Alt_L+Delete", ["Control_L", "Alt_L", "Delete"]),
    ],
)
def test_combinations(text: str, keys: list[str]) -> None:
    assert combo(text) == tuple(NAMES[key] for key in keys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entr", "there is no key 'entr'; did you mean Return"),
        ("ctrl+pageupp", "did you mean Page_Up"),
        ("qqqqqq", "use names such as"),
        ("ctrl+", "empty key name"),
        ("++", "empty key name"),
        ("", "empty key name"),
        ("ctrl+ctrl", "names one key twice"),
        ("a+b+c+d+e+f+g+h+i", "at most 8"),
        ("x" * 5000, "there is no key"),
    ],
)
def test_refusals(text: str, words: str) -> None:
    with pytest.raises(InvalidError) as e:
        combo(text)
    assert words in str(e.value)
    assert e.value.code == "bad_key"
    assert len(str(e.value)) < 300


def test_characters() -> None:
    assert [char_keysym(char) for char in "aÿ€\n\t🌍"] == [0x61, 0xFF, 0x010020AC, 0xFF0D, 0xFF09, 0x0101F30D]


def test_modifiers() -> None:
    assert modifier("CTRL") in MODIFIERS
    with pytest.raises(InvalidError, match="'a' is not a modifier key"):
        modifier("a")


@pytest.mark.parametrize(
    ("text", "printed"), [("a", 1), ("shift+a", 1), ("altgr+e", 1), ("KP_5", 1), ("€", 1), ("世", 1)]
)
@pytest.mark.parametrize("command", ["ctrl+a", "alt+F4", "enter", "super", "shift+Tab", "shift", "Left"])
def test_what_prints(text: str, printed: int, command: str) -> None:
    assert prints(combo(text)) == bool(printed)
    assert not prints(combo(command))
