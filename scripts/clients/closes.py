"""Python's WebSocket clients against a running jarvis: each has to see its own close code.

Usage: closes.py URL. Prints one JSON object a line: {"client", "close", "tries", "seen": {code: times}}.
Every other try closes in the middle of an answer, the others after it.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
import warnings
from collections.abc import Awaitable, Callable

import aiohttp
import websocket
import websockets.asyncio.client
import websockets.sync.client

TRIES = 24
# The application's own code, from the range that is free for it.
OWN = 4999
CHAT = json.dumps({"type": "chat", "message": "[[tokens=20]] hello", "max_tokens": 20})

# A client closes with the second argument, or without a code where that is None, and returns the
# code that it saw.
Client = Callable[[str, "int | None", str], Awaitable[object]]


def _kind(text: str | bytes) -> str:
    return str(json.loads(text)["type"])


async def _asyncio(url: str, code: int | None, until: str) -> object:
    async with websockets.asyncio.client.connect(url, proxy=None) as socket:
        await socket.send(CHAT)
        while _kind(await socket.recv()) != until:
            pass
        await socket.close(code or 1000)
        return socket.close_code


def _sync(url: str, code: int | None, until: str) -> object:
    with websockets.sync.client.connect(url, proxy=None) as socket:
        socket.send(CHAT)
        while _kind(socket.recv()) != until:
            pass
        socket.close(code or 1000)
        return socket.close_code


async def _legacy(url: str, code: int | None, until: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from websockets.legacy.client import connect
    async with connect(url) as socket:
        await socket.send(CHAT)
        while _kind(await socket.recv()) != until:
            pass
        await socket.close(code or 1000)
        return socket.close_code


def _websocket_client(url: str, code: int | None, until: str) -> object:
    socket = websocket.create_connection(url, timeout=10)
    socket.send(CHAT)
    while _kind(socket.recv()) != until:
        pass
    # Its close() does not return the code that the server answered.
    socket.send(b"", websocket.ABNF.OPCODE_CLOSE) if code is None else socket.send_close(code)
    try:
        while True:
            opcode, frame = socket.recv_data_frame(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(frame.data[:2], "big")
    finally:
        socket.shutdown()


async def _aiohttp(url: str, code: int | None, until: str) -> object:
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        await socket.send_str(CHAT)
        while _kind(await socket.receive_str()) != until:
            pass
        await socket.close(code=code or 1000)
        return socket.close_code


def _threaded(client: Callable[[str, int | None, str], object]) -> Client:
    return lambda url, code, until: asyncio.to_thread(client, url, code, until)


def _clients() -> dict[str, tuple[Client, tuple[int | None, ...]]]:
    # None is tried only where the client can close without a code and does not send 1000 for it.
    clients: dict[str, tuple[Client, tuple[int | None, ...]]] = {
        "websockets asyncio": (_asyncio, (1000, OWN)),
        "websockets sync": (_threaded(_sync), (1000, OWN)),
        "websocket-client": (_threaded(_websocket_client), (1000, OWN, None)),
        "aiohttp": (_aiohttp, (1000, OWN)),
    }
    try:
        import websockets.legacy.client  # noqa: F401
    except ImportError:
        return clients
    return {**clients, "websockets legacy": (_legacy, (1000, OWN))}


async def _main(url: str) -> None:
    for name, (client, codes) in _clients().items():
        for code in codes:
            seen: collections.Counter[str] = collections.Counter()
            for number in range(TRIES):
                until = "stream_chunk" if number % 2 else "stream_end"
                try:
                    seen[str(await asyncio.wait_for(client(url, code, until), 30))] += 1
                except Exception as error:  # noqa: BLE001: whatever a client raises is what its user sees
                    seen[type(error).__name__] += 1
            print(json.dumps({"client": name, "close": code, "tries": TRIES, "seen": seen}), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.run(_main(sys.argv[1]))
