#!/usr/bin/env bash
# Sets up what is missing and runs every check and test of cu-fleet, on Debian 12 or newer (Ubuntu 24.04: not tried yet).
#
#   tests/run.sh [--quick | --install] [PYTEST ARGUMENT…]
#
#   --quick   installs nothing but the Python environment, and leaves out tests that start real desktops or take minutes
#   --install only sets up what is missing
#
# A line for each step, what failed in full, and a verdict; everything else is in reports/. Where CI is set, a test that
# is skipped because something is missing counts as failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
quick= only_install=
[ "${1:-}" = --quick ] && { quick=1; shift; }
[ "${1:-}" = --install ] && { only_install=1; shift; }
venv=${CU_FLEET_VENV:-$PWD/.venv}
mkdir -p reports && rm -f reports/*.log reports/*.xml
steps=() counts=() failed=0 ran=
started=$(date +%s%N)

seconds_since() { awk -v a="$1" -v b="$(date +%s%N)" 'BEGIN { printf "%.1f s", (b - a) / 1e9 }'; }

# step NAME COMMAND… - runs it into reports/NAME.log, and shows the log's end if it failed.
step() {
  local name=$1 at result=ok
  shift
  at=$(date +%s%N)
  if ! "$@" >"reports/$name.log" 2>&1; then
    result=FAILED failed=1
    printf '\n'; tail -n 60 "reports/$name.log"; printf '\n'
  fi
  note "$name" "$result" "$at"
}

note() {
  local line
  line=$(printf '%-8s %-6s %9s' "$1" "$2" "$(seconds_since "$3")")
  steps+=("$line"); echo "$line"
}

install() {
  if [ -n "$quick" ]; then examples/install.sh --venv-only --extra dev
  else
    local node=()  # for the Codex that the tests get from npm; a Node.js from elsewhere brings its own
    command -v npm >/dev/null || node=(nodejs npm)
    local engine=()  # whoever has Docker's own packages keeps them
    PATH=$PATH:/usr/sbin command -v dockerd >/dev/null || engine=(docker.io)
    local ssh=() code
    PATH=$PATH:/usr/sbin command -v sshd >/dev/null || ssh=(openssh-server)
    examples/install.sh --extra dev at-spi2-core busybox-static chromium fonts-dejavu-core gcc gir1.2-gtk-3.0 git iproute2 \
      iptables libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-dev mmdebstrap mousepad mtools novnc \
      openssh-client ovmf pkg-config postgresql procps python3-dev python3-gi python3-pyqt5 python3-tk qemu-system-x86 \
      qemu-utils swtpm swtpm-tools systemd-boot-efi tigervnc-viewer x11-xserver-utils x11vnc xclip xterm xvfb \
      "${engine[@]}" "${node[@]}" "${ssh[@]}" &&
      "$venv/bin/python" -m pip install -q --disable-pip-version-check "libvirt-python>=9"  # compiled, so after those
    code=$?
    # The tests start their own; nobody asked for one that the network reaches.
    [ ${#ssh[@]} = 0 ] || systemctl disable --now ssh >/dev/null 2>&1
    return $code
  fi
}

# run_pytest NAME ARGUMENT… - a part of the tests, as it goes by, so that a long run is seen to live; the log keeps it.
run_pytest() {
  local name=$1 at result=ok code
  shift
  at=$(date +%s%N)
  "$venv/bin/python" -m pytest --junitxml="reports/$name.xml" "$@" 2>&1 | tee "reports/$name.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) ran=1 ;;
    5) result=none ;;  # of the tests that were asked for
    *) result=FAILED failed=1 ran=1 ;;
  esac
  note "$name" "$result" "$at"
  counts+=("$(tail -n 1 "reports/$name.log")")
  [ -z "${CI:-}" ] || step "$name-skips" refuse_skips "reports/$name.xml"
}

# Tests that start nothing share the processors; those with real desktops and servers get them to themselves.
run_tests() {
  local light="not real and not slow"
  run_pytest light -n "$(nproc)" -m "$light" "$@"
  [ -n "$quick" ] || run_pytest real -m "not ($light)" "$@"
  [ -n "$ran" ] || { echo "no test was run"; failed=1; }
}

refuse_skips() {
  "$venv/bin/python" - "$1" <<'PY'
import sys
from xml.etree import ElementTree

skips = [
    f"{case.get('classname')}.{case.get('name')}: {skip.get('message')}"
    for case in ElementTree.parse(sys.argv[1]).iter("testcase")
    for skip in case.findall("skipped")
    if skip.get("type") != "pytest.xfail"
]
print("\n".join(["something is missing here, and CI is set:", *skips]) if skips else "none")
sys.exit(bool(skips))
PY
}

echo "cu-fleet tests${quick:+ (quick)}: $(. /etc/os-release && echo "$PRETTY_NAME"), $(nproc) cores, user $(id -un)"
step install install
[ -z "$only_install" ] || exit "$failed"
unset CU_FLEET_VENV
for name in "${!CU_FLEET_@}"; do unset "$name"; done  # a controller of yours is not ours to test
if [ "$failed" = 0 ]; then
  step ruff "$venv/bin/ruff" check .
  step format "$venv/bin/ruff" format --check .
  step types "$venv/bin/mypy"
  step imports "$venv/bin/lint-imports"
  run_tests "$@"
fi

printf '\n'
printf '  %s\n' "${steps[@]}"
printf '%s\n' "${counts[@]}"
if [ "$failed" = 0 ]; then echo "PASSED in $(seconds_since "$started")"
else echo "FAILED in $(seconds_since "$started"); logs are in reports/"; fi
exit "$failed"
