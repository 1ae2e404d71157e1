#!/bin/sh
# A fresh Debian has no Python, and everything else is written in it.
set -eu

cd "$(dirname "$0")/.."

if ! command -v python3 >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1; then
        as_root="sudo"
    else
        echo "Python 3 is needed, and this user cannot install it: apt-get install python3" >&2
        exit 1
    fi
    echo "Python 3 is not there: installing it (apt-get install python3 python3-venv)" >&2
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
        python3 python3-venv ca-certificates >/dev/null
fi

PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1 exec python3 -m dev "$@"
