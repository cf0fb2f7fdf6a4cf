#!/bin/sh
# Install the packages of cpu.txt and this repository into a virtual environment:  install.sh .venv
#
# torch comes first, by itself: the CPU build is looked for where pip is set up to look, and else on PyTorch's own
# index. The ordinary build would do on no GPU as well, but is several gigabytes larger.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pip="$1/bin/python -m pip install --disable-pip-version-check --no-input -qq --no-deps --no-compile"
torch=$(grep '^torch==' "$here/cpu.txt")

echo "sharecap: installing $torch"
$pip "$torch" 2>/dev/null || $pip --index-url https://download.pytorch.org/whl/cpu "$torch"

echo "sharecap: installing the packages of requirements/cpu.txt"
$pip --requirement "$here/cpu.txt"
# the name that the vllm command looks for; built from a copy, which keeps this directory clean
name=$(mktemp -d)
trap 'rm -rf "$name"' EXIT
cp "$here/vllm-name/pyproject.toml" "$name"
$pip --no-build-isolation "$name"
$pip --no-build-isolation --editable "$here/.." --editable "$here/../client"
