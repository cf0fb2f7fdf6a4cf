#!/usr/bin/env bash
# Prints the commands and answers in docs/roles.md, from a running service: docs/roles.sh http://127.0.0.1:8000 clip.mp4
# The output is complete except for long parts: only the first three deltas are shown, then "…".
set -euo pipefail
url=$1
clip=$(realpath "$2")
cd "$(mktemp -d)"
cp "$clip" clip.mp4

run() { # prints a command as a reader would type it, then its output
    printf '$ %s\n' "$1"
    eval "${1//localhost:8000/$url}"
}

run "id=\$(curl -s localhost:8000/captions -F file=@clip.mp4 | jq -r .id)"
run "curl -sN localhost:8000/captions/\$id/events > events.txt"
run "curl -s localhost:8000/captions/\$id | jq -c '.differentials[]'"
run "curl -s localhost:8000/captions/\$id | jq -c '.caption, .usage, .timings_s'"
echo
run "curl -s localhost:8000/captions -F file=@clip.mp4 -F mode=fast -H 'Prefer: wait=60' | jq -c '.caption, .usage'"
echo
run "curl -s localhost:8000/captions/\$id/clips --json '{\"start_s\": 4, \"end_s\": 8}' | jq -c '.status, .caption, .usage'"
echo
run "curl -s localhost:8000/recaption --json '{\"prompt\": \"a blue circle on a white background, growing larger\"}' | jq -c '.status, .caption, .usage'"
echo
run "curl -sN localhost:8000/recaption --json '{\"prompt\": \"a green star turns orange\", \"stream\": true}'" |
    awk 'BEGIN { RS = ""; ORS = "\n\n" } /event: delta/ { if (++deltas == 4) print "…"; if (deltas > 3) next } { print }'
