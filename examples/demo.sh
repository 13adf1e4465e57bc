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
"$here/install.sh" chromium mousepad xterm fonts-dejavu-core
exec "$venv/bin/python" "$here/demo.py" "$@"
