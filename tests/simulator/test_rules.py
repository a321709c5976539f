"""The simulator's pure rules: events, filters, placement, payload packing, Go's complaints, restarts."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.cluster import SECOND, group, job, mock, on_node
from worker.dev.simulator import Node
from worker.dev.simulator.acl import read_rules
from worker.dev.simulator.constraints import satisfied
from worker.dev.simulator.events import Event, EventRing, Subscription
from worker.dev.simulator.filters import BadFilter, compile_filter
from worker.dev.simulator.gojson import Malformed, decode, decode_base64
from worker.dev.simulator.jobfile import canonical_job
from worker.dev.simulator.jobs import Group, Specification, snappy_block
from worker.dev.simulator.records import from_go_time, go_duration, go_time
from worker.dev.simulator.restarts import RestartTracker
from worker.dev.simulator.scheduler import Plan, place


def specification(*groups: dict[str, Any], **fields: Any) -> Specification:
    return Specification(canonical_job(job("p", *groups, **fields)))


def only_group(*tasks: dict[str, Any], fields: dict[str, Any] | None = None, **of_group: Any) -> Group:
    return specification(group(*tasks, **of_group), **(fields or {})).groups["g"]


def unsnap(block: bytes) -> bytes:
    """Decode a Snappy block of literals, by the format's description."""
    size, position, shift = 0, 0, 0
    while True:
        byte = block[position]
        size |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            break
    out = b""
    while position < len(block):
        tag = block[position]
        assert tag & 3 == 0
        length, extra = tag >> 2, max((tag >> 2) - 59, 0)
        if extra:
            length = int.from_bytes(block[position + 1 : position + 1 + extra], "little")
        start = position + 1 + extra
        out += block[start : start + length + 1]
        position = start + length + 1
    assert len(out) == size
    return out


@given(st.binary(max_size=17_000))
def test_a_packed_payload_unpacks_to_itself(payload: bytes) -> None:
    assert unsnap(snappy_block(payload)) == payload


def test_a_packed_payload_is_the_recorded_one() -> None:
    assert base64.b64encode(snappy_block(b"hello")) == b"BRBoZWxsbw=="


@given(st.integers(min_value=0, max_value=4 * 10**18))
def test_times_survive_writing_and_reading(now: int) -> None:
    assert from_go_time(go_time(now)) == now


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (224_702_701, "224.702701ms"),
        (SECOND, "1s"),
        (90 * SECOND, "1m30s"),
        (86_400 * SECOND, "24h0m0s"),
    ],
)
def test_durations_are_written_as_go_does(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


# Filters ------------------------------------------------------------------------------------------

FIELDS = {
    "ID": "render/dispatch-1-a",
    "ParentID": "render",
    "Status": "running",
    "Stop": False,
    "Priority": 50,
    "Meta": {"who": "u1", "empty": ""},
    "DispatchIdempotencyToken": "1732-0",
    "Tags": ["a", "b"],
    "Nothing": None,
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('ParentID == "render" and Status != "dead"', True),
        ('ParentID == "render" and Status == "dead"', False),
        ('DispatchIdempotencyToken == "x" or DispatchIdempotencyToken == "1732-0"', True),
        ('DispatchIdempotencyToken matches "^17"', True),
        ('DispatchIdempotencyToken not matches "^17"', False),
        ('Meta.who == "u1"', True),
        ('Meta["who"] == "u1"', True),
        ('Meta.nope == "x"', False),
        ('Meta contains "who"', True),
        ('"who" in Meta', True),
        ('"c" not in Tags', True),
        ('not (Status == "running" or Stop == true)', False),
        ("Stop == false", True),
        ("Priority == 50", True),
        ("ID == `render/dispatch-1-a`", True),
        ('ID contains "dispatch"', True),
        ("Meta.empty is empty", True),
        ("Tags is not empty", True),
        ("Nothing is nil", True),
        ('Status == "dead" or Status == "running" and Stop == true', False),
    ],
)
def test_a_filter_selects(expression: str, *, expected: bool) -> None:
    assert compile_filter(expression)(FIELDS) is expected


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("ID ==", "1:6 (5)"),
        ('ID ~ "x"', '1:4 (3): no match found, expected: "!="'),
        ('(ID == "a"', '1:11 (10): rule "grouping": Unmatched parentheses'),
        ('ID in ["a","b"]', '1:7 (6): rule "match": Invalid selector'),
        ('Nope == "x"', 'couldn\'t find key: struct field with name "Nope"'),
        ('Priority == "x"', 'strconv.ParseInt: parsing "x": invalid syntax'),
        ('ID matches "["', 'failed to compile regular expression "["'),
    ],
)
def test_a_bad_filter_says_why(expression: str, text: str) -> None:
    with pytest.raises(BadFilter) as error:
        compile_filter(expression)(FIELDS)

    assert text in str(error.value)


