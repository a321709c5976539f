"""Nomad's reasons for not placing a job, in words."""

import pytest

from tests.core.stories import evaluation
from worker.core.observed import AllocMetric
from worker.core.placement import GROUPS_SHOWN, REASONS_SHOWN, explain, failures, reasons, sentence


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        # The shapes of recorded answers.
        (
            AllocMetric(
                nodes_evaluated=2,
                nodes_filtered=2,
                nodes_available={"dc1": 2},
                class_filtered={"victim": 1},
                constraint_filtered={"missing drivers": 2},
            ),
            ['constraint "missing drivers" filtered 2 nodes'],
        ),
        (
            AllocMetric(
                nodes_evaluated=2,
                nodes_filtered=1,
                nodes_exhausted=1,
                nodes_available={"dc1": 2},
                constraint_filtered={"${node.unique.name} = node-1": 1},
                dimension_exhausted={"cpu": 1},
            ),
            ["1 node without enough cpu", 'constraint "${node.unique.name} = node-1" filtered 1 node'],
        ),
        (AllocMetric(), ["no node was eligible for evaluation"]),
        (
            AllocMetric(nodes_available={"dc9": 0}),
            ["no node was eligible for evaluation", 'no node is available in datacenter "dc9"'],
        ),
        (AllocMetric(nodes_evaluated=3, quota_exhausted=["memory"]), ["quota limit hit: memory"]),
        (AllocMetric(nodes_evaluated=3, nodes_exhausted=3), ["resources exhausted on 3 nodes"]),
        (
            AllocMetric(nodes_evaluated=1, nodes_filtered=1, class_filtered={"gpu": 1}),
            ['1 node of class "gpu" filtered'],
        ),
        (AllocMetric(nodes_evaluated=4), ["none of 4 nodes fits"]),
    ],
)
def test_a_failure_to_place_is_told_in_words(metric: AllocMetric, wanted: list[str]) -> None:
    assert reasons(metric) == wanted


def test_numbers_stand_beside_the_words() -> None:
    metric = AllocMetric(nodes_evaluated=2, nodes_exhausted=2, dimension_exhausted={"memory": 2})

    assert explain({"g": metric}) == [
        {
            "group": "g",
            "nodes_evaluated": 2,
            "nodes_exhausted": 2,
            "dimension_exhausted": {"memory": 2},
            "reasons": ["2 nodes without enough memory"],
        }
    ]


def test_all_groups_stand_in_one_sentence() -> None:
    metrics = {"b": AllocMetric(nodes_evaluated=1), "a": AllocMetric()}

    assert sentence(metrics) == (
        'group "a" cannot be placed: no node was eligible for evaluation; '
        'group "b" cannot be placed: none of 1 node fits'
    )
    assert sentence({}) == ""


def test_the_latest_failure_of_each_group_counts_whatever_the_order() -> None:
    first = evaluation("job-register", modified=12, failed={"a": AllocMetric(), "b": AllocMetric()})
    later = evaluation("queued-allocs", modified=15, failed={"a": AllocMetric(nodes_evaluated=7)})
    fine = evaluation("node-update", modified=20)

    wanted = {"a": AllocMetric(nodes_evaluated=7), "b": AllocMetric()}
    assert failures([first, later, fine]) == wanted
    assert failures([fine, later, first]) == wanted


def test_what_is_told_is_bounded() -> None:
    metric = AllocMetric(constraint_filtered={f"c{index}": 1 for index in range(100)})

    told = explain({f"g{index}": metric for index in range(100)})

    assert len(told) == GROUPS_SHOWN
    assert all(len(one["reasons"]) == REASONS_SHOWN for one in told)
    assert all(len(one["constraint_filtered"]) == REASONS_SHOWN for one in told)
