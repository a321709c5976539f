"""The verdict on a dispatched job, from what Nomad shows of it: ended how, or not ended yet.

Knows nothing of events, reads, clocks or replies. `docs/verdicts.md` tells the rule in words.

Nomad's own "complete" is never enough: it also covers jobs that ran too long, were drained, stopped or
preempted. Success is proven from the exit code of every main task (`ending`), or it is not claimed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from worker.core import placement
from worker.core.ending import Ending, ending_of
from worker.core.evidence import evidence
from worker.core.model import Outcome, Progress, Verdict
from worker.core.observed import Allocation, Snapshot
from worker.core.phrases import exit_words, sentence, task_and_place
from worker.core.progress import step_of
from worker.core.story import Story, story_of

DEAD = "dead"

PRIORITY = (
    Verdict.OOM_KILLED,
    Verdict.FAILED,
    Verdict.TIMED_OUT,
    Verdict.LOST,
    Verdict.PREEMPTED,
    Verdict.DRAINED,
    Verdict.STOPPED,
    Verdict.UNKNOWN_GC,
    Verdict.SUCCEEDED,
)
"""Which allocation's end is the job's when they ended differently: the first of these that occurs.

What the work did comes before what was done to it, for only the work's owner can mend it; and a cause comes
before its usual consequences: a task without memory makes its peers fail, a failed one makes its peers wait
until they run out of time. Not knowing comes before success: one unproven instance unproves the job.
"""


class Ongoing(Struct, frozen=True):
    """The job is not over, or nobody can say yet how it ended."""

    step: Progress | None = None
    """None: nothing to announce."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON to publish with the step."""
    needs_read: bool = False
    """Events alone do not tell enough: read the snapshot from the API and judge again."""


class Final(Struct, frozen=True):
    """The job is over."""

    outcome: Outcome


def judge(
    snapshot: Snapshot, *, stopping: str = "", shown: str = "", grace_over: bool = False
) -> Ongoing | Final:
    """Judge one dispatched job.

    Args:
        snapshot: what is known of it, from events or a read, or both.
        stopping: the verdict for which the worker itself stopped the job (`timed_out`, `cancelled`,
            `unplaced`); empty: it did not.
        shown: the step that was announced last; whatever is to be published with it is not made again.
        grace_over: a job that is stopped or dead has had its time to show how its tasks ended, which Nomad
            tells some time after the job is called dead. What is known now is then all there will be.

    Returns:
        Final with the outcome once it is certain, and never before: a verdict is published once. The same
        snapshot always gives the same answer, whatever the order in which it was gathered.
    """
    if snapshot.gone or snapshot.purged:
        return Final(_of_gone(story_of(snapshot), stopping))
    job = snapshot.job
    if job is None:
        return _under_way(snapshot, shown, needs_read=True) if snapshot.allocations else Ongoing()
    if job.status != DEAD:
        # Of a stopped job that is not dead yet, a step is no news.
        return Ongoing(needs_read=grace_over) if job.stop else _under_way(snapshot, shown)
    story = story_of(snapshot)
    if not job.stop and story.open_evaluations:
        # Dead, and something is being worked on: it may come to life again.
        return Ongoing(needs_read=True)
    endings = _endings(story)
    if not all(ending.settled for ending in endings):
        unexplained = any(ending.verdict is None for ending in endings)
        if unexplained and not job.stop:
            # A dead job with a living allocation: what is known is of different moments.
            return Ongoing(needs_read=True)
        if not grace_over:
            return Ongoing()
        if not snapshot.whole:
            return Ongoing(needs_read=True)
    if not _told_in_full(story, grace_over=grace_over):
        return Ongoing(needs_read=True)
    if job.stop and not _ended_by_itself(story, endings):
        return Final(_stopped(story, endings, stopping))
    return Final(_combined(story, endings))


def _under_way(snapshot: Snapshot, shown: str, *, needs_read: bool = False) -> Ongoing:
    step, data = step_of(story_of(snapshot), shown)
    return Ongoing(step, data, needs_read)


def _endings(story: Story) -> list[Ending]:
    job = story.snapshot.job
    return [
        ending_of(
            story.latest[instance],
            job.group(story.latest[instance].task_group) if job is not None else None,
            stopped_by_hand=story.stopped_by_hand,
        )
        for instance in sorted(story.latest)
    ]


def _told_in_full(story: Story, *, grace_over: bool) -> bool:
    if not story.told_in_full or story.broken:
        return False
    # The evaluations are read before the allocations: one that came in between is not among them.
    unseen = any(story.unseen_followup(one) for one in story.latest.values() if story.awaited_retry(one))
    return not unseen or grace_over


def _ended_by_itself(story: Story, endings: Sequence[Ending]) -> bool:
    """Whether the work was over before the stop took effect, so that the stop changed nothing."""
    return (
        not story.missing
        and all(ending.own and ending.settled for ending in endings)
        and not any(story.awaited_retry(ending.allocation) for ending in endings)
    )


