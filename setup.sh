#!/usr/bin/env bash
# Make the virtual environment: find Python 3.12, install vivace with everything a workstation wants.
set -euo pipefail
venv=${1:-.venv}

find_python() {
  for candidate in python3.12 python3 python "$HOME"/.pyenv/versions/3.12*/bin/python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  if [ -n "$python" ]; then
    "$python" -m venv "$venv"
  elif command -v uv >/dev/null 2>&1; then
    uv venv --seed --python 3.12 "$venv"
  else
    echo "vivace needs Python 3.12: none was found, and no uv to fetch one. Install either and run make again." >&2
    exit 2
  fi
fi

# Rendering without a screen needs EGL or OSMesa; evaluation without video works without them.
if ! ldconfig -p 2>/dev/null | grep -q libEGL.so.1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -q && apt-get install -y -q libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6 ||
      echo "no EGL could be installed: videos will be left out" >&2
  else
    echo "no EGL found: videos will be left out (Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri)" >&2
  fi
fi

"$venv/bin/python" -m pip install --quiet --editable ".[all,dev]"
