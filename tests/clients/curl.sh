#!/bin/sh
# curl over both APIs, as the page about clients shows it.
#
# Usage: curl.sh CURL URL: prints the text of each answer on a line of its own.
set -eu
curl="$1" url="$2"

"$curl" -sS --fail-with-body "$url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"model": "tinyllama", "temperature": 0, "messages": [{"role": "user", "content": "[[tokens=20]] go"}]}'
echo
"$curl" -sSN --fail-with-body "$url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"model": "tinyllama", "temperature": 0, "stream": true, "messages": [{"role": "user", "content": "[[tokens=20]] go"}]}' |
    sed -n 's/^data: //p'
"$curl" -sS --fail-with-body "$url/v1/embeddings" -d '{"model": "tinyllama", "input": "one"}'
echo
"$curl" -sSN --fail-with-body "$url/api/chat" \
    -d '{"model": "tinyllama", "options": {"temperature": 0}, "messages": [{"role": "user", "content": "[[tokens=20]] go"}]}'
