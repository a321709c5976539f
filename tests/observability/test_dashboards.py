"""Dashboards are what the code makes, keep the rules, ask for what exists, and show data of a real run."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.observability.server import ROOT, RULES, Prometheus, prometheus
from tests.observability.stage import TRACEPARENT, Stage, stage, until
from worker.dev.demo_jobs import demo_jobs
from worker.dev.simulator import Simulator
from worker.runtime.families import Families

pytestmark = pytest.mark.anyio

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
RUNBOOKS = ROOT / "docs" / "runbook"
NAME = re.compile(r"\b(?:dispatch_worker|process)_[a-z_]+\b")
DECLARED = {declared.name: declared for declared in Families(CollectorRegistry()).declared}
PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
UNUSED: dict[str, str] = {}
"""Metrics that no panel and no alert uses, each with its reason."""
TOKEN = "5ec2e700-0000-4000-8000-000000000001"
ACL = {
    "policies": {"worker": {"default": ["list-jobs", "read-job", "dispatch-job", "submit-job"]}},
    "tokens": [{"secret": TOKEN, "policies": ["worker"], "ttl_seconds": 7200}],
}
CHOSEN = {"job": "dispatch-worker", "stream": "requests", "nomad_job": "demo-render"}
UNITS = {"short", "s", "percentunit", "reqps", "bytes", "bool_yes_no"}


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in loaded(path)["panels"] if panel["type"] != "row"]


def queries(path: Path) -> Iterator[tuple[str, str]]:
    """What asks, and the expression."""
    for panel in panels(path):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in loaded(path)["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def filled_in(expr: str) -> str:
    """The expression as Grafana sends it with one value of each variable chosen."""
    expr = expr.replace("$__rate_interval", "1m").replace("$__range", "5m")
    return re.sub(r"\$(job|stream|nomad_job)\b", lambda found: CHOSEN[found[1]], expr)


def metrics_in(text: str) -> set[str]:
    """Metrics named in queries, histograms by their own names."""
    names = set(NAME.findall(text))
    return {re.sub(r"_(bucket|count|sum)$", "", name) if name not in DECLARED else name for name in names}


def test_the_files_are_what_the_code_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", FOLDER / "build.py", tmp_path], check=True, timeout=60)

    made = {path.name: path.read_text() for path in tmp_path.iterdir()}

    assert made == {path.name: path.read_text() for path in DASHBOARDS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_keeps_the_rules(path: Path) -> None:
    dashboard = loaded(path)
    every = dashboard["panels"]

    assert dashboard["uid"] == path.stem
    assert "id" not in dashboard
    assert dashboard["graphTooltip"] == 1
    assert dashboard["templating"]["list"][0]["name"] == "datasource"
    assert {one["name"] for one in dashboard["annotations"]["list"]} == {"Deploys", "Alerts"}
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels(path):
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        for target in panel["targets"]:
            assert panel["datasource"]["uid"] == target["datasource"]["uid"] == "${datasource}"
            assert target["legendFormat"]
            assert not re.search(r"(rate|increase)\([^[]*\[(?!\$__)", target["expr"]), target["expr"]
    for one, other in combinations((panel["gridPos"] for panel in every), 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in every) == 24


def test_links_lead_to_runbooks_and_dashboards_that_exist() -> None:
    texts = [path.read_text() for path in DASHBOARDS]

    runbooks = {name for text in texts for name in re.findall(r"\$\{runbooks\}/(\w+)\.md", text)}
    dashboards = {uid for text in texts for uid in re.findall(r'"/d/([\w-]+)\?', text)}

    assert runbooks <= {path.stem for path in RUNBOOKS.glob("*.md")}
    # Whoever comes from an alert finds its panel, and from the panel the page.
    assert runbooks == set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert dashboards == {"dispatch-worker-job"}
    assert (FOLDER / "dispatch-worker-job.json").exists()


def test_every_metric_that_is_asked_for_exists_and_every_one_that_exists_is_asked_for() -> None:
    asked = metrics_in(RULES.read_text())
    for path in DASHBOARDS:
        asked |= metrics_in("\n".join(expr for _, expr in queries(path)))
    # What recording rules make has colons in its name.
    asked = {name for name in asked if not name.startswith("dispatch_worker_slow")}

    assert asked - set(DECLARED) - PROCESS == set()
    assert set(DECLARED) - asked == set(UNUSED)


LABEL = re.compile(r"(\w+)(?:=~|!=|!~|=)\"")
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")
OF_THE_SCRAPE = {"job", "instance", "le", "alertname", "alertstate"}


def test_every_label_that_is_asked_for_is_one_of_the_metrics_asked() -> None:
    wrong = []
    for path in DASHBOARDS:
        for title, expr in queries(path):
            labels = set(LABEL.findall(expr))
            for group in GROUPED.findall(expr):
                labels |= {label.strip() for label in group.split(",")}
            known = {label for name in metrics_in(expr) & set(DECLARED) for label in DECLARED[name].labels}
            wrong += [(path.stem, title, label) for label in labels - known - OF_THE_SCRAPE]

    assert wrong == []


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
async def test_every_query_gives_data_of_a_worker_under_load(tmp_path: Path) -> None:
    async with (
        stage(
            {"WORKER_SWEEP_SECONDS": "1", "NOMAD_TOKEN": TOKEN}, nomad=Simulator(jobs=demo_jobs(), acl=ACL)
        ) as world,
        prometheus(tmp_path, world.stack.http_address) as server,
    ):
        # Counters that count before their first scrape have no rate: let it see them at zero.
        await server.until("dispatch_worker_build_info")
        await world.load()
        await world.hold(1)
        await server.until('dispatch_worker_jobs_in_flight{nomad_job="demo-render"} == 1')
        await server.until("dispatch_worker_nomad_children_entries")
        await server.until("count_over_time(dispatch_worker_build_info[1m]) > 8")
        # The load holds rejected requests, on purpose.
        await server.until('ALERTS{alertname="DispatchWorkerDeadLetters", alertstate="firing"}')

        silent = [
            (path.stem, title, filled_in(expr))
            for path in DASHBOARDS
            for title, expr in queries(path)
            if not await server.query(filled_in(expr))
        ]

        assert silent == []
        await variables_have_values(server)
        await rules_are_evaluated(server)
        await runs_lead_to_traces(server, world)


async def variables_have_values(server: Prometheus) -> None:
    for path in DASHBOARDS:
        for variable in loaded(path)["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
                assert match is not None
                selector, label = filled_in(match[1]), match[2]
                assert await server.get(f"label/{label}/values", **{"match[]": selector}), variable["name"]


async def rules_are_evaluated(server: Prometheus) -> None:
    async def rules() -> list[dict[str, Any]]:
        return [rule for group in (await server.get("rules"))["groups"] for rule in group["rules"]]

    async def all_evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in await rules())

    # The objective is looked at every 30 s only.
    await until(all_evaluated, 40, "every rule is evaluated once")

    assert [rule["name"] for rule in await rules() if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in await rules() if rule.get("state") == "firing"}
    assert firing == {"DispatchWorkerDeadLetters"}


async def runs_lead_to_traces(server: Prometheus, world: Stage) -> None:
    trace_id = TRACEPARENT.split("-")[1]
    assert f'trace_id="{trace_id}"' in (await world.get("/metrics", "application/openmetrics-text")).text

    found = await server.get(
        "query_exemplars",
        query="dispatch_worker_request_duration_seconds_bucket",
        start="0",
        end="9999999999",
    )

    exemplars = [exemplar for one in found for exemplar in one["exemplars"]]
    assert trace_id in {exemplar["labels"]["trace_id"] for exemplar in exemplars}
