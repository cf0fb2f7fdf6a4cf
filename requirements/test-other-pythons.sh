#!/bin/bash
# Run the tests of client and gateway on every supported Python version that is installed, except the one in .venv.
#
# All versions run at the same time. The output of a version is printed only if its tests fail.
set -euo pipefail
cd "$(dirname "$0")/.."

TESTS="tests/client tests/service/access tests/service/intake tests/service/routes tests/service/streaming tests/service/upkeep"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

test_on() {
    local python
    python=$(requirements/other-python.sh "$1")
    [[ -z "$python" ]] || "$python" -m pytest -p no:cacheprovider $TESTS
}

declare -A processes
for version in 3.11 3.12 3.13; do
    test_on "$version" >"$logs/$version" 2>&1 &
    processes[$version]=$!
done

status=0
for version in "${!processes[@]}"; do
    if wait "${processes[$version]}"; then
        echo "Python $version: $(tail -n 1 "$logs/$version" | grep . || echo "runs all tests, or is not installed")"
    else
        status=1
        cat "$logs/$version"
        echo "Python $version: failed"
    fi
done
exit $status