# Bad bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Request body is empty"),
        (b'{"Payload":', "unexpected EOF"),
        (b'{"Payload": "x', "unexpected EOF"),
        (b"not json", "invalid character 'o' in literal null (expecting 'u')"),
        (b"xyz", "invalid character 'x' looking for beginning of value"),
        (b"{a}", "invalid character 'a' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
    ],
)
def test_a_malformed_body_gets_gos_complaint(body: bytes, text: str) -> None:
    with pytest.raises(Malformed, match=r".*") as error:
        decode(body)

    assert str(error.value) == text


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_value_is_read_and_what_follows_is_ignored(value: Any) -> None:
    assert decode(json.dumps([value]).encode() + b" trailing") == [value]


@given(st.binary(max_size=200))
def test_base64_with_line_breaks_is_read(data: bytes) -> None:
    assert decode_base64(base64.encodebytes(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "position"), [("%%%not", 0), ("aGVsbG8", 4), ("-_-_", 0), ("aGVs%A==", 4), ("aGVsbG8=aGVs", 8)]
)
def test_bad_base64_is_reported_where_go_gives_up(text: str, position: int) -> None:
    with pytest.raises(Malformed) as error:
        decode_base64(text)

    assert str(error.value) == f"illegal base64 data at input byte {position}"


# Events -------------------------------------------------------------------------------------------


def event(index: int, topic: str = "Job", key: str = "a", filter_keys: list[str] | None = None) -> Event:
    return Event(filter_keys, index, key, "default", msgspec.Raw(b"{}"), topic, "T")


@given(st.lists(st.integers(1, 50), unique=True), st.integers(0, 60), st.integers(1, 20))
def test_a_ring_replays_what_it_has_from_an_index_on(indexes: list[int], start: int, size: int) -> None:
    ring = EventRing(size)
    for index in sorted(indexes):
        ring.append(index, [event(index)])
    kept = sorted(indexes)[-(size + 1) :]

    replayed = [frame.index for frame in ring.since(start)]

    assert replayed == ([index for index in kept if index >= start] or kept[-1:])


def test_a_subscription_keeps_only_the_wanted_events_of_a_frame() -> None:
    ring = EventRing()
    ring.append(5, [event(5), event(5, "Evaluation", "e", ["a", ""]), event(5, "Allocation", "x", ["b", ""])])
    (frame,) = ring.since(0)

    selected = Subscription.parse(["Evaluation:a", "Allocation:a"], "default", "").select(frame)

    assert selected is not None
    assert [event.topic for event in selected.events] == ["Evaluation"]
    assert Subscription.parse(["Job"], "other", "").select(frame) is None


# Placement ----------------------------------------------------------------------------------------


def nodes(**of_second: Any) -> list[Node]:
    return [Node("1" * 36, "node-1"), Node("2" * 36, "node-2", node_class="victim", **of_second)]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"LTarget": "${attr.kernel.name}", "Operand": "=", "RTarget": "linux"}, True),
        ({"LTarget": "${node.class}", "Operand": "=", "RTarget": "gpu"}, False),
        ({"LTarget": "${node.datacenter}", "Operand": "regexp", "RTarget": "^dc"}, True),
        ({"LTarget": "${meta.rack}", "Operand": "is_set", "RTarget": ""}, True),
        ({"LTarget": "${meta.nope}", "Operand": "is_set", "RTarget": ""}, False),
        ({"LTarget": "${meta.rack}", "Operand": "!=", "RTarget": "r2"}, True),
        ({"LTarget": "${meta.tags}", "Operand": "set_contains", "RTarget": "a,c"}, True),
        ({"LTarget": "${meta.tags}", "Operand": "set_contains_any", "RTarget": "x,c"}, True),
        ({"LTarget": "${meta.cores}", "Operand": ">=", "RTarget": "8"}, True),
        ({"LTarget": "${meta.version}", "Operand": "version", "RTarget": ">= 1.2, < 2"}, True),
        ({"LTarget": "${meta.version}", "Operand": "version", "RTarget": "~> 1.2"}, True),
        ({"LTarget": "${meta.version}", "Operand": "semver", "RTarget": "> 1.10"}, False),
    ],
)
def test_a_constraint_is_met_or_not(constraint: dict[str, str], *, expected: bool) -> None:
    meta = {"rack": "r1", "tags": "a, b, c", "cores": "16", "version": "1.9.3"}
    node = Node("1" * 36, "node-1", meta=meta)

    assert satisfied(constraint, node) is expected


