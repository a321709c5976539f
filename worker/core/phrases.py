"""How an allocation ended, in one plain sentence for the person on call.

Knows nothing of how the verdict was found.
"""

from worker.core.ending import Ending
from worker.core.model import Verdict
from worker.core.placement import plain

_SHORT_ID = 8


def sentence(ending: Ending) -> str:
    """What happened to the deciding task or allocation.

    For example `task "main" of allocation 08bd7328 on node worker-3 ended with exit code 137 (signal 9)`.
    """
    if ending.verdict is Verdict.LOST:
        return f"{_place(ending)} was lost: {_wanted(ending) or 'its node is down'}"
    if ending.verdict is Verdict.UNKNOWN_GC:
        return f"{_place(ending)} is called complete, but no exit code of its main tasks shows that it was"
    task = f'task "{plain(ending.task.name)}"' if ending.task is not None else "it"
    how = f"{task} {exit_words(ending)}"
    match ending.verdict:
        case Verdict.OOM_KILLED:
            return f"{task_and_place(ending)} ran out of memory and {exit_words(ending)}"
        case Verdict.TIMED_OUT:
            return f"{_place(ending)} exceeded its max_run_duration; {how}"
        case Verdict.PREEMPTED:
            preemptor = ending.allocation.preempted_by_allocation[:_SHORT_ID]
            by = f" by allocation {preemptor}" if preemptor else ""
            return f"{_place(ending)} was preempted{by} and not replaced; {how}"
        case Verdict.DRAINED:
            return f"{_place(ending)} was stopped by a node drain and not replaced; {how}"
        case Verdict.STOPPED:
            wanted = _wanted(ending)
            return f"{_place(ending)} was stopped{f' ({wanted})' if wanted else ''}; {how}"
        case _:
            return f"{task_and_place(ending)} {exit_words(ending)}"


def task_and_place(ending: Ending) -> str:
    """The deciding task, its allocation and its node."""
    if ending.task is None:
        return _place(ending)
    return f'task "{plain(ending.task.name)}" of {_place(ending)}'


def exit_words(ending: Ending) -> str:
    """How the deciding task ended, as the rest of a sentence."""
    task = ending.task
    if task is None:
        said = plain(ending.allocation.client_description)
        status = plain(ending.allocation.client_status) or "unknown"
        return f"is {status}{f': {said}' if said else ''}"
    event = ending.event
    if event is not None and event.type != "Terminated" and task.state.failed:
        return f"failed: {plain(event.display_message or event.message or event.type)}"
    end = task.exit
    if end is None:
        if not task.over:
            return f"was last seen {plain(task.state.state) or 'in an unknown state'}"
        return "never ran" if task.state.started_at is None else "ended, and its exit code was not told"
    if end.exit_code < 0:
        return "ended, and its exit code is not known"
    signal = f" (signal {end.signal})" if end.signal else ""
    return f"ended with exit code {end.exit_code}{signal}"


def _place(ending: Ending) -> str:
    allocation = ending.allocation
    node = allocation.node_name or allocation.node_id[:_SHORT_ID]
    return f"allocation {allocation.id[:_SHORT_ID]}" + (f" on node {plain(node)}" if node else "")


def _wanted(ending: Ending) -> str:
    return plain(ending.allocation.desired_description)
