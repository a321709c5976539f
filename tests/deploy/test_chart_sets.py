"""The sets of values in ci/: the tools find no fault, and the worker takes what comes out."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import (
    CHECKS,
    KUBERNETES,
    LEAST,
    NAMESPACE,
    RELEASE,
    ROOT,
    SETS,
    SOURCE,
    TOOLS,
    Chart,
    loaded,
    merged,
    run,
    tool,
)
from worker.core.policy import Policy
from worker.settings import load

pytestmark = pytest.mark.deploy

each_set = pytest.mark.parametrize("values", SETS, ids=lambda path: path.name.removesuffix("-values.yaml"))
OF_OPERATORS = {"PodMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}
"""Kinds that the validator has no schema for: `make test-kube` checks them."""
MONITORED: dict[str, Any] = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}


def test_there_are_sets_enough() -> None:
    assert len(SETS) >= 4


@each_set
def test_helm_finds_nothing_to_complain_of(chart: Chart, values: Path) -> None:
    ended = run(
        chart.helm, "lint", "--strict", chart.package, "--values", values, "--kube-version", KUBERNETES
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"WARNING|ERROR", ended.stdout) is None


@each_set
def test_kubernetes_knows_every_field(chart: Chart, values: Path, tmp_path: Path) -> None:
    validate = tool(CHECKS / "kubernetes-validate")
    made = chart.exactly(loaded(values))
    known = [one for one in made.all if one["kind"] not in OF_OPERATORS]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(known))

    ended = run(validate, "-k", "1.32", "--strict", tmp_path / "objects.yaml")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (ended.stdout + ended.stderr).count("passed for resource") == len(known)


@each_set
def test_kube_score_finds_nothing_critical(chart: Chart, values: Path, tmp_path: Path) -> None:
    score = tool(TOOLS / "kube-score")
    made = chart.exactly(merged(loaded(values), {"networkPolicy": {"enabled": True}}))
    (tmp_path / "objects.yaml").write_text(made.text)

    ended = run(score, "score", "--output-format", "ci", *_not_asked(), tmp_path / "objects.yaml")

    assert [line for line in ended.stdout.splitlines() if line.startswith("[CRITICAL]")] == []
    assert "[OK]" in ended.stdout


def _not_asked() -> list[str]:
    reasons = {
        "container-resources": "no CPU limit: throttling would hold up the renewal of the lease",
        "container-image-pull-policy": "tags are never moved; Always only adds a dependency on the registry",
        "pod-probes": "/healthz is what startup and liveness ask, by the worker's own design",
    }
    return [argument for name in reasons for argument in ("--ignore-test", name)]


@each_set
def test_the_worker_takes_the_settings(chart: Chart, values: Path, tmp_path: Path) -> None:
    made = chart.exactly(loaded(values))
    given = dict(made.environment)
    # What the Pod mounts as files, made here.
    for name, value in given.items():
        if value.startswith("/etc/dispatch-worker/"):
            path = tmp_path / value.removeprefix("/etc/dispatch-worker/")
            path.parent.mkdir(exist_ok=True)
            path.write_text("text")
            given[name] = str(path)
    given.setdefault("REDIS_URL", "redis+sentinel://a:26379,b:26379/main/1")

    settings = load(given)

    streams = loaded(values).get("queue", {}).get("streams", [{"name": "requests"}])
    assert [stream.name for stream in settings.streams] == [stream["name"] for stream in streams]
    grace = made.pod["spec"]["terminationGracePeriodSeconds"]
    assert settings.drain_seconds < grace
    for name, value in loaded(values).get("settings", {}).items():
        taken = getattr(settings, name.removeprefix("WORKER_").lower())
        assert str(taken).lower() in (str(value).lower(), f"{value}.0")


@each_set
def test_the_worker_takes_the_policy(chart: Chart, values: Path) -> None:
    policy = loaded(values).get("policy", "")
    data = chart.exactly(loaded(values)).one("ConfigMap", "-files").get("data", {})

    assert data.get("policy.toml", "") == policy
    Policy.parse(tomllib.loads(policy))


def test_the_rules_are_those_of_the_repository(chart: Chart, tmp_path: Path) -> None:
    made = chart.render(MONITORED).one("PrometheusRule")["spec"]

    assert made == loaded(ROOT / "deploy" / "prometheus" / "rules.yaml")
    if shutil.which("promtool"):
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(made))
        ended = run("promtool", "check", "rules", tmp_path / "rules.yaml")
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_rules_can_be_labelled_linked_and_left_out(chart: Chart) -> None:
    made = chart.render(
        {
            "prometheusRule": {
                "enabled": True,
                "alertLabels": {"team": "a", "severity": "x"},
                "disabled": ["DispatchWorkerRestarts"],
            },
            "runbookUrl": "https://runbooks.example/here/",
        }
    ).one("PrometheusRule")["spec"]

    alerts = [rule for group in made["groups"] for rule in group["rules"] if "alert" in rule]
    ours = [rule for group in _rules()["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == len(ours) - 1
    assert "DispatchWorkerRestarts" not in {rule["alert"] for rule in alerts}
    assert {rule["labels"]["team"] for rule in alerts} == {"a"}
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"https://runbooks.example/here/{rule['alert']}.md"


def _rules() -> dict[str, Any]:
    return loaded(ROOT / "deploy" / "prometheus" / "rules.yaml")


def test_the_dashboards_are_those_of_the_repository(chart: Chart) -> None:
    data = chart.render(MONITORED).one("ConfigMap", "-dashboards")["data"]

    files = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
    assert {name: json.loads(text) for name, text in data.items()} == {
        path.name: json.loads(path.read_text()) for path in files
    }


def test_what_is_shipped_with_the_chart_is_no_copy() -> None:
    shipped = {path.name: path.resolve() for path in (SOURCE / "files").iterdir()}

    assert shipped == {
        path.name: path
        for path in [
            ROOT / "deploy" / "prometheus" / "rules.yaml",
            *(ROOT / "deploy" / "grafana").glob("*.json"),
        ]
    }


def notes(chart: Chart, over: dict[str, Any]) -> str:
    told = '{{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    made = chart.render(
        merged(over, {"extraObjects": [f"kind: Notes\nmetadata: {{name: notes}}\ntold: {told}\n"]})
    )
    return str(made.one("Notes")["told"])


def test_notes_say_what_to_do_next_and_what_is_amiss(chart: Chart) -> None:
    told = notes(chart, {"replicaCount": 1})

    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in told
    assert "dispatch-worker dispatch --wait JOB" in told
    for concern in (
        "No Nomad token",
        "without a password",
        "unencrypted",
        "No policy",
        "There is one replica",
        "Nothing scrapes",
    ):
        assert concern in told


def test_notes_of_a_production_release_have_nothing_to_complain_of(chart: Chart) -> None:
    told = notes(chart, loaded(SOURCE / "ci" / "prod-values.yaml"))

    assert "Look at these" not in told
    assert "Look at these" in notes(chart, LEAST)


def test_the_readme_is_what_helm_docs_makes(tmp_path: Path) -> None:
    docs = tool(TOOLS / "helm-docs")
    shutil.copytree(SOURCE, tmp_path / "dispatch-worker")
    before = (SOURCE / "README.md").read_text()

    ended = run(docs, "--chart-search-root", tmp_path, "--sort-values-order", "file")

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "dispatch-worker" / "README.md").read_text() == before
