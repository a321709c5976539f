"""The closed sets that metric labels take their values from, and what is counted under which value.

Knows nothing of metrics. Whatever is in no set is `other`: no text from outside becomes a label.
"""

from collections.abc import Iterator, Mapping

from worker.adapters.nomad.calls import Operation
from worker.core.model import Outcome, Verdict
from worker.errors import Then, WorkerError

OTHER = "other"

REJECTIONS = {
    "request.payload_too_large": "too_large",
    "request.meta_too_large": "too_large",
    "nomad.payload_too_large": "too_large",
    "request.place_not_configured": "not_allowed",
    "request.reply_to_invalid": "not_allowed",
    "request.not_allowed": "not_allowed",
}
"""Codes by the reason they are counted under; other `request.` codes are `schema`, the rest `refused`."""

REASONS = ("schema", "not_allowed", "too_large", "expired", "refused")
NOMAD_OPERATIONS = (
    Operation.DISPATCH,
    Operation.JOB,
    Operation.EVALUATIONS,
    Operation.ALLOCATIONS,
    Operation.LIVE_CHILDREN,
    Operation.FIND_BY_TOKEN,
    Operation.STOP,
    Operation.EVENTS,
)
"""Those of the main path; others, asked at start or now and then, are `other`."""
TIMED_OPERATIONS = (Operation.DISPATCH, Operation.ALLOCATIONS, Operation.LIVE_CHILDREN)
"""Those whose durations are told apart: a histogram is seven series for each. The rest share `other`."""
NOMAD_CODES = frozenset(
    {"200", "400", "403", "404", "405", "429", "431", "500", "501", "502", "503", "504", "error"}
)
"""HTTP statuses; `error`: no answer."""
REDIS_OPERATIONS = ("read", "mine", "fetch", "admit", "keep", "settle", "beat", "dead", "take")
"""Methods of the ports, as `measured` tells them; others are `other`."""
ACTIONS = ("cancel", "requeue", "drop")
"""Those of the status page; `other`: an order for something else."""
LEDGER_OPERATIONS = ("admit", "keep", "settle")


def reason_of(outcome: Outcome) -> str:
    """Why a request was never dispatched: one of `REASONS`."""
    if outcome.verdict is Verdict.EXPIRED:
        return "expired"
    default = "schema" if outcome.error_code.startswith("request.") else "refused"
    return REJECTIONS.get(outcome.error_code, default)


def codes() -> Mapping[str, Then]:
    """The codes of all errors, each with what comes next."""
    return {kind.code: kind.then for kind in _kinds()}


def _kinds(root: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
