"""Two clients without a library, as people write them to try a server out.

Usage: sockets.py URL. Each makes the handshake by hand, reads the head by one `recv`, and then the first frame by
one more: the first prints it, the second asks something, too. Prints one JSON object a line:
{"client", "tries", "passed", "failures"}.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import sys
from urllib.parse import urlsplit

TRIES = 12


def _handshake(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 101 "), head
    _, _, behind = head.partition(b"\r\n\r\n")
    assert not behind, f"{len(behind)} bytes behind the head"
    return connection


def _event(frame: bytes) -> dict[str, object]:
    """The event of a text frame that came whole and alone."""
    assert frame[:1] == b"\x81", frame
    length, head = frame[1], 2
    if length == 126:
        length, head = struct.unpack(">H", frame[2:4])[0], 4
    assert len(frame) == head + length, f"{len(frame)} bytes for a frame of {head + length}"
    event: dict[str, object] = json.loads(frame[head:])
    return event


def _text(message: str) -> bytes:
    mask, data = os.urandom(4), message.encode()
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
    return bytes([0x81, 0x80 | len(data)]) + mask + masked


def _first(url: str) -> None:
    with _handshake(url) as connection:
        assert _event(connection.recv(4096))["type"] == "connection"


def _second(url: str) -> None:
    with _handshake(url) as connection:
        assert _event(connection.recv(4096))["type"] == "connection"
        connection.sendall(_text('{"type": "ping"}'))
        assert _event(connection.recv(4096))["type"] == "pong"


def _main(url: str) -> None:
    for name, client in (("socket, greeting", _first), ("socket, question", _second)):
        failures = []
        for _ in range(TRIES):
            try:
                client(url)
            except (AssertionError, OSError, ValueError) as error:
                failures.append(f"{type(error).__name__}: {error}"[:120])
        passed = TRIES - len(failures)
        print(json.dumps({"client": name, "tries": TRIES, "passed": passed, "failures": failures[:1]}), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
