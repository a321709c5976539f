"""Every recorded way a child can end is reproduced: the same writes, statuses and task events, in order."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.simulator import outcomes
from tests.simulator.cluster import (
    SECOND,
    Tape,
    client_status,
    ends_dead,
    eventually,
    group,
    job,
    mock,
    on_node,
    restarts,
    shell,
    status,
    until,
)
from tests.simulator.transcripts import Caller, differences, load
from worker.dev.simulator import Simulator
from worker.dev.simulator.records import Allocation

pytestmark = pytest.mark.anyio

Act = Callable[[Simulator, str], Awaitable[None]]
STUBBORN = "trap '' INT; echo ready; while :; do sleep 0.05; done"
POLITE = "exec sleep 60"


async def nothing(_nomad: Simulator, _child: str) -> None:
    """The child ends by itself."""


async def ends_blocked(nomad: Simulator, child: str) -> None:
    await until(
        nomad,
        lambda: (
            any(item.status == "blocked" for item in nomad.job(child).evals.values())
            and not any(item.status == "pending" for item in nomad.job(child).evals.values())
        ),
    )


async def runs(nomad: Simulator, child: str) -> Allocation:
    """Wait until the script of a child no longer minds an interrupt."""
    alloc = await client_status(nomad, child, "running")
    await eventually(lambda: b"ready" in (nomad.engine.clients.logs(alloc.id, "t", "stdout") or b""))
    return alloc


async def stop(nomad: Simulator, child: str) -> None:
    await runs(nomad, child)
    nomad.stop_job(child)
    await ends_dead(nomad, child)


async def stop_blocked(nomad: Simulator, child: str) -> None:
    await ends_blocked(nomad, child)
    nomad.stop_job(child)
    await ends_dead(nomad, child)


async def purge(nomad: Simulator, child: str) -> None:
    await client_status(nomad, child, "running")
    nomad.stop_job(child, purge=True)
    await until(nomad, lambda: all(not item.open for item in nomad.state.evals_of("default", child)))


async def drain(nomad: Simulator, child: str) -> None:
    await runs(nomad, child)
    nomad.drain_node("node-2")
    await ends_dead(nomad, child)


async def stop_first_alloc(nomad: Simulator, child: str) -> None:
    alloc = await runs(nomad, child)
    nomad.stop_alloc(alloc.id)
    await ends_dead(nomad, child)


async def lose_node(nomad: Simulator, child: str) -> None:
    await client_status(nomad, child, "running")
    nomad.lose_node("node-2")
    await ends_blocked(nomad, child)


async def lose_node_and_replace(nomad: Simulator, child: str) -> None:
    await client_status(nomad, child, "running")
    nomad.lose_node("node-2")
    await status(nomad, child, "dead")


async def capacity_returns(nomad: Simulator, child: str) -> None:
    await ends_blocked(nomad, child)
    nomad.resize_node("node-1", cpu=1_000)
    await ends_dead(nomad, child)


@dataclass
class Scenario:
    name: str
    groups: list[dict[str, Any]]
    act: Act = ends_dead
    fields: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)


def one(name: str, *tasks: dict[str, Any], act: Act = ends_dead, node: int = 1, **fields: Any) -> Scenario:
    """A scenario with one group."""
    place = {} if node == 0 else {"Constraints": on_node(node)}
    return Scenario(name, [group(*tasks, **fields)], act, place)


ONCE = "SHARED=$NOMAD_TASK_DIR/../../../started; test -e $SHARED"
FLAKY = 'test -e "$NOMAD_TASK_DIR/once" && exit 0; touch "$NOMAD_TASK_DIR/once"; exit 4'
RESCHEDULE = {"Attempts": 1, "Delay": 5 * SECOND, "DelayFunction": "constant", "Interval": 3600 * SECOND}
LOST_AFTER = {"LostAfter": 4 * SECOND, "Replace": False, "Reconcile": "best_score"}
GPU = [{"LTarget": "${node.class}", "Operand": "=", "RTarget": "gpu"}]

SCENARIOS = [
    one("success", mock()),
    one("exit1", mock(exit_code=1)),
    one("exit-137", mock(exit_code=137)),
    one("signal", shell("kill -9 $$")),
    one("oom-mock", mock(exit_code=137, exit_signal=9, exit_err_msg="OOM Killed")),
    one("driver-failure", mock(start_error="image pull failed: no such image")),
    one("driver-bad-command", shell("") | {"Config": {"command": "/no/such/binary"}}),
    one("bad-config", shell("") | {"Config": {"command": "/bin/sh", "nope": 1}}),
    one("restart-then-fail", mock(exit_code=3, run_for="1ms"), **restarts(2)),
    one("restart-then-ok", shell(FLAKY), **restarts(1)),
    one("multi-task", shell(POLITE, "a"), mock("b", exit_code=7, run_for="300ms")),
    one("count3", shell("test $NOMAD_ALLOC_INDEX != 1"), Count=3),
    one("max-run-duration", shell(STUBBORN), MaxRunDuration=10 * SECOND),
    one("stopped-running", shell(STUBBORN), act=stop),
    one("purged-running", mock(run_for="60s"), act=purge),
    one("node-drain-force", shell(STUBBORN), act=drain, node=2),
    one("node-drain-nowhere", shell(STUBBORN), act=drain, node=2),
    one("client-lost-no-reschedule", mock(run_for="60s"), act=lose_node, node=2),
    one("client-lost-prevented", mock(run_for="60s"), act=lose_node, node=2),
    one("client-disconnect-expired", mock(run_for="60s"), act=lose_node, node=2, Disconnect=LOST_AFTER),
    Scenario(
        "multi-group",
        [group(mock(), name="good"), group(mock(exit_code=2), name="bad")],
        fields={"Constraints": on_node(1)},
    ),
    Scenario(
        "count2-partial",
        [group(mock(), Count=2)],
        fields={
            "Constraints": [*on_node(1), {"LTarget": "", "Operand": "distinct_hosts", "RTarget": "true"}]
        },
    ),
    Scenario("constraint-filtered", [group()], ends_blocked, {"Constraints": GPU}),
    Scenario("missing-driver", [group(mock(Driver="docker"))], ends_blocked),
    Scenario("no-datacenter", [group()], ends_blocked, {"Datacenters": ["moon"]}),
    Scenario("stopped-pending", [group()], stop_blocked, {"Constraints": GPU}),
    Scenario(
        "exhausted-then-placed",
        [group(mock(Resources={"CPU": 1000, "MemoryMB": 10}))],
        capacity_returns,
        {"Constraints": on_node(1)},
        before={"cpu": 500},
    ),
    Scenario("sysbatch", [group(mock(), ReschedulePolicy=None)], fields={"Type": "sysbatch"}),
    Scenario(
        "reschedule-new-alloc",
        [group(mock(exit_code=5), ReschedulePolicy=RESCHEDULE)],
        fields={"Constraints": on_node(1)},
    ),
    Scenario(
        "client-lost-replaced",
        [
            group(
                mock(run_for="1s"),
                Affinities=[
                    {"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": "node-2", "Weight": 100}
                ],
            )
        ],
        lose_node_and_replace,
    ),
    Scenario(
        "alloc-stop",
        [group(shell(f"{ONCE} && exit 0; touch $SHARED; {STUBBORN}"))],
        stop_first_alloc,
        {"Constraints": on_node(1)},
    ),
]


async def run(scenario: Scenario) -> tuple[Tape, str, dict[str, Any]]:
    """Play a scenario; return the tape, the child's ID and the reads at its end."""
    # Fast, but a client's reports still come in batches, as in the recordings.
    async with Simulator(
        [job("p", *scenario.groups, **scenario.fields)], update_seconds=0.02, task_speed=10
    ) as nomad:
        nomad.engine.node("node-2").node_class = "victim"
        if scenario.before:
            nomad.resize_node("node-1", **scenario.before)
        tape = Tape(nomad)
        child = nomad.dispatch("p", token="t").job_id
        await scenario.act(nomad, child)
        caller = Caller(nomad.address)
        try:
            reads = {"job": (await caller.send("GET", f"/v1/job/{child}"))}
            for what in ("summary", "allocations", "evaluations"):
                reads[what] = await caller.send("GET", f"/v1/job/{child}/{what}")
            for alloc in nomad.state.allocs_of("default", child):
                which = "one allocation" + (" again" if alloc.previous_allocation else "")
                reads[which] = await caller.send("GET", f"/v1/allocation/{alloc.id}")
        finally:
            await caller.close()
        return tape, child, reads


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
async def test_a_recorded_outcome_is_reproduced(scenario: Scenario) -> None:
    recorded = load(f"04-outcome-{scenario.name}")
    frames = recorded["event_frames_summary"]
    recorded_child = frames[0]["Events"][0]["Key"]

    tape, child, reads = await run(scenario)

    ours = [
        {"Index": frame["Index"], "Events": [outcomes.flat(event) for event in frame["Events"]]}
        for frame in tape.of(child)
    ]
    assert outcomes.server_story(ours, child) == outcomes.server_story(frames, recorded_child)
    assert outcomes.alloc_story(ours, child) == outcomes.alloc_story(frames, recorded_child)
    assert outcomes.combined(ours, child) == outcomes.combined(frames, recorded_child)
    assert outcomes.job_story(ours, child) == outcomes.job_story(frames, recorded_child)
    for entry in recorded["exchanges"]:
        what = str(entry.get("note", "")).removeprefix("final: ").partition(" (")[0]
        if what == "one allocation" and entry["response"]["json"].get("PreviousAllocation"):
            what += " again"
        if what not in reads or "status" not in entry.get("response", {}):
            continue
        assert reads[what].status == entry["response"]["status"], what
        if "json" not in entry["response"]:
            continue
        pairs = zip(
            *(in_order(answer) for answer in (entry["response"]["json"], reads[what].json)), strict=False
        )
        found = [text for pair in pairs for text in differences(*pair)]
        # Trimmed from the recording without a mark.
        assert [text for text in found if text != ".Metrics is extra"] == [], what
        if what == "allocations":
            assert outcomes.ends(reads[what].json) == outcomes.ends(entry["response"]["json"])
        if what == "summary":
            assert reads[what].json["Summary"] == entry["response"]["json"]["Summary"]
        if what == "evaluations":
            assert sorted(map(evaluation, reads[what].json)) == sorted(
                map(evaluation, entry["response"]["json"])
            )


def in_order(answer: Any) -> list[Any]:
    """The objects of an answer; of lists, in an order that does not depend on IDs."""
    items = answer if isinstance(answer, list) else [answer]
    keys = ("TriggeredBy", "Status", "TaskGroup", "ClientStatus", "CreateIndex")
    return sorted(items, key=lambda item: [str(item.get(key)) for key in keys])


def evaluation(shown: dict[str, Any]) -> tuple[Any, ...]:
    """What an evaluation's read says, without IDs, indexes and times."""
    annotations = (shown.get("PlanAnnotations") or {}).get("DesiredTGUpdates") or {}
    updates = sorted(
        (name, key, value) for name, counts in annotations.items() for key, value in counts.items()
    )
    failures = [
        (
            name,
            sorted((metrics["ConstraintFiltered"] or {}).items()),
            sorted((metrics["DimensionExhausted"] or {}).items()),
        )
        for name, metrics in (shown.get("FailedTGAllocs") or {}).items()
    ]
    fields = ("Status", "TriggeredBy", "Type")
    return (*(shown[name] for name in fields), updates, failures, shown.get("EscapedComputedClass", False))
