#!/bin/sh
# Make the virtual environment of client and gateway for another Python version:  other-python.sh 3.12
#
# It is .venv-3.12, made again when a requirements file changes. Prints the path of its interpreter, or nothing if that
# Python is not installed or is the one in .venv, which runs all tests anyway. numpy draws the tests' clips.
set -eu

version=$1
cd "$(dirname "$0")/.."
if [ -x .venv/bin/python ] && [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ]; then
    exit
fi

python=
for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    if "$candidate" -c "" 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || exit 0

venv=.venv-$version
lists="requirements/gateway.txt requirements/dev.txt requirements/datasets.txt requirements/stats.txt requirements/cpu.txt requirements/other-python.sh pyproject.toml client/pyproject.toml"
stamp=$(cat $lists | cksum)
if [ "$(cat "$venv/.sharecap" 2>/dev/null)" != "$stamp" ]; then
    echo "sharecap: making $venv with $("$python" --version)" >&2
    "$python" -m venv "$venv"
    pip="$venv/bin/python -m pip install --disable-pip-version-check --no-input -qq --no-deps --no-compile"
    $pip --requirement requirements/gateway.txt --requirement requirements/dev.txt \
        --requirement requirements/datasets.txt --requirement requirements/stats.txt \
        $(grep -E '^(numpy|psutil|pyyaml|setuptools)==' requirements/cpu.txt) >&2
    $pip --no-build-isolation --editable . --editable client >&2
    echo "$stamp" >"$venv/.sharecap"
fi
echo "$venv/bin/python"
