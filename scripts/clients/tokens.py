"""Tokens made by PyJWT, for a running jarvis: which of them sign a caller in.

Usage: tokens.py URL SECRET PORT. The jarvis at URL has SECRET as JARVIS_JWT_SECRET, and the settings of
an outside issuer whose keys are at http://127.0.0.1:PORT/keys, whose name is that address without the
path, and whose audience is "verify". This program serves these keys. It prints one JSON object a line:
{"client", "tries", "passed", "failures": [what went wrong]}.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

HOUR = 3600
# An unknown key is looked for at most once in ten seconds.
LIMIT = 30


def _keys() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns of each algorithm a private key, and its public half as a JSON Web Key."""
    private: dict[str, Any] = {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    writers = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    keys = {}
    for algorithm, key in private.items():
        public = json.loads(writers[algorithm].to_jwk(key.public_key()))
        keys[algorithm] = (key, {**public, "kid": f"{algorithm} {time.time()}", "use": "sig"})
    return keys


def _serve(port: int, keys: list[dict[str, Any]]) -> None:
    body = json.dumps({"keys": keys}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802: the library's name
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _status(url: str, token: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def _main(url: str, secret: str, port: int) -> None:
    models = url.rstrip("/") + "/api/v1/models"
    issuer = f"http://127.0.0.1:{port}"
    keys = _keys()
    _serve(port, [public for _, public in keys.values()])
    now = int(time.time())
    own = {"sub": "alice", "user_id": "alice", "email": "a@example.com", "iat": now, "exp": now + HOUR, "type": "access"}
    outside = {"sub": "alice", "iss": issuer, "aud": "verify", "iat": now, "nbf": now, "exp": now + HOUR}

    def make(algorithm: str, claims: dict[str, Any]) -> str:
        if algorithm == "HS256":
            return jwt.encode(claims, secret, algorithm)
        key, public = keys[algorithm]
        return jwt.encode(claims, key, algorithm, headers={"kid": public["kid"]})

    for algorithm in ("HS256", *keys):
        claims = own if algorithm == "HS256" else outside
        tokens = {
            "valid": (make(algorithm, claims), 200),
            "expired": (make(algorithm, {**claims, "exp": now - 60}), 401),
            "not valid yet": (make(algorithm, {**claims, "nbf": now + 60}), 401),
            "refresh": (make(algorithm, {**claims, "type": "refresh"}), 401),
            "for another audience": (make(algorithm, {**claims, "aud": "another"}), 401),
            "alg none": (jwt.encode(claims, None, "none"), 401),
            "HS512": (jwt.encode(claims, secret * 2, "HS512"), 401),
        }
        failures = []
        for what, (token, expected) in tokens.items():
            started = time.monotonic()
            status = _status(models, token)
            while expected == 200 and status != 200 and time.monotonic() - started < LIMIT:
                time.sleep(0.5)
                status = _status(models, token)
            if status != expected:
                failures.append(f"{what}: {status}")
        tries = len(tokens)
        result = {"client": f"PyJWT {algorithm}", "tries": tries, "passed": tries - len(failures), "failures": failures}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
