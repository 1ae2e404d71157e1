"""What `make run` promises about the processes that it starts, and how `make test` counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock

from dev import clients, net, process
from dev.check import Tally, count
from dev.console import Failure
from dev.process import Fleet, Service


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: object, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


class Processes(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        patch = mock.patch.object(process, "LOGS", self.place)
        patch.start()
        self.addCleanup(patch.stop)

    def test_a_service_leaves_no_child_behind(self) -> None:
        fleet = Fleet()
        service = fleet.start(Service("parent", ["sh", "-c", "sleep 600 & echo $!; wait"], stage=0))
        self.assertTrue(_until(lambda: service.printed().strip().isdigit()))
        child = int(service.printed())
        self.assertTrue(_alive(child))
        fleet.stop()
        self.assertTrue(_until(lambda: not _alive(child)))

    def test_a_service_that_ignores_sigterm_is_killed_after_its_grace(self) -> None:
        fleet = Fleet()
        argv = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]
        service = fleet.start(Service("deaf", argv, stage=0, grace=0.3))
        self.assertTrue(_until(lambda: "up" in service.printed()))
        start = time.monotonic()
        fleet.stop()
        self.assertLess(time.monotonic() - start, 5)
        self.assertFalse(service.alive)

    def test_the_highest_stage_ends_first(self) -> None:
        fleet = Fleet()
        order = self.place / "order"
        for stage in (0, 1, 2):
            script = f"trap 'echo {stage} >> {order}; exit' TERM; echo up; while :; do sleep 0.02; done"
            service = fleet.start(Service(f"s{stage}", ["sh", "-c", script], stage=stage))
            self.assertTrue(_until(lambda one=service: "up" in one.printed()))
        fleet.stop()
        self.assertEqual(order.read_text().split(), ["2", "1", "0"])

    def test_services_end_when_we_are_killed_outright(self) -> None:
        script = textwrap.dedent(f"""
            import pathlib, time
            from dev import process
            process.LOGS = pathlib.Path({str(self.place)!r})
            one = process.Fleet().start(process.Service("x", ["sleep", "600"], stage=0))
            print(one.process.pid, flush=True)
            time.sleep(600)
        """)
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env, text=True) as parent:
            assert parent.stdout
            child = int(parent.stdout.readline())
            self.assertTrue(_alive(child))
            parent.send_signal(signal.SIGKILL)
        self.assertTrue(_until(lambda: not _alive(child)))

    def test_what_died_says_so_with_its_last_words(self) -> None:
        service = Service("ill", ["sh", "-c", "echo no such thing; exit 3"], stage=0)
        service.start()
        with self.assertRaisesRegex(Failure, "(?s)ill ended with code 3.*no such thing"):
            service.wait_until(lambda: False, 10, "it starts")


class Addresses(unittest.TestCase):
    def test_addresses_of_both_families_are_read(self) -> None:
        self.assertEqual(net.split("127.0.0.1:10200"), ("127.0.0.1", 10200))
        self.assertEqual(net.split("[::1]:80"), ("::1", 80))
        for wrong in ("10200", "localhost", "127.0.0.1:x", "127.0.0.1:70000"):
            with self.assertRaises(Failure):
                net.split(wrong)

    def test_a_port_in_use_is_seen(self) -> None:
        port = net.free_port()
        self.assertTrue(net.is_free("127.0.0.1", port))
        with net.socket.create_server(("127.0.0.1", port)):
            self.assertFalse(net.is_free("127.0.0.1", port))


class Counting(unittest.TestCase):
    def test_the_closing_lines_of_both_runners_are_added_up(self) -> None:
        tally = Tally()
        count("     Summary [   5.2s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped\n", tally)
        self.assertEqual((tally.passed, tally.failed, tally.skipped), (10, 2, 3))
        count("test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n", tally)
        self.assertEqual((tally.passed, tally.failed, tally.skipped), (14, 2, 4))


class Clients(unittest.TestCase):
    def test_a_try_counts_only_where_the_client_saw_its_own_code(self) -> None:
        seen = {"1000": 3, "1006": 2, "4999": 4}
        for close, good in ((1000, 3), (4999, 4), (None, 3), (1001, 0)):
            self.assertEqual(clients.good_tries({"close": close, "tries": 9, "seen": seen}), good)
        self.assertEqual(clients.good_tries({"tries": 12, "passed": 11, "failures": ["late"]}), 11)


if __name__ == "__main__":
    unittest.main()
