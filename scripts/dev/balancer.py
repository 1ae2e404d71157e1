"""nginx in front of several replicas, with the rules that the containers use too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import net, tools
from .console import Failure
from .paths import ROOT, RUN
from .process import Fleet, Service, succeeds

_RULES = ROOT / "deploy" / "nginx"


def start(fleet: Fleet, listen: str, replicas: Sequence[str]) -> None:
    program = nginx_program()
    place = RUN / "nginx"
    place.mkdir(parents=True, exist_ok=True)
    config = place / "nginx.conf"
    config.write_text(_config(place, listen, replicas))
    argv = [program(), "-p", str(place), "-e", str(place / "error.log"), "-c", str(config)]
    if not succeeds([*argv, "-t"]):
        raise Failure(f"nginx refuses its configuration: {' '.join(argv)} -t")
    service = fleet.start(Service("nginx", [*argv, "-g", "daemon off;"], stage=3))
    host, port = net.split(listen)
    url = f"http://{net.joined(net.reachable(host), port)}/health/live"
    service.wait_until(lambda: net.get(url)[0] == 200, 15, "nginx starts")


def nginx_program() -> str:
    """nginx: from the PATH, else taken out of Debian's package, else installed."""
    if (found := tools.find("nginx")) and succeeds([found, "-v"]):
        return found
    if (unpacked := tools.apt_unpack("nginx", "nginx")) and succeeds([unpacked, "-v"]):
        return unpacked
    if tools.apt_install("nginx") and (program := tools.find("nginx")):
        return program
    raise Failure("make cluster needs nginx: apt-get install nginx")


def _config(place: Path, listen: str, replicas: Sequence[str]) -> str:
    temporary = "\n".join(
        f'    {kind}_temp_path "{place}/{kind}";' for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # max_fails=0: else one failed request takes a replica away from everybody for seconds.
    servers = "\n".join(f"        server {replica} max_fails=0;" for replica in replicas)
    # As root its workers would become "nobody", who may not read the project's folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""{user}worker_processes auto;
pid "{place}/nginx.pid";
error_log stderr warn;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
{temporary}
    include "{_RULES}/http.conf";
    upstream replicas {{
{servers}
    }}
    map "" $jarvis {{
        default replicas;
    }}
    server {{
        listen {listen};
        include "{_RULES}/jarvis.conf";
    }}
}}
"""
