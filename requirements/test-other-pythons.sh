#!/bin/bash
# Run the tests of client and gateway on every supported Python version that is installed, except the one in .venv.
#
# Left out are browser tests and fault tests that are slow or depend on timing, whose subject is not the language, and
# tests that need the worker's packages: the pinned CPU build of torch was not available for other versions when these lists were made.
# All versions run at the same time; the output of a version is printed only if its tests fail.
set -euo pipefail
cd "$(dirname "$0")/.."

folders=(tests/client tests/service)
left_out=(
    --ignore tests/service/routes/test_clips.py
    --ignore tests/service/contract/sandbox/test_system_calls.py
    --ignore tests/service/connections
    -k "not browser and not killed and not restart and not never_read and not cut_anywhere and not ends_with_its_parent and not further_behind"
)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

test_on() {
    local python
    python=$(requirements/other-python.sh "$1")
    if [[ -n "$python" ]]; then
        "$python" -m pytest -p no:cacheprovider -p no:xdist "${folders[@]}" "${left_out[@]}"
        echo "passed"
    else
        echo "not installed, or used by .venv"
    fi
}

declare -A processes
for version in 3.11 3.12 3.13; do
    test_on "$version" >"$logs/$version" 2>&1 &
    processes[$version]=$!
done

status=0
for version in "${!processes[@]}"; do
    if wait "${processes[$version]}"; then
        echo "Python $version: $(tail -n 1 "$logs/$version")"
    else
        status=1
        cat "$logs/$version"
        echo "Python $version: failed"
    fi
done
exit $status
