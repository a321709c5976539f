"""Replies as lines of text, in the words of `nomad job dispatch`, and as exit codes.

Values in, values out: prints nothing, knows nothing of Redis or of the command line's options.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any
from urllib.parse import quote

from worker.core.instants import format_rfc3339, parse_rfc3339
from worker.core.model import PAYLOAD_LIMIT_BYTES, Verdict
from worker.core.reply import Reply

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_UNPLACED = 2
"""As Nomad's command documents it: the job was registered and could not be placed."""
EXIT_INTERRUPTED = 130

_SHORT_ID_LENGTH = 8
_LARGEST_EXIT_CODE = 255

_PLACED = frozenset(
    {
        Verdict.SUCCEEDED,
        Verdict.FAILED,
        Verdict.OOM_KILLED,
        Verdict.TIMED_OUT,
        Verdict.LOST,
        Verdict.DRAINED,
        Verdict.PREEMPTED,
    }
)
"""Verdicts that only a placed job can have. For the others the allocations in the evidence decide."""

_NEVER_RAN = "job.never_ran"
_NO_SUCH_JOB = frozenset({"nomad.job_unknown", "nomad.job_not_parameterized"})
_NOMADS_ANSWER = re.compile(r"Nomad answered (?P<status>\d{3}): (?P<text>.*)", re.DOTALL)


class Placement(Enum):
    """What is known of the first evaluation."""

    PENDING = "pending"
    PLACED = "placed"
    FAILED = "failed"


class Monitor:
    """Follows one message and tells what is new in each reply.

    The lines are Nomad's own where Nomad has one; times are the replies' own, in UTC.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.placement = Placement.PENDING
        self._verbose = verbose
        self._introduced = ""
        """The dispatched job whose IDs were told."""
        self._to_tell: list[str] = []
        """What follows the head; the link to the web interface comes in between."""
        self._statuses: dict[str, str] = {}

    def head(self, reply: Reply) -> list[str]:
        """The lines with the IDs, once they are known, and the empty one before the monitoring."""
        if reply.dispatched_job_id in {"", self._introduced}:
            return []
        self._introduced = reply.dispatched_job_id
        lines = dispatched_lines(reply, verbose=self._verbose)
        if not reply.eval_id:
            return lines
        self._to_tell = [
            f'==> {_time(reply)}: Monitoring evaluation "{self._id(reply.eval_id)}"',
            f'    {_time(reply)}: Evaluation triggered by job "{reply.dispatched_job_id}"',
        ]
        return [*lines, ""]

    def lines(self, reply: Reply) -> list[str]:
        """What to print for the next reply, line by line; the head comes with it unless it was asked for."""
        lines = self.head(reply) + self._to_tell
        self._to_tell = []
        if reply.type == "retrying" and reply.data.get("what") == "run":
            return [*lines, *_run_lines(reply)]
        if reply.type in {"placed", "running", "retrying", "blocked", "result"}:
            lines += self._allocations(reply)
        if self.placement is Placement.PENDING and self._introduced:
            if _not_all_placed(reply):
                self.placement = Placement.FAILED
                lines += self._evaluated(reply) + self._failed_groups(reply)
            elif reply.type in {"placed", "running", "retrying"} or was_placed(reply):
                self.placement = Placement.PLACED
                lines += self._evaluated(reply)
        elif reply.type == "blocked":
            # Placed before, and wanted again: its node was lost, or other work took its place.
            lines += self._failed_groups(reply)
        if reply.type == "retrying":
            lines += self._retry(reply)
        return lines

    def _allocations(self, reply: Reply) -> list[str]:
        lines = []
        for allocation in _allocations_in(reply.data):
            alloc_id = allocation.get("allocation", "")
            before = self._statuses.get(alloc_id)
            status = _status(allocation, reply.type, before)
            if before is None:
                node, group = self._id(allocation.get("node_id", "")), allocation.get("group", "")
                created = f'Allocation "{self._id(alloc_id)}" created: node "{node}", group "{group}"'
                lines.append(f"    {_time(reply)}: {created}")
            elif before != status:
                description = allocation.get("client_description", "")
                change = f'Allocation "{self._id(alloc_id)}" status changed: "{before}" -> "{status}"'
                lines.append(f"    {_time(reply)}: {change}" + (f" ({description})" if description else ""))
            self._statuses[alloc_id] = status
        return lines

    def _evaluated(self, reply: Reply) -> list[str]:
        if not reply.eval_id:
            return []
        end = " but failed to place all allocations:" if self.placement is Placement.FAILED else ""
        finished = f'Evaluation "{self._id(reply.eval_id)}" finished with status "complete"'
        return [
            f'    {_time(reply)}: Evaluation status changed: "pending" -> "complete"',
            f"==> {_time(reply)}: {finished}{end}",
        ]

    def _failed_groups(self, reply: Reply) -> list[str]:
        lines = []
        for metrics in reply.data.get("placement") or ():
            failures = metrics.get("coalesced_failures", 0) + 1
            noun = "allocation" if failures == 1 else "allocations"
            lines.append(
                f'    {_time(reply)}: Task Group "{metrics["group"]}" (failed to place {failures} {noun}):'
            )
            lines += [f"      * {reason}" for reason in placement_reasons(metrics)]
        for blocked in _blocked_evaluations(reply.data):
            waiting = f'Evaluation "{self._id(blocked)}" waiting for additional capacity to place remainder'
            lines.append(f"    {_time(reply)}: {waiting}")
        return lines

    def _retry(self, reply: Reply) -> list[str]:
        """What is tried again, by the client or by the servers: Nomad's own command does not tell."""
        told = reply.data
        allocation = f'allocation "{self._id(told.get("allocation", ""))}"'
        if told.get("what") == "restart":
            what = f'Task "{told.get("task", "")}" of {allocation} is restarted'
        else:
            what = f"{allocation.capitalize()} is rescheduled"
        at = f" at {told['next_at']}" if told.get("next_at") else ""
        why = "" if told.get("exit_code") is None else f" (exit code {told['exit_code']})"
        return [f"    {_time(reply)}: {what}{at}: try {told.get('attempt', '?')}{why}"]

    def _id(self, identifier: str) -> str:
        return identifier if self._verbose else identifier[:_SHORT_ID_LENGTH]