def test_a_node_is_found_and_scored() -> None:
    node, metrics = place(only_group(fields={"Constraints": on_node(2)}), nodes(), Plan())

    assert node is not None
    assert node.name == "node-2"
    assert metrics.constraint_filtered == {"${node.unique.name} = node-2": 1}
    assert metrics.nodes_available == {"dc1": 2}
    assert (metrics.score_meta_data or [])[0].scores.keys() == {
        "binpack",
        "job-anti-affinity",
        "node-reschedule-penalty",
        "node-affinity",
    }


def test_a_full_dimension_is_named() -> None:
    task = mock(Resources={"CPU": 100, "MemoryMB": 500})

    node, metrics = place(only_group(task), nodes(memory=400)[1:], Plan())

    assert node is None
    assert metrics.dimension_exhausted == {"memory": 1}
    assert metrics.class_exhausted == {"victim": 1}
    assert (metrics.resources_exhausted or {})["t"]["MemoryMB"] == 500


def test_one_plan_counts_what_it_has_placed() -> None:
    wanted = only_group(mock(Resources={"CPU": 100, "MemoryMB": 10}))
    cluster, plan = nodes(cpu=150), Plan()
    cluster[0].eligible = False

    first, _ = place(wanted, cluster, plan)
    second, metrics = place(wanted, cluster, plan)

    assert first is cluster[1]
    assert second is None
    assert metrics.dimension_exhausted == {"cpu": 1}


def test_a_node_that_failed_before_is_avoided() -> None:
    cluster = nodes()

    node, _ = place(only_group(), cluster, Plan(), avoid={cluster[0].id})

    assert node is cluster[1]


# Restarts and rules -------------------------------------------------------------------------------


def test_restarts_within_the_interval_are_counted_against_the_policy() -> None:
    tracker = RestartTracker({"Attempts": 1, "Interval": 10 * SECOND, "Delay": SECOND, "Mode": "fail"})

    first = tracker.next(100 * SECOND)
    second = tracker.next(105 * SECOND)

    assert first.delay is not None
    assert SECOND <= first.delay <= 1.25 * SECOND
    assert second.delay is None
    assert second.event.restart_reason == ('Exceeded allowed attempts 1 in interval 10s and mode is "fail"')


def test_an_interval_that_has_passed_forgives() -> None:
    tracker = RestartTracker({"Attempts": 1, "Interval": 10 * SECOND, "Delay": SECOND, "Mode": "fail"})
    tracker.next(100 * SECOND)

    later = tracker.next(120 * SECOND)

    assert later.event.type == "Restarting"


def test_mode_delay_waits_for_the_next_interval() -> None:
    tracker = RestartTracker({"Attempts": 1, "Interval": 10 * SECOND, "Delay": 0, "Mode": "delay"})
    tracker.next(100 * SECOND)

    verdict = tracker.next(104 * SECOND)

    assert verdict.delay == 6 * SECOND
    assert verdict.event.restart_reason == "Exceeded allowed attempts, applying a delay"


def test_policies_are_read_from_hcl() -> None:
    rules = read_rules('namespace "team-*" {\n  policy = "read"\n  capabilities = ["dispatch-job"]\n}\n')

    assert {"read-job", "list-jobs", "dispatch-job"} <= rules["team-*"]
    assert "submit-job" not in rules["team-*"]
