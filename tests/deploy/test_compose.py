"""The stack for a laptop: Compose's own loader takes it, and what it mounts and sets is right.

No container is started: there is no registry to pull the others from.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import ROOT, TOOLS, run, tool
from worker.settings import load

FILE = ROOT / "deploy" / "compose.yaml"
WRITTEN: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = WRITTEN["services"]


@pytest.mark.deploy
def test_compose_takes_the_file() -> None:
    ended = subprocess.run(
        [tool(TOOLS / "compose-config"), "-format", "json", FILE],
        env={**os.environ, "NOMAD_ADDR": "", "NOMAD_TOKEN": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    made = json.loads(ended.stdout)["services"]
    assert set(made) == {"redis", "nomad", "worker", "prometheus", "grafana"}
    # An empty variable counts as unset.
    assert made["worker"]["environment"]["NOMAD_ADDR"] == "http://nomad:4646"


@pytest.mark.deploy
def test_compose_refuses_a_misspelt_key(tmp_path: Path) -> None:
    faulty = tmp_path / "compose.yaml"
    faulty.write_text(FILE.read_text().replace("read_only:", "readonly:"))

    ended = run(tool(TOOLS / "compose-config"), faulty)

    assert ended.returncode != 0
    assert "readonly" in ended.stdout + ended.stderr


def test_what_is_mounted_exists() -> None:
    mounted = [
        FILE.parent / source
        for service in SERVICES.values()
        for source in (volume.partition(":")[0] for volume in service.get("volumes", []))
        if "/" in source
    ]

    assert len(mounted) >= 4
    assert [path for path in mounted if not path.exists()] == []


def test_images_are_pinned() -> None:
    for service in SERVICES.values():
        assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", service["image"]), service["image"]


def test_nothing_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_worker_takes_its_settings_and_has_time_to_drain() -> None:
    worker = SERVICES["worker"]
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in worker["environment"].items()}

    settings = load(given)

    assert settings.nomad_addr == "http://nomad:4646"
    assert settings.drain_seconds < float(worker["stop_grace_period"].removesuffix("s"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yaml").write_text(WRITTEN["configs"]["prometheus"]["content"])
    shutil.copy(ROOT / "deploy" / "prometheus" / "rules.yaml", tmp_path)

    ended = run("promtool", "check", "config", tmp_path / "prometheus.yaml")

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_grafana_finds_its_dashboards() -> None:
    provider = yaml.safe_load(WRITTEN["configs"]["grafana-dashboards"]["content"])["providers"][0]
    inside = [Path(volume.split(":")[1]) for volume in SERVICES["grafana"]["volumes"]]

    assert {path.parent for path in inside} == {Path(provider["options"]["path"])}
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in map(str, inside)
    assert {path.name for path in inside} == {
        path.name for path in (ROOT / "deploy" / "grafana").glob("*.json")
    }
