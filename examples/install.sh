#!/usr/bin/env bash
# Makes a checkout ready on Debian 12 or newer (Ubuntu 24.04: not tried yet); what is there already is left alone.
#
#   examples/install.sh [--venv-only] [--extra NAME] [PACKAGE…]
#
#   --venv-only    only the Python environment: no programs from the distribution (but python3-venv, if it is missing)
#   --extra NAME   an optional part of pyproject.toml, such as dev
#   PACKAGE…       packages of the distribution wanted besides what desktops need
#
# The environment is .venv in the checkout, or $CU_FLEET_VENV. As an ordinary user it asks sudo for the packages.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CU_FLEET_VENV:-$top/.venv}
unset CU_FLEET_VENV  # ours alone: cu-fleet would refuse it as an unknown setting
extra= venv_only= packages=()

while [ $# -gt 0 ]; do
  case $1 in
    --venv-only) venv_only=1 ;;
    --extra) extra=${2:?--extra needs a name}; shift ;;
    -*) echo "install.sh: no option $1" >&2; exit 2 ;;
    *) packages+=("$1") ;;
  esac
  shift
done

die() { echo "install.sh: $*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "this needs root: $*"; fi
}

# Runs a command that talks a lot; what it said matters only if it fails.
quietly() {
  local said
  said=$("$@" 2>&1) || { printf '%s\n' "$said" >&2; die "this failed: $*"; }
}

# Installs those of the given packages that are missing; the lists are fetched once, and only if something is.
apt_install() {
  local missing=() package apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "no apt-get here; install by hand: ${missing[*]}"
  echo "installing ${missing[*]}"
  [ -n "${lists_are_new:-}" ] || quietly as_root "${apt[@]}" update
  lists_are_new=1
  quietly as_root "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

# The newest Python that is new enough.
find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$name"; return; fi
  done
  return 1
}

make_venv() {
  local python made=$venv/.made-from wanted
  wanted="$(sha256sum <"$top/pyproject.toml") $top $extra"
  if [ -x "$venv/bin/cu-fleet" ] && grep -qF -- "$wanted" "$made" 2>/dev/null; then return; fi
  python=$(find_python) || { apt_install python3.11-venv; python=$(find_python) || die "Python 3.11 or newer is needed"; }
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  [ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
  echo "installing cu-fleet${extra:+ with its part $extra} into $venv"
  "$venv/bin/python" -m pip install -q --no-cache-dir --disable-pip-version-check -e "$top${extra:+[$extra]}"
  echo "$wanted" >"$made"
}

make_venv
[ -z "$venv_only" ] || exit 0
[ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
# What doctor still misses then, it says, and its exit code is ours.
if ! "$venv/bin/cu-fleet" doctor >/dev/null 2>&1; then
  echo "mending what doctor finds"
  "$venv/bin/cu-fleet" doctor --fix >/dev/null 2>&1 || true
fi
"$venv/bin/cu-fleet" doctor
