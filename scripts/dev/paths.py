"""Where things lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Everything that is fetched, written or kept at run time; git ignores it.
RUN = ROOT / ".run"
BIN = RUN / "bin"
LOGS = RUN / "logs"
VENV = RUN / "venv"
NODE = RUN / "node"
REDIS_DATA = RUN / "redis"
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


def shown(path: Path) -> str:
    """The path as a person in the project's folder would type it."""
    try:
        return str(path.relative_to(ROOT))
    except ValueError:
        return str(path)
