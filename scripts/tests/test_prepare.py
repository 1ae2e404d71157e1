"""What every target promises about the programs that it needs: they are there before it begins."""

from __future__ import annotations

import os
import re
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from dev import balancer, prepare, redis, tools
from dev.console import Failure
from dev.paths import ROOT

_SERVER = "Redis server v=7.0.15 sha=00000000:0"


class Programs(unittest.TestCase):
    """On a machine with nothing but what a test puts there, and without a network."""

    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.system = Path(place.name) / "system"
        self.private = Path(place.name) / "run" / "bin"
        self.system.mkdir()
        self.installed: list[str] = []
        for target, name, value in (
            (tools, "BIN", self.private),
            (tools, "RUN", self.private.parent),
            (tools, "_SBIN", ()),
            (tools, "apt_install", self.refuse),
            (tools, "apt_unpack", lambda package, program: None),
            (redis, "_of_wheel", lambda program: []),
        ):
            patch = mock.patch.object(target, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.dict(os.environ, {"PATH": str(self.system)})
        patch.start()
        self.addCleanup(patch.stop)

    def program(self, name: str, says: str = _SERVER) -> Path:
        path = self.system / name
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    def refuse(self, *packages: str) -> bool:
        self.installed.extend(packages)
        return False

    def install(self, *packages: str) -> bool:
        """As root: what Debian's packages bring."""
        self.installed.extend(packages)
        if "redis-tools" in packages:
            self.program("redis-check-rdb")
            self.program("redis-cli")
        return True

    def test_a_server_without_a_sentinel_is_the_sentinel_too(self) -> None:
        server = self.program("redis-server")
        self.program("redis-cli")
        redis.programs()
        self.assertEqual(tools.find("redis-server"), str(server))
        self.assertEqual(tools.find("redis-sentinel"), str(self.private / "redis-sentinel"))
        self.assertEqual((self.private / "redis-sentinel").resolve(), server.resolve())
        self.assertEqual(self.installed, [])

    def test_a_server_under_another_name_is_found_by_the_usual_one(self) -> None:
        self.program("redis-server", "Redis server v=6.0.16 sha=0")
        valkey = self.program("valkey-server", "Valkey server v=9.1.2 sha=0")
        self.program("redis-cli")
        redis.programs()
        for name in ("redis-server", "redis-sentinel"):
            self.assertEqual(Path(tools.find(name) or "").resolve(), valkey.resolve(), name)

    def test_where_nothing_is_there_everything_is_installed(self) -> None:
        with mock.patch.object(tools, "apt_install", self.install):
            redis.programs()
        for name in ("redis-server", "redis-sentinel", "redis-cli"):
            self.assertIsNotNone(tools.find(name), name)
        self.assertEqual(self.installed, ["redis-tools"])

    def test_who_may_not_install_gets_it_from_packages_that_are_unpacked(self) -> None:
        wheel = {"valkey-server": self.program("wheel-server"), "valkey-cli": self.program("wheel-cli")}
        with mock.patch.object(redis, "_of_wheel", lambda program: [wheel[program]]):
            redis.programs()
        for name in ("redis-server", "redis-sentinel", "redis-cli"):
            self.assertEqual(tools.find(name), str(self.private / name))

    def test_what_cannot_be_had_is_named_with_what_to_do(self) -> None:
        with self.assertRaisesRegex(Failure, "No Redis: install redis-server"):
            redis.programs()
        self.program("redis-server")
        with self.assertRaisesRegex(Failure, "No redis-cli: install redis-tools"):
            redis.programs()
        with self.assertRaisesRegex(Failure, "apt-get install nginx"):
            balancer.nginx_program()
        with self.assertRaisesRegex(Failure, "No C compiler"):
            tools.compiler()

    def test_nginx_is_unpacked_where_it_is_not_installed(self) -> None:
        nginx = self.program("unpacked-nginx", "nginx version: nginx/1.22.1")
        with mock.patch.object(tools, "apt_unpack", lambda package, program: str(nginx)):
            self.assertEqual(balancer.nginx_program(), str(nginx))

    def test_a_target_puts_what_was_fetched_first_on_the_path(self) -> None:
        self.program("redis-server")
        self.program("redis-cli")
        self.program("cc")
        prepare.target("chaos")
        self.assertEqual(os.environ["PATH"].split(os.pathsep)[0], str(self.private))


class Targets(unittest.TestCase):
    def test_every_target_that_starts_something_says_what_it_needs(self) -> None:
        names = set(re.findall(r"^(\w+): +##", (ROOT / "Makefile").read_text(), re.MULTILINE))
        self.assertEqual(names - {"help", "chat", "stop", "clean", "purge"}, set(prepare.TARGETS))


class Shown(unittest.TestCase):
    def test_a_url_is_shown_without_its_password(self) -> None:
        for url, shown in (
            ("redis://ann:57#Secret@host:1", "redis://***@host:1"),
            ("redis://:a/b@c@host", "redis://***@host"),
            ("redis-sentinel://h:1?sentinelPassword=x&node=b:1", "redis-sentinel://h:1?sentinelPassword=***&node=b:1"),
            ("redis://host:1", "redis://host:1"),
        ):
            self.assertEqual(redis.without_password(url), shown)


if __name__ == "__main__":
    unittest.main()
