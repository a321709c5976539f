"""Situations a job can come into: the job, what is done to it, and what the worker must say of it.

Knows nothing of which situations there are. Tasks are shell scripts wherever they can be, so that a real
Nomad
runs the same ones as the simulator.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.outcomes.grounds import Ground
from tests.outcomes.stage import Message, Stage
from tests.simulator.cluster import SECOND, group, job, shell
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
REPLACED = r"blocked (retrying )?(placed )?(running )?result"
"""The lost copy, which goes on for a moment when its client is back, is not told of."""

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


# Playing ---------------------------------------------------------------------------------------------


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
