"""A conversation in the terminal, over the WebSocket. It resumes: a lost connection loses nothing."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import ssl
import struct
import sys
import time
import uuid
from typing import Any
from urllib.parse import quote, urlsplit

from .console import Failure, bold, dim, say
from .process import Signals

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_PATIENCE = 60.0


class _Lost(Exception):
    """The connection is gone; the conversation is not."""


class Socket:
    """As much of RFC 6455 as a client of ours needs."""

    def __init__(self, url: str, query: str = "") -> None:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        try:
            plain = socket.create_connection((host, parts.port or (443 if secure else 80)), 5)
        except OSError as error:
            raise _Lost(str(error)) from None
        self._socket = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        self._socket.settimeout(0.2)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws{query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise _Lost(head.split(b"\r\n")[0].decode(errors="replace"))

    def _fill(self) -> None:
        while True:
            Signals.check()
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise _Lost(str(error)) from None
            if not data:
                raise _Lost("the server closed the connection")
            self._buffer += data
            return

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0xFE, size)
        if size > 0xFFFF:
            length = struct.pack(">BQ", 0xFF, size)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        try:
            self._socket.sendall(bytes([0x80 | opcode]) + length + mask + masked)
        except OSError as error:
            raise _Lost(str(error)) from None

    def send(self, message: dict[str, Any]) -> None:
        self._send(_TEXT, json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        text = b""
        while True:
            first, second = self._take(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._take(8))
            payload, opcode = self._take(size), first & 0x0F
            if opcode == _PING:
                self._send(_PONG, payload)
            elif opcode == _CLOSE:
                raise _Lost(payload[2:].decode(errors="replace") or "the server closed the connection")
            elif opcode != _PONG:
                text += payload
                if first & 0x80:
                    event = json.loads(text)
                    return event if isinstance(event, dict) else {}

    def close(self) -> None:
        self._socket.close()


class _Conversation:
    def __init__(self, url: str) -> None:
        self.url = url
        self.session = ""
        self.cursor = ""
        self.socket = self._connect()

    def _connect(self) -> Socket:
        query = f"?session_id={self.session}" if self.session else ""
        if self.cursor:
            query += f"&cursor={quote(self.cursor)}"
        opened = Socket(self.url, query)
        self.session = str(opened.receive().get("session_id", ""))
        return opened

    def reconnect(self, why: str) -> None:
        print(dim(f" [{why}; coming back] "), end="", flush=True)
        until = time.monotonic() + _PATIENCE
        while True:
            Signals.check()
            time.sleep(0.3)
            try:
                self.socket = self._connect()
                return
            except _Lost as lost:
                if time.monotonic() > until:
                    raise Failure(f"{self.url} is gone: {lost}") from None

    def ask(self, question: str) -> None:
        # With an identifier of ours a question that is sent again is not asked again.
        message = {"type": "chat", "message": question, "message_id": str(uuid.uuid4())}
        sent = accepted = False
        while True:
            try:
                if not sent:
                    self.socket.send(message)
                    sent = True
                event = self.socket.receive()
            except _Lost as lost:
                self.reconnect(str(lost))
                sent = accepted
                continue
            self.cursor = event.get("cursor") or self.cursor
            match event.get("type"):
                case "message_received":
                    accepted = True
                case "stream_chunk":
                    print(event.get("content", ""), end="", flush=True)
                case "stream_restart":
                    print(dim(" [taken back from here] "), end="", flush=True)
                case "stream_end" | "cancelled":
                    say("\n")
                    return
                case "error":
                    say(f"\n{event.get('message')}\n")
                    return


def talk(url: str) -> None:
    try:
        conversation = _Conversation(url)
    except _Lost as lost:
        raise Failure(f"Nothing to talk to at {url} ({lost}).\nStart it in another terminal: make run") from None
    say(dim(f"\n  {url}/ws, session {conversation.session}. An empty line or Ctrl-D ends.\n"))
    keyboard = _Keyboard()
    while question := keyboard.line():
        conversation.ask(question)
    conversation.socket.close()


class _Keyboard:
    """Lines that are typed. Ctrl-C must reach us while we wait, and what is pasted has several lines."""

    def __init__(self) -> None:
        self._typed = b""
        self._ended = False

    def line(self) -> str:
        print(bold("> "), end="", flush=True)
        while b"\n" not in self._typed and not self._ended:
            Signals.check()
            if select.select([sys.stdin], [], [], 0.2)[0]:
                data = os.read(sys.stdin.fileno(), 4096)
                self._typed += data
                self._ended = not data
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode(errors="replace").strip()
