#!/bin/sh
# Writes what k8s/components/redis-tls needs, to files that git ignores: an authority for Redis alone, a
# certificate by it, and the URL with the password of deploy/secrets.sh. The key of the authority is kept
# nowhere. Existing files stay as they are. To get another certificate, remove
# k8s/components/redis-tls/written-by-deploy-redis-tls.sh and k8s/components/redis-ca/ca.crt, run this, and
# apply: Redis and the replicas are replaced, and connect once both are.
set -eu
umask 077
root=${1:-$(dirname "$0")/..}
to=$root/k8s/components/redis-tls/written-by-deploy-redis-tls.sh
ca=$root/k8s/components/redis-ca/ca.crt
url=$root/k8s/components/redis/written-by-deploy-secrets.sh/jarvis.env
DAYS=730

die() {
    echo "redis-tls: $*" >&2
    exit 1
}

command -v openssl >/dev/null || die "there is no openssl here"
[ -s "$url" ] || die "there is no password for Redis yet; run deploy/secrets.sh first"
mkdir -p "$to"

if ! [ -s "$to/tls.crt" ]; then
    new=$(mktemp -d)
    trap 'rm -rf "$new"' EXIT
    cat >"$new/config" <<'CONFIG'
[req]
distinguished_name = name
prompt = no
[name]
CN = redis
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:redis, DNS:redis.jarvis, DNS:redis.jarvis.svc, DNS:localhost, IP:127.0.0.1
CONFIG
    key() {
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
    }
    key "$new/ca.key"
    key "$new/tls.key"
    openssl req -x509 -new -key "$new/ca.key" -config "$new/config" -extensions authority \
        -subj "/CN=Redis of jarvis" -days $DAYS -out "$new/ca.crt"
    openssl req -new -key "$new/tls.key" -config "$new/config" -out "$new/tls.csr"
    openssl x509 -req -in "$new/tls.csr" -CA "$new/ca.crt" -CAkey "$new/ca.key" -set_serial 1 \
        -extfile "$new/config" -extensions server -days $DAYS -out "$new/tls.crt" 2>/dev/null
    cp "$new/ca.crt" "$to/ca.crt"
    cp "$new/ca.crt" "$ca"
    cp "$new/tls.key" "$to/tls.key"
    # Last, so that a run that was stopped is done again.
    cp "$new/tls.crt" "$to/tls.crt"
    echo "$to/tls.crt written"
fi
[ -s "$ca" ] || cp "$to/ca.crt" "$ca"
# Built into the shell: a password is no argument of a program.
while IFS= read -r line; do
    case $line in
        JARVIS_REDIS_URL=redis://*) printf '%s\n' "JARVIS_REDIS_URL=rediss://${line#JARVIS_REDIS_URL=redis://}" ;;
        *) die "$url has no redis:// URL" ;;
    esac
done <"$url" >"$to/jarvis.env.new"
mv "$to/jarvis.env.new" "$to/jarvis.env"
