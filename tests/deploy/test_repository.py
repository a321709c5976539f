"""What is written in two places is the same in both; these tests need no tool."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.deploy.chart import ROOT, SOURCE, loaded
from worker import __version__

SCHEMA = json.loads((SOURCE / "values.schema.json").read_text())
OF_KUBERNETES = {
    *("nodeAffinity", "podAffinity", "podAntiAffinity", "appArmorProfile", "valueFrom"),
    *("extraObjects", "extraVolumes", "ports", "global"),
}
"""Objects whose fields are Kubernetes' to check."""


def test_the_schema_is_what_the_code_makes(tmp_path: Path) -> None:
    made = tmp_path / "values.schema.json"

    subprocess.run([sys.executable, ROOT / "deploy" / "helm" / "schema.py", made], check=True, timeout=60)

    assert made.read_text() == (SOURCE / "values.schema.json").read_text(), "run `make docs`"


def test_every_object_of_the_schema_is_closed() -> None:
    def open_ones(schema: Any, name: str) -> list[str]:
        if isinstance(schema, list):
            return [found for one in schema for found in open_ones(one, name)]
        if not isinstance(schema, dict):
            return []
        own = schema.get("type") == "object" and "additionalProperties" not in schema
        below = [
            found for key, one in schema.items() for found in open_ones(one, key if key != "items" else name)
        ]
        return ([name] if own else []) + below

    found = {name.removesuffix("anyOf") or "extraObjects" for name in open_ones(SCHEMA, "values")}

    assert found <= OF_KUBERNETES


def test_every_value_is_in_the_schema_with_its_description() -> None:
    def undescribed(values: dict[str, Any], schema: dict[str, Any], path: str) -> list[str]:
        wrong = []
        for key, value in values.items():
            of = schema["properties"].get(key)
            if of is None or "description" not in of:
                wrong.append(f"{path}{key}")
            elif isinstance(value, dict) and of.get("properties"):
                inside = undescribed(value, of, f"{path}{key}.")
                # A value described as a whole has Kubernetes' own fields below it.
                wrong += [] if _described_as_a_whole(path + key) else inside
        return wrong

    assert undescribed(loaded(SOURCE / "values.yaml"), SCHEMA, "") == []


def _described_as_a_whole(path: str) -> bool:
    text = (SOURCE / "values.yaml").read_text()
    depth = "  " * path.count(".")
    name = path.rpartition(".")[2]
    return re.search(rf"^{depth}# .*\n{depth}{name}:", text, re.MULTILINE) is not None


def test_the_version_is_written_once_and_copied_right() -> None:
    chart = loaded(SOURCE / "Chart.yaml")

    assert chart["appVersion"] == __version__
    assert f"worker {__version__}," in (SOURCE / "README.md").read_text()
    assert f"nomad-dispatch-worker:{__version__}" in (ROOT / "deploy" / "compose.yaml").read_text()
    assert '"version"' in (ROOT / "pyproject.toml").read_text().split("dynamic =")[1].splitlines()[0]


def test_lock_files_name_no_registry() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        assert "://" not in path.read_text(), path.name
