"""The chart as operators get it: packaged, rendered with values, and read back.

Knows nothing of what should come out.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "deploy" / "helm" / "dispatch-worker"
SETS = sorted((SOURCE / "ci").glob("*-values.yaml"))
TOOLS = ROOT / ".tools" / "bin"
CHECKS = ROOT / ".tools" / "checks" / "bin"
KUBERNETES = "1.32.13"
RELEASE = "rel"
NAMESPACE = "app"

Values = dict[str, Any]
LEAST: Values = {"nomad": {"address": "http://nomad:4646"}, "redis": {"url": "redis://redis:6379/0"}}


def tool(path: Path) -> str:
    """A command that the set-up builds. In CI its absence is a fault, elsewhere a reason to skip."""
    if path.exists():
        return str(path)
    missing = f"{path.relative_to(ROOT)} is missing: run `make deploy-tools`"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def run(*command: str | Path, given: str = "", seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), input=given, capture_output=True, text=True, timeout=seconds, check=False
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Values as Helm lays one file over another."""
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        made[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return made


def loaded(path: Path) -> Values:
    values: Values = yaml.safe_load(path.read_text())
    return values


@dataclass(frozen=True)
class Objects:
    """What a release would bring into the cluster."""

    text: str

    @property
    def all(self) -> list[Any]:
        return [one for one in yaml.safe_load_all(self.text) if one]

    def of(self, kind: str) -> list[Any]:
        return [one for one in self.all if one["kind"] == kind]

    def one(self, kind: str, ending: str = "") -> Any:
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"].endswith(ending)]
        return found

    @property
    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.all}

    @property
    def pod(self) -> Any:
        return self.one("Deployment")["spec"]["template"]

    @property
    def container(self) -> Any:
        (found,) = self.pod["spec"]["containers"]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The settings in the ConfigMap that the container takes its environment from."""
        name = self.container["envFrom"][0]["configMapRef"]["name"]
        (found,) = [one for one in self.of("ConfigMap") if one["metadata"]["name"] == name]
        data: dict[str, str] = found["data"]
        return data


@dataclass(frozen=True)
class Chart:
    """The packaged chart."""

    helm: str
    package: Path

    def template(self, values: Mapping[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
        return run(
            self.helm,
            *("template", RELEASE, self.package, "--namespace", NAMESPACE),
            *("--kube-version", KUBERNETES, "--values", "-", *more),
            given=json.dumps(values),
        )

    def render(self, over: Mapping[str, Any] | None = None) -> Objects:
        """The objects for the least values with others laid over them."""
        return self.exactly(merged(LEAST, over or {}))

    def exactly(self, values: Mapping[str, Any]) -> Objects:
        return _objects(self, json.dumps(values))

    def refusal(self, over: Mapping[str, Any]) -> str:
        """What Helm says about values that must not pass."""
        ended = self.template(merged(LEAST, over))
        assert ended.returncode != 0, "these values were taken"
        return ended.stderr


@lru_cache(maxsize=64)
def _objects(chart: Chart, values: str) -> Objects:
    ended = chart.template(json.loads(values))
    assert (ended.returncode, ended.stderr) == (0, "")
    return Objects(ended.stdout)
