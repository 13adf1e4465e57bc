#!/usr/bin/env bash
# Four agents, each on its own desktop, on this machine: installs what is missing, runs the demo, and leaves nothing
# behind but the folder reports/demo with its pictures and records.
#
#   examples/demo.sh [--stay] [--home FOLDER]
#
#   --stay          leaves the controller and its desktops running, to play with
#   --home FOLDER   where everything of the demo is kept
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${CU_FLEET_VENV:-$here/../.venv}
# What doctor still misses here may be something that the demo does not need, such as a network for desktops.
"$here/install.sh" chromium mousepad xterm fonts-dejavu-core || [ -x "$venv/bin/cu-fleet" ] || exit 1
exec "$venv/bin/python" "$here/demo.py" "$@"
