#!/usr/bin/env bash
# Prints the commands and answers in docs/roles.md, from a running service: docs/roles.sh http://127.0.0.1:8000 clip.mp4
set -euo pipefail
url=$1 clip=$2
JSON="-H content-type:application/json"

run() { # prints a command as a reader would type it, then its output
    local command=${1//"$JSON" -d/--json}
    printf '\n$ %s\n' "$command"
    eval "${1//localhost:8000/-sS $url}" | sed "s/^null$//"
}
post() { # posts the clip with the given options and waits until the job has ended
    printf '\n$ curl localhost:8000/captions -F file=@clip.mp4%s\n' "${*:+ $*}"
    local answer
    answer=$(curl -sS "$url/captions" -F "file=@$clip" "$@")
    id=$(jq -r .id <<<"$answer")
    jq -c '{id, status, links}' <<<"$answer"
    curl -sSN "$url/captions/$id/events" >/dev/null
}

post
run "curl localhost:8000/captions/$id | jq -c '.differentials[]'"
run "curl localhost:8000/captions/$id | jq -c '.caption, .usage, .timings_s'"
video=$id
post -F mode=fast
run "curl localhost:8000/captions/$id | jq -c '.caption, .usage'"
run "curl localhost:8000/captions/$video/clips $JSON -d '{\"start_s\": 4, \"end_s\": 8}' | jq -c '.status, .caption, .usage'"
run "curl localhost:8000/recaption $JSON -d '{\"prompt\": \"a blue circle on a white background, growing larger\"}' | jq -c '.status, .caption, .usage'"
run "curl -N localhost:8000/recaption $JSON -d '{\"prompt\": \"a green star turns orange\", \"stream\": true}'"
