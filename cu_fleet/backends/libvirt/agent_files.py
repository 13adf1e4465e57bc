"""The slot of a machine that has nobody of ours inside: `~/Shared` there, by its own shell and as its own user.

What a shell and its everyday programs do is enough for it, whichever they are. A path is walked part by part and never
over a link, and from then on the folder is the one that was reached, whatever its name stands for meanwhile.
"""

from __future__ import annotations

import stat

from cu_fleet.backends.base import FileInfo
from cu_fleet.backends.libvirt.agent_exec import NO_SHELL
from cu_fleet.backends.libvirt.files import Files
from cu_fleet.backends.slot import MAX_LISTED, parts
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, InvalidError, UnsupportedError

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
# sh -c this put PATH MODE END | get PATH | list PATH | remove PATH; as `cu_fleet.guest.files`, but for the list
SHELL = r"""
do=$0 path=$1
no() { echo "[\"$1\", \"$2\"]" >&2; exit 3; }
there() { [ -e "$1" ] || [ -L "$1" ]; }
into() {
  [ -L "./$1" ] && no bad_path "leads over a link"
  if ! there "./$1"; then
    case $do in put) mkdir "./$1" || exit 1;; remove) exit 0;; *) no no_file "is not there";; esac
  fi
  [ -d "./$1" ] || no not_a_file "leads through what is no folder"
  cd -P "./$1" || exit 1
}
umask 022
cd "$HOME" || exit 1
there ./Shared || mkdir ./Shared || exit 1
into Shared
set -f; IFS=/; set -- $path "$@"; unset IFS; set +f
n=$#; case $do in put) n=$((n - 3));; *) n=$((n - 1));; esac
while [ "$n" -gt 1 ]; do into "$1"; shift; n=$((n - 1)); done
name=; if [ "$n" = 1 ]; then name=$1; shift; fi
case $do in
put)
  there "./$name" && { [ -f "./$name" ] && [ ! -L "./$name" ] || no not_a_file "is there, and no file"; }
  new=./.new-$3
  trap 'rm -f "$new"' EXIT
  cat >"$new" || exit 1
  size=$(($(stat -c %s "$new") - ${#3}))
  [ "$(tail -c ${#3} "$new")" = "$3" ] || no cut_off "did not come whole"
  truncate -s "$size" "$new" && chmod "$(printf %o "$2")" "$new" && mv -f "$new" "./$name" && echo "$size";;
get)
  there "./$name" || no no_file "is not there"
  [ -f "./$name" ] && [ ! -L "./$name" ] || no not_a_file "is no file"
  exec dd bs=65536 count=$(($(stat -c %s "./$name") / 65536 + 1)) 2>/dev/null <"./$name";;  # were it to grow for ever
list)
  show() { stat -c '%f %s %Y' "./$1" && printf '%s\0' "$2"; }
  if [ "$name" ] && there "./$name" && { [ -L "./$name" ] || [ ! -d "./$name" ]; }; then show "$name" ""; exit; fi
  [ -z "$name" ] || into "$name"
  n=0
  for one in * .[!.]* ..?*; do
    there "./$one" || continue
    n=$((n + 1)); [ "$n" -le MOST ] || no too_many_files "holds more than MOST files"
    show "$one" "$one" || continue  # it has gone meanwhile
  done;;
remove)
  if [ "$name" ]; then rm -rf "./$name"
  else for one in * .[!.]* ..?*; do rm -rf "./$one" || exit 1; done
  fi;;
esac
""".replace("MOST", str(MAX_LISTED))


def argv(wanted: list[str]) -> list[str]:
    return ["sh", "-c", SHELL, *wanted]


class AgentFiles(Files):
    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        parts(path)
        process = await self._begin(handle, ["list", path])
        try:
            entries = (await self._said(process, path)).split("\0")[:-1]
        except UnsupportedError as e:
            _insist_on_none(e)
            return []
        finally:
            await process.kill()
        try:
            found = [_info(entry, path) for entry in entries]
        except ValueError:
            raise BrokenError("a desktop's list of files is nonsense", code="files_nonsense") from None
        if len(found) > MAX_LISTED:
            raise InvalidError(f"{path!r} holds more than {MAX_LISTED} files", code="too_many_files", path=path)
        return sorted(found, key=lambda one: one.path)

    async def remove(self, handle: Handle, path: str) -> None:
        try:
            await super().remove(handle, path)
        except UnsupportedError as e:
            _insist_on_none(e)


def _insist_on_none(e: UnsupportedError) -> None:
    """Where there is no shell nothing was ever put in, and nothing has to be taken out."""
    if e.code != NO_SHELL:
        raise e


def _info(entry: str, folder: str) -> FileInfo:
    about, _, name = entry.partition("\n")
    mode, size, mtime = about.split()
    bits = int(mode, 16)
    path = f"{folder}/{name}".strip("/")
    return FileInfo(path, _KINDS.get(stat.S_IFMT(bits), "other"), int(size), float(mtime), stat.S_IMODE(bits))
