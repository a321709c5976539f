"""The operations page lists what the code declares; counters begin at zero, and no ID makes a series."""

import re
from collections.abc import Callable

import pytest
from hypothesis import Phase as Search
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.observability.server import ROOT, RULES
from worker.core.backlog import Backlog, StreamBacklog
from worker.core.model import MessageKey, Outcome, Phase, Place, Record, Routing, Verdict
from worker.runtime.families import Declared, Families
from worker.runtime.metrics import Local, Metrics

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "operations.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.+) \|$", re.MULTILINE)
PLACE = Place("", "default")


def rows() -> list[str]:
    return [
        f"| `{one.name}` | {one.kind} | {labels(one)} | {one.text} |"
        for one in Families(CollectorRegistry()).declared
    ]


def labels(one: Declared) -> str:
    return ", ".join(f"`{label}`" for label in one.labels) or "none"


def test_the_page_lists_every_metric_as_it_is_declared() -> None:
    documented = [row.group(0) for row in ROW.finditer(PAGE)]

    assert documented == rows()


def test_the_page_lists_every_alert() -> None:
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))

    assert set(re.findall(r"\(runbook/(DispatchWorker\w+)\.md\)", PAGE)) == alerts


def test_every_unit_stands_in_its_metric_s_name() -> None:
    for one in Families(CollectorRegistry()).declared:
        assert one.text.endswith(".")
        if one.kind == "counter":
            assert one.name.endswith("_total")
        elif one.kind == "histogram":
            assert one.name.endswith("_seconds")
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mb)(_|$)", one.name)


def made() -> Metrics:
    return Metrics(["requests", "low"], [PLACE], max_in_flight=500, version="1")


def test_every_counter_is_there_at_zero_before_anything_happened() -> None:
    metrics = made()

    counters = {one.name for one in metrics.families.declared if one.kind == "counter"}
    samples = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name in counters
    }

    assert set(samples) == counters
    assert set(samples.values()) == {0}


async def nothing() -> Backlog:
    return Backlog({name: StreamBacklog(1, 1, 1.0) for name in ("requests", "low")}, 1, 1)


async def series(metrics: Metrics) -> set[str]:
    text, _ = await metrics.scrape(nothing)
    return {line.rpartition(" ")[0] for line in text.decode().splitlines() if not line.startswith("#")}


ids = st.text(alphabet="0123456789abcdef-/", min_size=1, max_size=30).map("id-{}".format)
calls: dict[str, Callable[[Metrics, str, str], None]] = {
    "dispatched": lambda m, job, code: m.dispatched(job, code, 0.1),
    "retried": lambda m, _job, code: m.retried(code),
    "let_go": lambda m, _job, code: m.let_go(code),
    "feed_lost": lambda m, _job, code: m.feed_lost(PLACE, code),
    "nomad": lambda m, job, code: m.nomad_answered(job, code, 0.1),
    "redis": lambda m, job, code: m.redis_answered(job, f"redis.{code}", 0.1),
    "children": lambda m, job, _code: m.children({job: 1}),
    "settled": lambda m, job, code: m.settled(
        Record(MessageKey("requests", job), Phase.SETTLED, job, Routing(job=job), job_id=job),
        Outcome(Verdict.REJECTED, error_code=code),
        1.0,
    ),
}


@settings(max_examples=20, phases=(Search.generate,))  # to shrink three hundred events takes minutes
@given(st.lists(st.tuples(st.sampled_from(sorted(calls)), ids, ids), min_size=50, max_size=300))
async def test_no_id_makes_a_series(events: list[tuple[str, str, str]]) -> None:
    metrics = made()
    metrics.local = lambda: Local({job: 1 for _, job, _ in events})
    for call in calls.values():
        call(metrics, "a stranger", "a code")
    before = await series(metrics)

    for name, job, code in events:
        calls[name](metrics, job, code)

    assert await series(metrics) == before
    assert len(before) < 500