def _combined(story: Story, endings: Sequence[Ending]) -> Outcome:
    """The outcome of a job that nobody stopped as a whole."""
    deciding = _deciding(endings)
    if deciding is None or deciding.verdict is None:
        return _never_ran(story, endings)
    if story.missing and deciding.verdict is Verdict.SUCCEEDED:
        return _incomplete(story, endings)
    code = "job.exit_unknown" if deciding.verdict is Verdict.UNKNOWN_GC else ""
    return _outcome(story, endings, deciding.verdict, deciding, sentence(deciding), code=code)


def _incomplete(story: Story, endings: Sequence[Ending]) -> Outcome:
    if not story.never_collected:
        message = f"{_instances(story.missing)} of the job can no longer be found: garbage-collected"
        return _outcome(story, endings, Verdict.UNKNOWN_GC, None, message, code="job.collected")
    message = f"{_instances(story.missing)} of the job never ran, and the job is dead"
    return _outcome(story, endings, Verdict.FAILED, None, message, code="job.never_ran")


def _never_ran(story: Story, endings: Sequence[Ending]) -> Outcome:
    if not story.never_collected:
        message = "the job is dead and its allocations are gone: garbage-collected before they were seen"
        return _outcome(story, endings, Verdict.UNKNOWN_GC, None, message, code="job.collected")
    why = placement.sentence(placement.failures(story.snapshot.evaluations.values()))
    message = "the job is dead and no allocation was ever placed" + (f": {why}" if why else "")
    return _outcome(story, endings, Verdict.FAILED, None, message, code="job.never_ran")


def _stopped(story: Story, endings: Sequence[Ending], stopping: str) -> Outcome:
    """The outcome of a job that was stopped before its work was over, by the worker or by somebody else."""
    verdict = Verdict(stopping) if stopping else Verdict.STOPPED
    stopped = [ending for ending in endings if not ending.own]
    deciding = _deciding(stopped) or _deciding(endings)
    who = f"the worker stopped the job ({verdict.value})" if stopping else "the job was stopped"
    if not story.snapshot.allocations:
        why = placement.sentence(placement.failures(story.snapshot.evaluations.values()))
        message = f"{who} before it was placed" + (f": {why}" if why else "")
    elif deciding is None:
        message = f"{who} before its work was done"
    else:
        message = f"{who}; {task_and_place(deciding)} {exit_words(deciding)}"
    return _outcome(story, endings, verdict, deciding, message)


def _of_gone(story: Story, stopping: str) -> Outcome:
    """The outcome of a job that Nomad no longer has, from what was known before: certain, or unknown."""
    job = story.snapshot.job
    endings = _endings(story)
    if (
        job is not None
        and job.status == DEAD
        and (job.stop or not story.open_evaluations)
        and all(ending.settled for ending in endings)
        and _told_in_full(story, grace_over=False)
        and (not job.stop or _ended_by_itself(story, endings))
    ):
        return _combined(story, endings)
    if stopping or (job is not None and job.stop):
        return _stopped(story, endings, stopping)
    if story.snapshot.purged and job is not None and job.status != DEAD:
        message = f"the job was purged while it was {job.status}; how its tasks ended was never told"
        return _outcome(story, endings, Verdict.STOPPED, None, message, code="job.purged")
    message = "Nomad no longer has the job, and nobody saw how it ended: purged or garbage-collected"
    return _outcome(story, endings, Verdict.UNKNOWN_GC, None, message, code="job.gone")


def _deciding(endings: Sequence[Ending]) -> Ending | None:
    """The ending that gives the verdict: the first by priority, then by time. A success rests on the last."""
    known = [ending for ending in endings if ending.verdict is not None]
    if not known:
        return None
    if all(ending.verdict is Verdict.SUCCEEDED for ending in known):
        return max(known, key=_when)
    return min(known, key=lambda ending: (_rank(ending), _when(ending)))


def _rank(ending: Ending) -> int:
    return PRIORITY.index(ending.verdict) if ending.verdict is not None else len(PRIORITY)


def _when(ending: Ending) -> tuple[int, str, str]:
    allocation: Allocation = ending.allocation
    at = ending.task.at if ending.task is not None and ending.task.at else allocation.modify_time
    return at, allocation.name, allocation.id


def _outcome(
    story: Story,
    endings: Sequence[Ending],
    verdict: Verdict,
    deciding: Ending | None,
    message: str,
    *,
    code: str = "",
) -> Outcome:
    succeeded = verdict is Verdict.SUCCEEDED
    exit_code = deciding.exit_code if deciding is not None else None
    if not succeeded and exit_code == 0:
        # A task that ends well when it is told to stop did not do its work: 0 stands for success alone.
        exit_code = None
    return Outcome(
        verdict,
        exit_code=exit_code,
        error_code="" if succeeded else code or f"job.{verdict.value}",
        error_message="" if succeeded else message,
        evidence=evidence(story.snapshot, deciding, endings),
    )


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
