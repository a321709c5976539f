"""Every recorded way a job can end: the job, what is done to it, and what the worker must say of it.

The names are those of the transcripts `04-outcome-<name>`. Tasks are shell scripts wherever they can be, so
that a real Nomad runs the same ones as the simulator.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.outcomes.grounds import Ground
from tests.outcomes.stage import Message, Stage
from tests.simulator.cluster import SECOND, group, job, mock, shell
from worker.core.reply import Reply

Specification = dict[str, Any]
Act = Callable[["Play"], Awaitable[None]]

STUBBORN = "trap '' INT TERM; while :; do sleep 0.05; done"
POLITE = "exec sleep 600"
BRIEF = "sleep 0.5"
LASTING = "sleep $NOMAD_META_seconds"
"""Long enough for a client to be missed: `Ground.lost_within_seconds`."""
# A task's own directory outlives its restarts, an allocation's the allocation.
FLAKY = 'sleep 0.3; test -e "$NOMAD_TASK_DIR/once" && exit 0; touch "$NOMAD_TASK_DIR/once"; exit 4'

STARTS = r"accepted dispatched (placed )?(running )?"
ENDS = STARTS + "result"
RUNS = r"accepted dispatched (placed )?running "
WAITS = "accepted dispatched blocked "
REPLACED = r"blocked (running )?(retrying )?(placed )?(running )?result"
"""The first `running` is the lost copy, which goes on for a moment when its client is back."""

SAFE = {"LTarget": "${node.class}", "Operand": "!=", "RTarget": "victim"}
GPU = {"LTarget": "${node.class}", "Operand": "=", "RTarget": "gpu"}


@dataclass
class Play:
    """A situation under way."""

    stage: Stage
    ground: Ground
    message: Message
    node: str
    """The node that may be harmed; empty where the situation has none."""


@dataclass(frozen=True)
class Situation:
    """One recorded outcome.

    `steps` is a pattern for the kinds of all replies in order: a step that a client may skip by reporting
    late is optional. `says` stands in the final reply's words. `because` stands in the `blocked` reply's.
    """

    name: str
    groups: list[Specification]
    verdict: str
    exit_code: int | None = None
    error_code: str = ""
    steps: str = ENDS
    task: str = "t"
    """The task the verdict rests on; empty: none."""
    allocations: int = 1
    """How many the evidence lists, earlier attempts included."""
    says: str = ""
    because: str = ""
    act: Act | None = None
    harms: bool = False
    """Whether it takes a node that may be drained, lost or filled."""
    fields: Specification = field(default_factory=dict)
    drivers: frozenset[str] = frozenset({"raw_exec"})

    def job(self, job_id: str, node: str) -> Specification:
        """The parameterized job, to be registered under this ID."""
        groups = [_on(one, node) for one in self.groups]
        constraints = self.fields.get("Constraints", [SAFE] if not node else [])
        return job(job_id, *groups, **{**self.fields, "Constraints": [_at(one, node) for one in constraints]})


def _on(spec: Specification, node: str) -> Specification:
    """A group with the name of the node in its affinities."""
    affinities = [_at(one, node) for one in spec.get("Affinities") or ()]
    return {**spec, "Affinities": affinities} if affinities else spec


def _at(rule: Specification, node: str) -> Specification:
    return {
        key: value.replace("<node>", node) if isinstance(value, str) else value for key, value in rule.items()
    }


PINNED: Specification = {
    "Constraints": [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": "<node>"}]
}
DRAWN: Specification = {
    "Affinities": [
        {"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": "<node>", "Weight": 100},
    ]
}
EITHER: Specification = {
    "Constraints": [{"LTarget": "${node.unique.name}", "Operand": "regexp", "RTarget": "^(node-1|<node>)$"}]
}
RESCHEDULE = {"Attempts": 1, "Delay": 5 * SECOND, "DelayFunction": "constant", "Interval": 3600 * SECOND}


def restarts(attempts: int) -> Specification:
    return {
        "RestartPolicy": {"Attempts": attempts, "Mode": "fail", "Delay": 2 * SECOND, "Interval": 60 * SECOND}
    }


def disconnect(lost_after_seconds: int) -> Specification:
    rules = {"LostAfter": lost_after_seconds * SECOND, "Replace": False, "Reconcile": "best_score"}
    return {"Disconnect": rules}


def hook(task: Specification, when: str, *, sidecar: bool = False) -> Specification:
    return task | {"Lifecycle": {"Hook": when, "Sidecar": sidecar}}


# What is done to a job while it runs -----------------------------------------------------------------


async def stop(play: Play) -> None:
    await play.message.said("running")
    await play.ground.stop_job(play.message.child)


async def stop_blocked(play: Play) -> None:
    await play.message.said("blocked")
    await play.ground.stop_job(play.message.child)


async def purge(play: Play) -> None:
    await play.message.said("running")
    await play.ground.stop_job(play.message.child, purge=True)


async def stop_alloc(play: Play) -> None:
    running = await play.message.said("running")
    await play.ground.stop_alloc(running.data["allocation"])


async def drain(play: Play) -> None:
    await play.message.said("running")
    await play.ground.drain(play.node)


async def lose(play: Play) -> None:
    await play.message.said("running")
    await play.ground.lose(play.node)


async def lose_then_restore_when_blocked(play: Play) -> None:
    await lose(play)
    blocked = await play.message.said("blocked")
    assert blocked.data["after"][0]["client_status"] == "lost"
    await play.ground.restore(play.node)


async def lose_then_stop_when_blocked(play: Play) -> None:
    await lose(play)
    await play.message.said("blocked")
    await play.ground.stop_job(play.message.child)


async def lose_for_a_moment(play: Play) -> None:
    await lose(play)
    await play.ground.restore(play.node)


async def fill_then_empty(play: Play) -> None:
    await play.message.said("blocked")
    await play.ground.stop_job(filler_id(play.node))


def filler_id(node: str) -> str:
    return f"filler-{node}"


def filler(node: str, cpu: int) -> Specification:
    """A plain job that leaves no room for another on its node."""
    task = shell(POLITE, Resources={"CPU": cpu, "MemoryMB": 10})
    spec = job(filler_id(node), group(task), Constraints=[_at(PINNED["Constraints"][0], node)])
    del spec["ParameterizedJob"]
    return spec


# The recorded outcomes -------------------------------------------------------------------------------

SITUATIONS = [
    Situation("success", [group(shell(BRIEF))], "succeeded", 0),
    Situation(
        "exit1",
        [group(shell(f"{BRIEF}; exit 1"))],
        "failed",
        1,
        "job.failed",
        says="ended with exit code 1",
    ),
    Situation("exit-137", [group(shell("exit 137"))], "failed", 137, "job.failed"),
    Situation("signal", [group(shell("kill -9 $$"))], "failed", 137, "job.failed", says="(signal 9)"),
    Situation(
        "oom-mock",
        [group(mock(exit_code=137, exit_signal=9, exit_err_msg="OOM Killed"))],
        "oom_killed",
        137,
        "job.oom_killed",
        says="ran out of memory",
        drivers=frozenset({"mock_driver"}),
    ),
    Situation(
        "driver-failure",
        [group(mock(start_error="image pull failed: no such image"))],
        "failed",
        None,
        "job.failed",
        says="image pull failed: no such image",
        drivers=frozenset({"mock_driver"}),
    ),
    Situation(
        "driver-bad-command",
        [group(shell("") | {"Config": {"command": "/no/such/binary"}})],
        "failed",
        None,
        "job.failed",
        says="/no/such/binary",
    ),
    Situation(
        "bad-config",
        [group(shell("") | {"Config": {"command": "/bin/sh", "nope": 1}})],
        "failed",
        None,
        "job.failed",
        says="nope",
    ),
    Situation(
        "artifact-fail",
        [
            group(
                shell(
                    BRIEF,
                    Artifacts=[{"GetterSource": "http://127.0.0.1:9/none.tgz", "RelativeDest": "local/"}],
                )
            )
        ],
        "failed",
        None,
        "job.failed",
        says="ailed to download artifact",
    ),
    Situation(
        "restart-then-fail",
        [group(shell("sleep 0.3; exit 3"), **restarts(2))],
        "failed",
        3,
        "job.failed",
        steps=STARTS + r"(retrying (running )?){1,2}result",
    ),
    Situation(
        "restart-then-ok",
        [group(shell(FLAKY), **restarts(1))],
        "succeeded",
        0,
        steps=STARTS + r"retrying (running )?result",
    ),
    Situation(
        "multi-task",
        [group(shell(POLITE, "a"), shell("sleep 0.3; exit 7", "b"))],
        "failed",
        7,
        "job.failed",
        task="b",
    ),
    Situation(
        "multi-group",
        [group(shell(BRIEF), name="good"), group(shell("exit 2"), name="bad")],
        "failed",
        2,
        "job.failed",
        allocations=2,
    ),
    Situation(
        "count3",
        [group(shell("test $NOMAD_ALLOC_INDEX != 1"), Count=3)],
        "failed",
        1,
        "job.failed",
        allocations=3,
    ),
    Situation(
        "lifecycle",
        [
            group(
                hook(shell("true", "pre"), "prestart"),
                hook(shell(POLITE, "side"), "prestart", sidecar=True),
                shell("exit 6", "main"),
                hook(shell("true", "post"), "poststop"),
            )
        ],
        "failed",
        6,
        "job.failed",
        task="main",
    ),
    Situation(
        "max-run-duration",
        [group(shell(STUBBORN), MaxRunDuration=3 * SECOND)],
        "timed_out",
        137,
        "job.timed_out",
        says="exceeded its max_run_duration",
    ),
    Situation(
        "stopped-running",
        [group(shell(STUBBORN))],
        "stopped",
        137,
        "job.stopped",
        steps=RUNS + "result",
        says="the job was stopped",
        act=stop,
    ),
    Situation(
        "stopped-pending",
        [group(shell(BRIEF))],
        "stopped",
        None,
        "job.stopped",
        steps=WAITS + "result",
        task="",
        allocations=0,
        says="before it was placed",
        because='constraint "${node.class} = gpu" filtered',
        act=stop_blocked,
        fields={"Constraints": [GPU]},
    ),
    Situation(
        "purged-running",
        [group(shell(POLITE))],
        "stopped",
        None,
        "job.purged",
        steps=RUNS + "result",
        task="",
        says="purged while it was running",
        act=purge,
    ),
    Situation(
        "alloc-stop",
        [group(shell(f"test -e $NOMAD_META_who && exit 0; touch $NOMAD_META_who; {STUBBORN}"))],
        "succeeded",
        0,
        steps=RUNS + r"(retrying )?(running )?result",
        allocations=2,
        act=stop_alloc,
    ),
    Situation(
        "node-drain-force",
        [group(shell(STUBBORN), **DRAWN)],
        "drained",
        137,
        "job.drained",
        steps=RUNS + "result",
        says="stopped by a node drain and not replaced",
        act=drain,
        harms=True,
    ),
    Situation(
        "node-drain-nowhere",
        [group(shell(STUBBORN))],
        "drained",
        137,
        "job.drained",
        steps=RUNS + "result",
        says="stopped by a node drain and not replaced",
        act=drain,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "client-lost-no-reschedule",
        [group(shell(LASTING))],
        "succeeded",
        0,
        steps=RUNS + REPLACED,
        allocations=2,
        act=lose_then_restore_when_blocked,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "client-lost-prevented",
        [group(shell(POLITE), PreventRescheduleOnLost=True)],
        "stopped",
        None,
        "job.stopped",
        steps=RUNS + "blocked result",
        act=lose_then_stop_when_blocked,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "client-lost-replaced",
        [group(shell(LASTING), **DRAWN)],
        "succeeded",
        0,
        steps=RUNS + r"(retrying )?(running )?result",
        allocations=2,
        act=lose,
        harms=True,
    ),
    Situation(
        "client-disconnect-reconnect",
        [group(shell(LASTING), **disconnect(60))],
        "succeeded",
        0,
        steps=RUNS + "result",
        act=lose_for_a_moment,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "client-disconnect-expired",
        [group(shell(LASTING), **disconnect(4))],
        "succeeded",
        0,
        steps=RUNS + REPLACED,
        allocations=2,
        act=lose_then_restore_when_blocked,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "constraint-filtered",
        [group(shell(BRIEF))],
        "unplaced",
        None,
        "job.unplaced",
        steps=WAITS + "result",
        task="",
        allocations=0,
        says='constraint "${node.class} = gpu" filtered',
        because='constraint "${node.class} = gpu" filtered',
        fields={"Constraints": [GPU]},
    ),
    Situation(
        "missing-driver",
        [group(shell("") | {"Driver": "qemu", "Config": {"image_path": "local/none.img"}})],
        "unplaced",
        None,
        "job.unplaced",
        steps=WAITS + "result",
        task="",
        allocations=0,
        says='constraint "missing drivers" filtered',
        because='constraint "missing drivers" filtered',
    ),
    Situation(
        "no-datacenter",
        [group(shell(BRIEF))],
        "unplaced",
        None,
        "job.unplaced",
        steps=WAITS + "result",
        task="",
        allocations=0,
        says="no node was eligible for evaluation",
        because="no node was eligible for evaluation",
        fields={"Datacenters": ["moon"]},
    ),
    Situation(
        "exhausted-then-placed",
        [group(shell(BRIEF, Resources={"CPU": 1000, "MemoryMB": 10}))],
        "succeeded",
        0,
        steps=WAITS + r"(placed )?(running )?result",
        because="1 node without enough cpu",
        act=fill_then_empty,
        harms=True,
        fields=PINNED,
    ),
    Situation(
        "count2-partial",
        [group(shell("sleep 1"), Count=2)],
        "succeeded",
        0,
        steps=r"accepted dispatched (blocked )?(placed )?running (blocked )?(placed )?(running )?result",
        allocations=2,
        fields={"Constraints": [SAFE, {"LTarget": "", "Operand": "distinct_hosts", "RTarget": "true"}]},
    ),
    Situation(
        "reschedule-new-alloc",
        [group(shell("sleep 0.3; exit 5"), ReschedulePolicy=RESCHEDULE)],
        "failed",
        5,
        "job.failed",
        steps=STARTS + r"retrying (running )?result",
        allocations=2,
    ),
    Situation(
        "sysbatch",
        [group(shell(BRIEF), ReschedulePolicy=None)],
        "succeeded",
        0,
        allocations=2,
        harms=True,
        fields={"Type": "sysbatch", **EITHER},
    ),
]


def named(name: str) -> Situation:
    return next(one for one in SITUATIONS if one.name == name)


async def play(situation: Situation, stage: Stage, ground: Ground, folder: Path) -> Message:
    """Bring a message into the situation and wait for its end; returns it with all its replies."""
    if not situation.harms:
        async with ground.room():
            return await _play(situation, stage, ground, folder, "")
    async with ground.victim() as node:
        return await _play(situation, stage, ground, folder, node)


async def _play(situation: Situation, stage: Stage, ground: Ground, folder: Path, node: str) -> Message:
    job_id = f"{folder.name}-{situation.name}"
    if situation.act is fill_then_empty:
        await ground.add(filler(node, await ground.free_cpu(node) - 500))
        await ground.job_status(filler_id(node), "running")
    await ground.add(situation.job(job_id, node))
    meta = {"who": str(folder / situation.name), "seconds": f"{ground.lost_within_seconds:g}"}
    message = await stage.send(job_id, meta=meta)
    if situation.act is not None:
        await situation.act(Play(stage, ground, message, node))
    await message.final()
    return message


def deciding(final: Reply) -> dict[str, Any]:
    """What the evidence calls the deciding allocation, task and event; empty: there is none."""
    return final.data.get("deciding") or {}
