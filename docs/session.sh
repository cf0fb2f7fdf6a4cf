#!/usr/bin/env bash
# Prints the session in the README, from a running service: docs/session.sh http://127.0.0.1:8000
# The output is complete except for long parts: only the first three deltas are shown, then "…".
set -euo pipefail
url=$1
cd "$(mktemp -d)"

echo "\$ .venv/bin/python -m workers.demo.scenes --out clip.mp4"
python -m workers.demo.scenes --out clip.mp4
echo "\$ id=\$(curl -s localhost:8000/captions -F file=@clip.mp4 | grep -om1 'cap_[0-9a-f]*' | head -1)"
id=$(curl -s "$url/captions" -F file=@clip.mp4 | grep -om1 'cap_[0-9a-f]*' | head -1)
echo "\$ curl -sN localhost:8000/captions/\$id/events"
curl -sN "$url/captions/$id/events" | awk 'BEGIN { RS = ""; ORS = "\n\n" }
    /event: delta/ { deltas++; if (deltas == 4) print "…"; if (deltas > 3) next }
    !/event: delta/ { if (deltas) deltas = 3 }
    { print }'
