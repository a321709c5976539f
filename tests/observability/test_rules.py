"""Alerts fire when they must, and only then; each has a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.observability.server import ROOT, RULES

FOLDER = RULES.parent
RUNBOOKS = ROOT / "docs" / "runbook"
ALERTS = sorted(set(re.findall(r"alert: (\w+)", RULES.read_text())))
CASES = (FOLDER / "rules_test.yaml").read_text() + (FOLDER / "objective_test.yaml").read_text()

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


@needs_promtool
def test_prometheus_reads_the_rules() -> None:
    checked = promtool("check", "config", FOLDER / "prometheus.yaml")

    assert (checked.returncode, checked.stderr) == (0, "")


@needs_promtool
@pytest.mark.parametrize("name", ["rules_test.yaml", "objective_test.yaml"])
def test_alerts_fire_when_they_must_and_are_silent_otherwise(name: str) -> None:
    tested = promtool("test", "rules", FOLDER / name)

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_a_tested_case_and_a_page(alert: str) -> None:
    rules = re.findall(rf"- alert: {alert}\n(.*?)(?=\n      - |\n\n|\Z)", RULES.read_text(), re.DOTALL)

    for rule in rules:
        assert re.search(r"severity: (critical|warning)\b", rule)
        assert f"runbook_url: docs/runbook/{alert}.md" in rule or "annotations: *slow" in rule
    assert f'alertname="{alert}"' in CASES
    headings = re.findall(r"^#+ (.*)$", (RUNBOOKS / f"{alert}.md").read_text(), re.MULTILINE)
    assert headings == [alert, "Cause", "Check", "Cure"]


def alert_rules() -> list[tuple[str, str, set[str]]]:
    """Name, expression, and the labels that the sentences for people name, of each alert."""
    found = []
    for block in re.split(r"\n      - (?=alert: |record: )", RULES.read_text()):
        if match := re.match(r"alert: (\w+)\n(.*?)\n        labels: \{([^}]*)\}(.*)", block, re.DOTALL):
            name, head, given, sentences = match.groups()
            named = set(re.findall(r"\$labels\.(\w+)", sentences))
            found.append((name, head, named - set(re.findall(r"(\w+):", given))))
    return found


@pytest.mark.parametrize(
    ("name", "expr", "named"), [pytest.param(*rule, id=rule[0]) for rule in alert_rules()]
)
def test_an_alert_has_every_label_that_its_sentences_name(name: str, expr: str, named: set[str]) -> None:
    by = re.search(r"\bby \(([^)]*)\)", expr)
    if by:
        labels = {label.strip() for label in by[1].split(",")}
    elif "dispatch_worker:" in expr:
        labels = {"job"}
    else:
        labels = {"job", "instance"}

    assert named <= labels, name


def test_every_alert_is_looked_at() -> None:
    assert {name for name, _, _ in alert_rules()} == set(ALERTS)
    assert any(named for _, _, named in alert_rules())


def test_every_case_that_fires_stands_next_to_one_that_does_not() -> None:
    assert CASES.count("exp_samples: []") >= len(ALERTS)


def test_every_page_belongs_to_an_alert_and_is_listed() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    listed = set(re.findall(r"\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text()))

    assert pages == listed == set(ALERTS)
