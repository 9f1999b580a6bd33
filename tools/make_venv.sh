#!/bin/sh
# Make a virtual environment at $1 with the first Python that is new enough; keep one that already works.
# Where Python or its venv module is missing, install Debian's packages if we may, else say what is missing.
set -eu

target=$1
oldest="3.11"

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if works "$name" && "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$name"
            return 0
        fi
    done
    return 1
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

if [ -x "$target/bin/python" ] && works "$target/bin/python" && "$target/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

if ! python=$(find_python); then
    if may_install; then
        echo "Python $oldest with venv is missing: installing Debian's python3 and python3-venv ..."
        apt-get update -qq </dev/null >/dev/null || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv </dev/null >/dev/null || true
    fi
    if ! python=$(find_python); then
        echo "hemolens needs Python $oldest or newer with its venv module, and none was found." >&2
        echo "On Debian or Ubuntu: sudo apt-get install python3 python3-venv. Elsewhere: https://www.python.org" >&2
        exit 1
    fi
fi

echo "Making $target with $("$python" --version) ..."
"$python" -m venv --clear "$target"
