#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-or-later
#
# Installs the Matrix clients that tests/clients runs through the proxy, or does nothing if they are up to date:
#
#   .venv-clients                     matrix-nio, as tools/clients.txt pins it
#   tests/clients/js/node_modules     matrix-js-sdk, Hydrogen, Playwright's core, as package-lock.json pins them
#
# PYTHON names the interpreter (default: python3). Only prebuilt wheels are installed, and no script of a package runs.
# Without npm the second part is left out, with a word; its tests say so too.

set -eu
cd "$(dirname "$0")/.."
folder=.venv-clients
python=${PYTHON:-python3}
say() { printf '%s\n' "$*" >&2; }

wanted=$("$python" -c '
import hashlib, pathlib, sys
print(sys.base_prefix, sys.version.split()[0], hashlib.sha256(pathlib.Path("tools/clients.txt").read_bytes()).hexdigest())')
if [ ! -x "$folder/bin/python" ] || [ "$(cat "$folder/made-of" 2>/dev/null)" != "$wanted" ]; then
    say "Setting up $folder (a minute the first time)"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r tools/clients.txt
    printf '%s\n' "$wanted" >"$folder/made-of"
fi

if ! command -v npm >/dev/null; then
    say "npm was not found: the clients in JavaScript are left out (Node.js 20 or newer, npm)"
    exit 0
fi
cd tests/clients/js
if [ ! -e node_modules ] || ! cmp -s package-lock.json node_modules/made-of; then
    say "Installing the packages of tests/clients/js"
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/made-of
fi
