"""The Kubernetes and compose files, checked without a cluster."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from . import tools
from .console import Failure, say
from .paths import ROOT
from .process import foreground, output

if TYPE_CHECKING:
    from .check import Outcome

_VERSION = "1.30"
# Reads YAML in the virtual environment, as the standard library cannot.
_AS_JSON = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))"


def check() -> Outcome:
    from .check import Outcome

    python = tools.python_with(["kubernetes-validate"])
    folder = ROOT / "k8s"
    files = [path for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    validate = [python, "-m", "kubernetes_validate", "--strict", "-k", _VERSION, "--quiet"]
    ok = foreground([*validate, *map(str, files)]) == 0
    ok &= _kustomization_is_whole(python, [path.name for path in files])
    checked = f"{len(files)} manifests against Kubernetes {_VERSION}"
    if kubectl := tools.find("kubectl"):
        ok &= _renders(kubectl)
        checked += ", rendered by kubectl"
    return Outcome(ok, checked)


def _kustomization_is_whole(python: str, names: list[str]) -> bool:
    """Every manifest is applied, and nothing is applied that is not there."""
    path = ROOT / "k8s" / "kustomization.yaml"
    documents = json.loads(output([python, "-c", _AS_JSON, str(path)]) or "[]")
    if not documents:
        raise Failure(f"{path} cannot be read")
    listed = documents[0].get("resources", [])
    for name in sorted(set(listed) ^ set(names)):
        say(f"k8s/{name} is {'missing' if name in listed else 'not in kustomization.yaml'}")
    return sorted(listed) == sorted(names)


def _renders(kubectl: str) -> bool:
    result = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s")], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        say(result.stderr.strip())
    return result.returncode == 0
