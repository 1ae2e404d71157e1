#!/bin/sh
# Replaces the replicas of docker-compose.yml by ones of the present folder, one at a time: a new one gets
# ready, then an old one stops accepting, finishes its turns and goes. nginx, Redis and Ollama stay as they
# are. A new replica that does not get ready is removed, and the old ones keep running: nothing is lost by a
# failed upgrade. A rollback is the same with the earlier version checked out.
#
#   deploy/upgrade.sh               builds the image first
#   deploy/upgrade.sh --no-build    takes the image that is there, for those who pull it
set -eu
cd "$(dirname "$0")/.."

# Seconds until a new replica has to be ready, and until an old one has to be gone.
READY=60
GONE=30

die() {
    echo "upgrade: $*" >&2
    exit 1
}

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose "$@"; }
else
    die "there is neither 'docker compose' nor docker-compose here"
fi

case ${1-} in
    --no-build) ;;
    "")
        # The image and its metrics name what they were built from.
        JARVIS_REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
        export JARVIS_REVISION
        compose build jarvis
        ;;
    *) die "unknown argument $1; the only one is --no-build" ;;
esac

old=$(compose ps -q jarvis)
[ -n "$old" ] || die "no replica runs here; start with: docker compose up --detach"
count=$(echo "$old" | wc -l)
replaced=0
for replica in $old; do
    before=$(compose ps -q jarvis)
    compose up --detach --no-deps --no-recreate --scale jarvis=$((count + 1)) jarvis >/dev/null 2>&1 ||
        die "no new replica could be started; $replaced of $count are replaced. To see why: docker compose up --detach --no-recreate --scale jarvis=$((count + 1)) jarvis"
    new=
    for found in $(compose ps -q jarvis); do
        case $before in *"$found"*) ;; *) new=$found ;; esac
    done
    [ -n "$new" ] || die "no new replica was started; $replaced of $count are replaced"
    started=$(date +%s)
    until docker exec "$new" jarvis health >/dev/null 2>&1; do
        if [ $(($(date +%s) - started)) -ge $READY ]; then
            docker logs --tail 20 "$new" >&2 || true
            docker rm --force "$new" >/dev/null
            die "the new replica did not get ready in $READY s and is removed; its last lines are above. $replaced of $count are replaced, the others run as before"
        fi
        sleep 0.5
    done
    ready=$(date +%s)
    docker stop --time $GONE "$replica" >/dev/null
    docker rm "$replica" >/dev/null
    replaced=$((replaced + 1))
    echo "$replaced of $count replaced: ready after $((ready - started)) s, the old one gone after $(($(date +%s) - ready)) s"
done
