"""Puts into words and numbers why Nomad could not place a job: its `FailedTGAllocs`.

Knows nothing of whether the job is still waiting, or of what follows from it.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from worker.core.observed import AllocMetric, Evaluation
from worker.core.redact import without_userinfo

GROUPS_SHOWN = 8
REASONS_SHOWN = 16
_TEXT_SHOWN = 200
_TEXT_READ = 4_000
_TEXT_KEPT = 80

_COUNTS = (
    "nodes_available",
    "constraint_filtered",
    "class_filtered",
    "dimension_exhausted",
    "class_exhausted",
)


def failures(evaluations: Iterable[Evaluation]) -> dict[str, AllocMetric]:
    """The latest failure to place each group, by group name."""
    told = [evaluation for evaluation in evaluations if evaluation.failed_tg_allocs]
    found: dict[str, AllocMetric] = {}
    for evaluation in sorted(told, key=lambda evaluation: (evaluation.modify_index, evaluation.id)):
        found |= evaluation.failed_tg_allocs or {}
    return found


def explain(metrics: Mapping[str, AllocMetric]) -> list[dict[str, Any]]:
    """One JSON object for each group, in the order of their names; at most `GROUPS_SHOWN`.

    Returns:
        Objects with `group`, Nomad's counts under snake_case names (nodes; only those above zero, and always
        `nodes_evaluated`), and `reasons`, a list of sentences.
    """
    return [_explain_one(group, metrics[group]) for group in sorted(metrics)[:GROUPS_SHOWN]]


def sentence(metrics: Mapping[str, AllocMetric]) -> str:
    """All groups' reasons in one line of text; empty when there is nothing to tell."""
    groups = sorted(metrics)[:GROUPS_SHOWN]
    return "; ".join(
        f'group "{plain(group)}" cannot be placed: {", ".join(reasons(metrics[group]))}' for group in groups
    )


def reasons(metric: AllocMetric) -> list[str]:
    """Why one group could not be placed, the decisive part first; at most `REASONS_SHOWN`, never empty."""
    told: list[str] = []
    if not metric.nodes_evaluated:
        told.append("no node was eligible for evaluation")
    told += [
        f"no node is available in datacenter {_quoted(name)}"
        for name, nodes in sorted((metric.nodes_available or {}).items())
        if not nodes
    ]
    told += [
        f"{_nodes(nodes)} without enough {plain(name)}"
        for name, nodes in sorted((metric.dimension_exhausted or {}).items())
    ]
    told += [f"quota limit hit: {plain(name)}" for name in sorted(metric.quota_exhausted or ())]
    told += [
        f"constraint {_quoted(name)} filtered {_nodes(nodes)}"
        for name, nodes in sorted((metric.constraint_filtered or {}).items())
    ]
    if not metric.constraint_filtered:
        told += [
            f"{_nodes(nodes)} of class {_quoted(name)} filtered"
            for name, nodes in sorted((metric.class_filtered or {}).items())
        ]
    if not metric.dimension_exhausted and metric.nodes_exhausted:
        told.append(f"resources exhausted on {_nodes(metric.nodes_exhausted)}")
    return told[:REASONS_SHOWN] or [f"none of {_nodes(metric.nodes_evaluated)} fits"]


def _explain_one(group: str, metric: AllocMetric) -> dict[str, Any]:
    explained: dict[str, Any] = {"group": plain(group), "nodes_evaluated": metric.nodes_evaluated}
    for name in ("nodes_filtered", "nodes_exhausted", "coalesced_failures"):
        if count := getattr(metric, name):
            explained[name] = count
    for name in _COUNTS:
        if counts := getattr(metric, name):
            shown = sorted(counts.items())[:REASONS_SHOWN]
            explained[name] = {plain(key): count for key, count in shown}
    if metric.quota_exhausted:
        explained["quota_exhausted"] = [plain(q) for q in sorted(metric.quota_exhausted)[:REASONS_SHOWN]]
    explained["reasons"] = reasons(metric)
    return explained


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _quoted(text: str) -> str:
    return f'"{plain(text)}"'


def plain(text: str) -> str:
    """Text of Nomad's as replies repeat it: one line, not too long, without the passwords in its URLs."""
    return _known(text) if len(text) <= _TEXT_KEPT else _cleaned(text)


def _cleaned(text: str) -> str:
    if len(text) > _TEXT_READ:
        text = text[:_TEXT_READ]
    text = without_userinfo(" ".join(text.split()))
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"


_known = lru_cache(maxsize=1_024)(_cleaned)
"""Most of what Nomad says are the same few words, job after job."""
