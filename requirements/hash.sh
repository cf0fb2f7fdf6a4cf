#!/bin/sh
# Write requirements/hashed: the packages that the images install, with the SHA-256 of every file of each package.
#
# Run it after a change of these lists. It needs uv. pip installs these lists with --require-hashes, so an
# image contains the very files that were published when the list was written, or it is not built.
set -eu
cd "$(dirname "$0")"

mkdir -p hashed
for list in gateway worker datasets stats ray-cluster build; do
    {
        echo "# Written by requirements/hash.sh from requirements/$list.txt."
        uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
            "$list.txt"
    } >"hashed/$list.txt"
done
