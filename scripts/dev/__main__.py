"""The entry: python3 -m dev TARGET."""

from __future__ import annotations

import argparse
import contextlib
import sys

from . import console, prepare, run
from .console import Failure, bold, dim, say
from .paths import ROOT
from .process import Interrupted, Signals


def main() -> int:
    parser = argparse.ArgumentParser(prog="make", description=__doc__)
    targets = parser.add_subparsers(dest="target", required=True)
    targets.add_parser("help")
    targets.add_parser("run")
    targets.add_parser("cluster").add_argument("--replicas", type=int, default=3)
    targets.add_parser("chat")
    targets.add_parser("stop")
    targets.add_parser("test")
    targets.add_parser("verify")
    for name, minutes in (("chaos", 10.0), ("roll", None), ("soak", 30.0)):
        target = targets.add_parser(name)
        target.add_argument("--sessions", type=int, default=200)
        target.add_argument("--seed", type=int, default=None)
        if minutes is not None:
            target.add_argument("--minutes", type=float, default=minutes)
        if name == "chaos":
            target.add_argument("--redis", default="sentinel")
    targets.add_parser("bench")
    seams = targets.add_parser("seams")
    seams.add_argument("--answers", type=int, default=100)
    seams.add_argument("--seed", type=int)
    targets.add_parser("prepare").add_argument("of", choices=prepare.TARGETS)
    targets.add_parser("clean").add_argument("--history", action="store_true")
    arguments = parser.parse_args()

    Signals.install()
    try:
        return _do(arguments)
    except Interrupted:
        say()
        return 128 + Signals.last
    except Failure as failure:
        first, *rest = str(failure).split("\n")
        say()
        say(f"  {console.red(first)}")
        for text in rest:
            say(f"  {text}")
        say()
        return 1


def _do(arguments: argparse.Namespace) -> int:
    match arguments.target:
        case "help":
            _help()
        case "run":
            run.run(None)
        case "cluster":
            if not 1 <= arguments.replicas <= 32:
                raise Failure("REPLICAS is a number from 1 to 32.")
            run.run(arguments.replicas)
        case "chat":
            from . import chat

            # Ctrl-C is a way to leave.
            with contextlib.suppress(Interrupted):
                chat.talk(run.url_of_running())
            say()
        case "stop":
            say("  Stopped." if run.stop() else "  Nothing is running from this folder.")
        case "test":
            from . import check

            return check.everything()
        case "verify":
            from . import verify

            return verify.everything()
        case "bench":
            from . import proof

            return proof.bench()
        case "chaos" | "roll" | "soak":
            from . import proof

            if arguments.sessions < 1:
                raise Failure("SESSIONS is a number from 1 on.")
            if arguments.target == "roll":
                return proof.roll(arguments.sessions, arguments.seed)
            if arguments.minutes < 0.5:
                raise Failure("MINUTES is a number from 0.5 on.")
            load = (arguments.minutes, arguments.sessions, arguments.seed)
            return proof.soak(*load) if arguments.target == "soak" else proof.chaos(arguments.redis, *load)
        case "seams":
            from . import seams

            if arguments.answers < 1:
                raise Failure("ANSWERS is a number from 1 on.")
            return seams.seams(arguments.answers, arguments.seed)
        case "prepare":
            prepare.target(arguments.of)
        case "clean":
            run.clean(history=arguments.history)
    return 0


def _help() -> None:
    """The targets, as the Makefile describes them."""
    console.title("make …")
    for text in (ROOT / "Makefile").read_text().splitlines():
        name, mark, what = text.partition("##")
        if mark:
            say(f"  {bold(name.split(':')[0].ljust(console.LABEL))}{what.strip()}")
    say()
    say(dim("  Settings are environment variables: JARVIS_LISTEN, JARVIS_REDIS_URL, JARVIS_OLLAMA_URLS,"))
    say(dim("  JARVIS_DEFAULT_MODEL; the others are listed by `jarvis serve --help`."))
    say()


if __name__ == "__main__":
    sys.exit(main())
