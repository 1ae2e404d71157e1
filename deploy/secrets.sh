#!/bin/sh
# Writes the passwords that compose and Kubernetes need, with random values, to files that git ignores:
#   .env                              for docker-compose.yml
#   k8s/components/redis/written-by-deploy-secrets.sh/
#                                     for kustomize: the users of Redis, and the URL with the password
# Existing files stay as they are. Remove a file to get another password, and restart Redis and the replicas
# together.
set -eu
umask 077
root=${1:-$(dirname "$0")/..}
acl=$root/deploy/redis.acl
k8s=$root/k8s/components/redis/written-by-deploy-secrets.sh

password() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

# Copies standard input, with $2 instead of each $1. Everything here is built into the shell: every user of
# the machine can read the arguments of a program, and a password must not be among them.
replace() {
    while IFS= read -r rest || [ -n "$rest" ]; do
        line=
        while :; do
            case $rest in
                *"$1"*) line=$line${rest%%"$1"*}$2 rest=${rest#*"$1"} ;;
                *) break ;;
            esac
        done
        printf '%s\n' "$line$rest"
    done
}

# Writes standard input to a file in one step: no half of a file is left behind.
write() {
    cat >"$1.new"
    mv "$1.new" "$1"
    echo "$1 written"
}

# The passwords of the users jarvis, replica (for backups), sentinel and admin (for operators): each has its
# own.
for name in JARVIS_REDIS_PASSWORD JARVIS_REDIS_REPLICA_PASSWORD JARVIS_REDIS_SENTINEL_PASSWORD JARVIS_REDIS_ADMIN_PASSWORD; do
    if ! grep -qs "^$name=." "$root/.env"; then
        { [ ! -e "$root/.env" ] || grep -v "^$name=" "$root/.env" || true
          echo "$name=$(password)"; } | write "$root/.env"
    fi
done
if ! [ -s "$k8s/users.acl" ] || ! [ -s "$k8s/jarvis.env" ]; then
    mkdir -p "$k8s"
    secret=$(password)
    replace CHANGE-THIS-PASSWORD-OF-REPLICAS "$(password)" <"$acl" |
        replace CHANGE-THIS-PASSWORD-OF-SENTINELS "$(password)" |
        replace CHANGE-THIS-PASSWORD-OF-ADMIN "$(password)" |
        replace CHANGE-THIS-PASSWORD "$secret" | write "$k8s/users.acl"
    echo "JARVIS_REDIS_URL=redis://jarvis:$secret@redis:6379" | write "$k8s/jarvis.env"
fi
