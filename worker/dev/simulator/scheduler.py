"""On which node an allocation is placed, and what is reported when there is none. Pure.

Knows nothing of evaluations, indexes or time; the caller keeps the plan.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from worker.dev.simulator.constraints import describe, escapes_class, in_datacenters, satisfied
from worker.dev.simulator.jobs import Group
from worker.dev.simulator.records import Metrics, Scores
from worker.dev.simulator.state import Node


@dataclass(slots=True)
class Plan:
    """What was placed so far in one evaluation, and counts against nodes though no write was made yet."""

    cpu: Counter[str] = field(default_factory=Counter)
    memory: Counter[str] = field(default_factory=Counter)
    hosts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Allocations of the job per (group, node ID), live or planned."""

    def take(self, group: Group, node: Node) -> None:
        """Count a placement."""
        self.cpu[node.id] += group.cpu
        self.memory[node.id] += group.memory
        self.hosts[group.name, node.id] += 1

    def crowd(self, node: Node) -> int:
        """Return how many allocations of the job, of any group, are on a node."""
        return sum(count for (_, node_id), count in self.hosts.items() if node_id == node.id)


def filtered(group: Group, node: Node, plan: Plan) -> str:
    """Return why a node is not feasible, in the words of the metrics; empty if it is."""
    if not group.drivers <= node.drivers:
        return "missing drivers"
    for constraint in group.constraints:
        if not satisfied(constraint, node):
            return describe(constraint)
    return "distinct_hosts" if group.distinct_hosts and plan.crowd(node) else ""


def exhausted(group: Group, node: Node, plan: Plan) -> str:
    """Return the dimension that does not fit on a feasible node, "cpu" or "memory"; empty if all fit."""
    if node.used_cpu + plan.cpu[node.id] + group.cpu > node.cpu:
        return "cpu"
    return "memory" if node.used_memory + plan.memory[node.id] + group.memory > node.memory else ""


def place(
    group: Group, nodes: Iterable[Node], plan: Plan, avoid: Collection[str] = ()
) -> tuple[Node | None, Metrics]:
    """Find the best node for one more allocation of a group, and count it in the plan.

    Args:
        group: what is asked.
        nodes: all nodes of the cluster.
        plan: what this evaluation placed so far.
        avoid: IDs of nodes on which earlier attempts failed; they are ranked lower.

    Returns:
        The node, or None; and the metrics of the search.
    """
    pool = [node for node in nodes if node.ready and in_datacenters(node, group.datacenters)]
    metrics = Metrics(
        nodes_available=dict(Counter(node.datacenter for node in pool)),
        nodes_evaluated=len(pool),
        nodes_in_pool=len(pool),
    )
    reasons: Counter[str] = Counter()
    filtered_classes: Counter[str] = Counter()
    dimensions: Counter[str] = Counter()
    full_classes: Counter[str] = Counter()
    best: tuple[float, Node] | None = None
    scores: list[Scores] = []
    for node in pool:
        if reason := filtered(group, node, plan):
            reasons[reason] += 1
            filtered_classes[node.node_class] += 1
        elif dimension := exhausted(group, node, plan):
            dimensions[dimension] += 1
            full_classes[node.node_class] += 1
        else:
            ranked = rank(group, node, plan, avoid)
            scores.append(ranked)
            if best is None or ranked.norm_score > best[0]:
                best = ranked.norm_score, node
    metrics.nodes_filtered = reasons.total()
    metrics.constraint_filtered = dict(reasons) or None
    metrics.class_filtered = _named(filtered_classes)
    metrics.nodes_exhausted = dimensions.total()
    metrics.dimension_exhausted = dict(dimensions) or None
    metrics.class_exhausted = _named(full_classes)
    if best is None:
        if dimensions:
            metrics.resources_exhausted = group.exhausted(next(iter(dimensions)))
        return None, metrics
    metrics.score_meta_data = sorted(scores, key=lambda item: -item.norm_score)
    plan.take(group, best[1])
    return best[1], metrics


def _named(classes: Counter[str]) -> dict[str, int] | None:
    return {name: count for name, count in classes.items() if name} or None


def rank(group: Group, node: Node, plan: Plan, avoid: Collection[str]) -> Scores:
    """Score a node that fits: full nodes first, away from siblings and from nodes that failed before."""
    cpu = node.used_cpu + plan.cpu[node.id] + group.cpu
    memory = node.used_memory + plan.memory[node.id] + group.memory
    free = 10 ** (1 - cpu / node.cpu) + 10 ** (1 - memory / node.memory)
    collisions = plan.hosts[group.name, node.id]
    scores = {
        "binpack": (20 - free) / 18,
        "job-anti-affinity": -(collisions + 1) / group.count if collisions else 0.0,
        "node-reschedule-penalty": -1.0 if node.id in avoid else 0.0,
        "node-affinity": affinity(group, node),
    }
    counted = [score for name, score in scores.items() if score or name == "binpack"]
    return Scores(node_id=node.id, norm_score=sum(counted) / len(counted), scores=scores)


def affinity(group: Group, node: Node) -> float:
    """Return how much of the weights of a group's affinities the node meets, between -1 and 1."""
    total = sum(abs(item.get("Weight", 50)) for item in group.affinities)
    met = sum(item.get("Weight", 50) for item in group.affinities if satisfied(item, node))
    return met / total if total else 0.0


def eligibility(group: Group, nodes: Iterable[Node]) -> tuple[bool, dict[str, bool] | None]:
    """Return what a blocked evaluation remembers: whether it must look at single nodes, else the classes."""
    if any(escapes_class(constraint) for constraint in group.constraints):
        return True, None
    classes: dict[str, bool] = {}
    for node in nodes:
        if node.ready and in_datacenters(node, group.datacenters):
            fits = not filtered(group, node, Plan())
            classes[computed_class(node)] = classes.get(computed_class(node), False) or fits
    return False, classes or None


def computed_class(node: Node) -> str:
    """Return a name shared by nodes that only differ in what is unique to each."""
    place_and_class = node.datacenter, node.node_class, node.pool
    return f"v1:{abs(hash((place_and_class, *sorted(node.attributes.items()), *sorted(node.drivers))))}"
