#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-or-later
#
# Makes a virtual environment with this project in it, or does nothing if the one that is there is up to date.
#
#   tools/venv.sh FOLDER [CONSTRAINTS-FILE]
#
# PYTHON names the interpreter (default: the first of python3, python3.13 ... python3.10 that is new enough).
# Up to date means: same interpreter, same setup.cfg, pyproject.toml and constraints as when it was made.
# Only prebuilt wheels are installed, so no compiler is needed.

set -eu
cd "$(dirname "$0")/.."
folder=$1
constraints=${2:-}

say() { printf '%s\n' "$*" >&2; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if new_enough "$candidate"; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ]; then
    say "No Python 3.10 or newer was found. Install one (Debian, Ubuntu: apt-get install python3),"
    say "or name it: make PYTHON=/path/to/python3"
    exit 1
fi
if ! new_enough "$python"; then
    say "$python is not a Python 3.10 or newer. Name another: make PYTHON=/path/to/python3"
    exit 1
fi

# What the environment is made of; kept in it, and compared with next time.
wanted=$(
    "$python" - setup.cfg pyproject.toml ${constraints:+"$constraints"} <<'END'
import hashlib, pathlib, sys
print(sys.base_prefix, sys.version.split()[0])
for name in sys.argv[1:]:
    print(name, hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest())
END
)
if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/made-of" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

# Debian and Ubuntu keep ensurepip, without which no environment can be made, in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "$python cannot make virtual environments yet: installing the package $package"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q >&2
        apt-get install -q -y --no-install-recommends "$package" >&2
    else
        say "$python cannot make virtual environments. Install what is missing, then try again:"
        say "    sudo apt-get install $package"
        exit 1
    fi
fi

say "Setting up $folder with $("$python" --version) (a minute or two the first time)"
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --upgrade pip
PYTHONWARNINGS=ignore "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    --editable '.[server,dev]' ${constraints:+--constraint "$constraints"}
printf '%s\n' "$wanted" >"$folder/made-of"