def repeated_line(job_id: str, token: str) -> str:
    """What is told of a request whose idempotency token was used before."""
    return f'Job "{job_id}" already dispatched with idempotency token "{token}".'


def dispatched_lines(reply: Reply, *, verbose: bool = False) -> list[str]:
    """The two lines with the IDs; without the second one where Nomad gave no evaluation (a repeat)."""
    lines = [f"Dispatched Job ID = {reply.dispatched_job_id}"]
    if reply.eval_id:
        lines.append(f"Evaluation ID     = {reply.eval_id if verbose else reply.eval_id[:_SHORT_ID_LENGTH]}")
    return lines


def placement_reasons(metrics: Mapping[str, Any]) -> list[str]:
    """Why a group could not be placed.

    Args:
        metrics: Nomad's counts for one group, as `core.placement.explain` gives them.
    """
    reasons = []
    if not metrics.get("nodes_evaluated"):
        reasons.append("No nodes were eligible for evaluation")
    reasons += [
        f'No nodes are available in datacenter "{name}"'
        for name, count in _counts(metrics, "nodes_available")
        if not count
    ]
    filtered = "{} nodes excluded by filter"
    reasons += [
        f'Class "{name}": {filtered.format(count)}' for name, count in _counts(metrics, "class_filtered")
    ]
    reasons += [
        f'Constraint "{name}": {filtered.format(count)}'
        for name, count in _counts(metrics, "constraint_filtered")
    ]
    if exhausted := metrics.get("nodes_exhausted"):
        reasons.append(f"Resources exhausted on {exhausted} nodes")
    for kind, key in (("Class", "class_exhausted"), ("Dimension", "dimension_exhausted")):
        reasons += [f'{kind} "{name}" exhausted on {count} nodes' for name, count in _counts(metrics, key)]
    reasons += [f'Quota limit hit "{name}"' for name in metrics.get("quota_exhausted", ())]
    return reasons


def was_placed(reply: Reply) -> bool:
    """Whether a final reply tells of a job that Nomad had placed."""
    ran = reply.verdict in _PLACED and reply.error_code != _NEVER_RAN
    return reply.final and (ran or bool(_allocations_in(reply.data)))


def _not_all_placed(reply: Reply) -> bool:
    """Whether the reply tells that the first evaluation failed to place a group, whatever it did place.

    The worker may hear of the placement and of what is missing in one, and Nomad's command tells of both.
    """
    never = reply.verdict is Verdict.UNPLACED or (reply.error_code == _NEVER_RAN and not was_placed(reply))
    # The evidence of a final reply tells of all evaluations there were, not only of the first.
    in_part = reply.type in {"placed", "running"} and bool(reply.data.get("placement"))
    return reply.type == "blocked" or never or in_part


