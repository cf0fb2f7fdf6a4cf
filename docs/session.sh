#!/usr/bin/env bash
# Prints the session in the README, from a running service: docs/session.sh http://127.0.0.1:8000 clip.mp4
# The output is complete except for long parts: only the first three deltas are shown, then "…".
set -euo pipefail
url=$1 clip=$2

job=$(curl -sS "$url/captions" -F "file=@$clip")
id=$(sed -E 's/.*"id":"(cap_[0-9a-f]+)".*/\1/' <<<"$job")
echo "\$ curl localhost:8000/captions -F file=@clip.mp4"
sed -E 's/,"options":.*,"links":/, … ,"links":/' <<<"$job"
echo
echo "\$ curl -N localhost:8000/captions/$id/events"
curl -sSN "$url/captions/$id/events" | awk 'BEGIN { RS = ""; ORS = "\n\n" }
    /event: delta/ { deltas++; if (deltas == 4) print "…"; if (deltas > 3) next }
    !/event: delta/ { if (deltas) deltas = 3 }
    { print }'