def failure_text(reply: Reply, job: str) -> str:
    """Why a request came to nothing, in Nomad's words where Nomad said why."""
    if reply.error_code in _NO_SUCH_JOB:
        return f'No parameterized job(s) with prefix or ID "{job}" found'
    if said := nomads_answer(reply.error_message):
        if reply.error_code == "nomad.region_unknown":
            return f'Error querying job prefix "{job}": {said}'
        return f"Failed to dispatch job: {said}"
    reason = reply.error_message or "no reason was given"
    verdict = reply.verdict.value if reply.verdict else "ended"
    code = f" [{reply.error_code}]" if reply.error_code else ""
    return f"Failed to dispatch job: {verdict}: {reason}{code}"


def nomads_answer(message: str) -> str:
    """A refusal by Nomad in the words of its command; empty when the refusal is not Nomad's."""
    answer = _NOMADS_ANSWER.fullmatch(message)
    return f"Unexpected response code: {answer['status']} ({answer['text']})" if answer else ""


def payload_too_large_text(size: int) -> str:
    """What Nomad says of a payload that is too large."""
    text = f"Payload exceeds maximum size; {size} > {PAYLOAD_LIMIT_BYTES}"
    return f"Failed to dispatch job: Unexpected response code: 500 ({text})"


def end_lines(reply: Reply) -> list[str]:
    """How the job ended."""
    code = "" if reply.exit_code is None else f", exit code {reply.exit_code}"
    verdict = reply.verdict.value if reply.verdict else "unknown"
    what = (
        f'Job "{reply.dispatched_job_id}"'
        if reply.dispatched_job_id
        else f"Request {reply.stream}:{reply.id}"
    )
    lines = [f"==> {_time(reply)}: {what} ended: {verdict}{code}"]
    if reply.error_message:
        lines.append(f"    {_time(reply)}: {reply.error_message}")
    return lines


def _run_lines(reply: Reply) -> list[str]:
    """How a run ended that the policy has repeated."""
    run = reply.data
    code = f", exit code {run['exit_code']}" if "exit_code" in run else ""
    lines = [f'==> {_time(reply)}: Job "{reply.dispatched_job_id}" ended: {run.get("verdict")}{code}']
    if run.get("error_message"):
        lines.append(f"    {_time(reply)}: {run['error_message']}")
    lines.append(f"    {_time(reply)}: Run {run.get('attempt')} is to begin at {run.get('next_at')}")
    return lines


def ui_url(reply: Reply, nomad_address: str) -> str:
    """The job's page in Nomad's web interface; empty when nobody told where that is."""
    if reply.ui_url or not nomad_address.startswith("http") or not reply.dispatched_job_id:
        return reply.ui_url
    job = quote(reply.dispatched_job_id, safe="")
    return f"{nomad_address.rstrip('/')}/ui/jobs/{job}@{reply.namespace or 'default'}"


def exit_code(reply: Reply) -> int:
    """The exit code for a final reply: the task's own where one is known, and 0 for a success alone."""
    match reply.verdict:
        case Verdict.SUCCEEDED | Verdict.DETACHED:
            return EXIT_OK
        case Verdict.UNPLACED:
            return EXIT_UNPLACED
        case _ if reply.exit_code is not None and 1 <= reply.exit_code <= _LARGEST_EXIT_CODE:
            return reply.exit_code
        case _:
            return EXIT_ERROR


def _time(reply: Reply) -> str:
    """The reply's time as Nomad's CLI prints one: RFC 3339, whole seconds."""
    try:
        return re.sub(r"\.\d+", "", format_rfc3339(parse_rfc3339(reply.at)))
    except ValueError:
        return reply.at


def _allocations_in(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The allocations a step or a result tells of: a list, or just one."""
    one = [data] if "allocation" in data else []
    return data.get("allocations") or one


def _status(allocation: Mapping[str, Any], step: str, before: str | None) -> str:
    """An allocation's client status; most steps do not repeat what they imply."""
    told: str = allocation.get("client_status", "")
    if told or step not in {"placed", "running"}:
        return told or before or "pending"
    return "running" if step == "running" else "pending"


def _blocked_evaluations(data: Mapping[str, Any]) -> Sequence[str]:
    return [one["id"] for one in data.get("evaluations") or () if one.get("status") == "blocked"]


def _counts(metrics: Mapping[str, Any], name: str) -> Sequence[tuple[str, int]]:
    return sorted(metrics.get(name, {}).items())
