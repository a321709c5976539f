"""Which requests a policy lets pass, one case per rule on either side of it; and the limits it sets."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.model import Outcome, Request, Routing, Verdict
from worker.core.policy import Cap, Policy, Rate
from worker.core.policy_explain import RULES, explain
from worker.core.policy_file import Limit, most_specific, read_tables
from worker.errors import NotAllowed, SettingsInvalid

FILE = """
[streams.requests]
jobs = ["render", "batch-*"]
namespaces = ["default"]
regions = [""]
meta_keys = ["who"]
reply_to = ["billing"]
max_priority = 50
max_payload_bytes = 3
tenants = ["", "team-*"]

[streams."*"]
jobs = []
"""


@pytest.fixture
def policy() -> Policy:
    return Policy.parse(tomllib.loads(FILE))


def check(policy: Policy, request: Request, stream: str = "requests", namespace: str = "default") -> None:
    policy.check(stream, request, namespace, "")


@pytest.mark.parametrize(
    "request_",
    [
        Request("render"),
        Request("batch-7", meta={"who": "ada"}, payload=b"abc", priority=50, reply_to="billing"),
    ],
)
def test_what_keeps_every_rule_passes(policy: Policy, request_: Request) -> None:
    check(policy, request_)


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (Request("renderer"), "jobs"),
        (Request("render", meta={"who": "ada", "canary": "x"}), "meta_keys"),
        (Request("render", payload=b"abcd"), "max_payload_bytes"),
        (Request("render", priority=51), "max_priority"),
        (Request("render", reply_to="canary"), "reply_to"),
        (Request("render", tenant="canary"), "tenants"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_name(policy: Policy, request_: Request, rule: str) -> None:
    with pytest.raises(NotAllowed, match=rule) as caught:
        check(policy, request_)

    assert "canary" not in str(caught.value)


def test_places_are_rules_too(policy: Policy) -> None:
    with pytest.raises(NotAllowed, match="namespaces"):
        check(policy, Request("render"), namespace="secret")
    with pytest.raises(NotAllowed, match="regions"):
        policy.check("requests", Request("render"), "default", "mars")


def test_other_streams_have_the_rule_for_any_stream_or_none(policy: Policy) -> None:
    with pytest.raises(NotAllowed, match="jobs"):
        check(policy, Request("render"), stream="low")
    with pytest.raises(NotAllowed, match="no policy"):
        check(Policy.parse({"streams": {}}), Request("render"))


def test_without_a_policy_everything_passes() -> None:
    check(Policy(), Request("anything", meta={"a": "b"}, priority=100))


@pytest.mark.parametrize("text", ["[streams.requests]\njob = []", "[stream.a]", "[streams.a]\njobs = 'x'"])
def test_a_file_with_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid):
        Policy.parse(tomllib.loads(text))


LIMITS = """
[limits]
cap = 100

[limits.jobs."batch-*"]
cap = 20
per_second = 2.5

[limits.jobs."batch-big-*"]
cap = 5
shared = true

[limits.jobs.batch-big-one]
cap = 1

[limits.tenants."*"]
cap = 10

[limits.tenants.acme]
weight = 5

[limits.tenants.""]
per_second = 1
burst = 7

[limits.streams.low]
per_second = 0.5

[retries."*"]
on = ["lost"]
max_attempts = 2

[retries."batch-*"]
on = ["failed", "preempted"]
max_attempts = 3
exit_codes = [75]
backoff_seconds = 4
max_backoff_seconds = 8
"""


@pytest.fixture
def limits() -> Policy:
    return Policy.parse(tomllib.loads(LIMITS))


TOTAL = Cap("total", "", 100)


@pytest.mark.parametrize(
    ("job", "tenant", "expected"),
    [
        ("render", "", [TOTAL]),
        ("render", "umbrella", [TOTAL, Cap("tenant", "umbrella", 10)]),
        ("batch-1", "acme", [TOTAL, Cap("job", "batch-1", 20)]),
        ("batch-big-two", "", [TOTAL, Cap("job", "batch-big-*", 5)]),
        ("batch-big-one", "", [TOTAL, Cap("job", "batch-big-one", 1)]),
    ],
)
def test_each_name_has_the_cap_of_its_most_specific_table(
    limits: Policy, job: str, tenant: str, expected: list[Cap]
) -> None:
    assert list(limits.caps("requests", Routing(job, "default", tenant=tenant))) == expected


def test_rates_allow_a_second_s_worth_at_once_unless_they_say_otherwise(limits: Policy) -> None:
    routing = Routing("batch-1", "default")

    assert set(limits.rates("low", routing)) == {
        Rate("stream", "low", 0.5, 1),
        Rate("job", "batch-1", 2.5, 2),
        Rate("tenant", "", 1, 7),
    }


def test_a_tenant_s_weight_is_one_unless_it_has_another(limits: Policy) -> None:
    assert [limits.weight(tenant) for tenant in ("acme", "umbrella", "")] == [5, 1, 1]
    assert Policy().weight("acme") == 1


def test_without_limits_nothing_is_limited() -> None:
    routing = Routing("render", "default", tenant="acme")

    assert (Policy().caps("requests", routing), Policy().rates("requests", routing)) == ((), ())
    assert Policy().retry("render") is None


@pytest.mark.parametrize(
    ("job", "outcome", "attempt", "again"),
    [
        ("render", Outcome(Verdict.LOST), 1, True),
        ("render", Outcome(Verdict.LOST), 2, False),
        ("render", Outcome(Verdict.FAILED, 1), 1, False),
        ("batch-1", Outcome(Verdict.LOST), 1, False),
        ("batch-1", Outcome(Verdict.PREEMPTED), 2, True),
        ("batch-1", Outcome(Verdict.PREEMPTED), 3, False),
        ("batch-1", Outcome(Verdict.FAILED, 75), 1, True),
        ("batch-1", Outcome(Verdict.FAILED, 1), 1, False),
        ("batch-1", Outcome(Verdict.FAILED), 1, False),
    ],
)
def test_a_run_is_repeated_as_its_rule_says(
    limits: Policy, job: str, outcome: Outcome, attempt: int, *, again: bool
) -> None:
    retry = limits.retry(job)

    assert retry is not None
    assert retry.again(outcome, attempt) is again


@given(attempt=st.integers(1, 100), chance=st.floats(0, 1, exclude_max=True))
def test_the_wait_before_a_repeat_stays_within_its_bounds(attempt: int, chance: float) -> None:
    retry = Policy.parse(tomllib.loads(LIMITS)).retry("batch-1")

    assert retry is not None
    assert 2 <= retry.delay_seconds(attempt, chance) <= 8


META = """
[streams.requests]
meta_keys = ["who", "x-*"]
default_priority = 40
default_meta = { who = "nobody", lane = "slow" }
forced_meta = { origin = "queue" }
"""


def test_meta_and_priority_are_filled_in_and_what_is_forced_wins() -> None:
    policy = Policy.parse(tomllib.loads(META))

    bare = policy.admit("requests", Request("render"), "default", "")
    given = policy.admit("requests", Request("render", meta={"who": "ada"}, priority=70), "default", "")

    assert (bare.priority, bare.meta) == (40, {"who": "nobody", "lane": "slow", "origin": "queue"})
    assert (given.priority, given.meta) == (70, {"who": "ada", "lane": "slow", "origin": "queue"})
    with pytest.raises(NotAllowed, match="meta_keys"):
        # A key that the policy forces is the policy's to give.
        policy.admit("requests", Request("render", meta={"origin": "me"}), "default", "")


FAULTS = """
version = 2
stray = 1

[streams.requests]
jobs = ["render", 3]
job = []
max_priority = "high"
default_meta = { a = 1, b = "2" }

[streams.low]
max_priority = 10
default_priority = 20

[limits]
cap = -1

[limits.jobs."batch-*"]
cap = 1.5

[limits.tenants.acme]
weight = 0
per_second = nan

[retries."batch-*"]
on = ["lost", "cancelled"]

[retries.render]
on = []
max_attempts = 1
"""


def test_every_fault_of_a_file_is_told_at_once_with_its_path_and_no_value() -> None:
    file, faults = read_tables(tomllib.loads(FAULTS))

    assert file is None
    assert {fault.partition(": ")[0] for fault in faults} == {
        "stray",
        "version",
        "streams.requests.jobs[1]",
        "streams.requests.job",
        "streams.requests.max_priority",
        "streams.requests.default_meta.a",
        "limits.cap",
        'limits.jobs."batch-*".cap',
        "limits.tenants.acme.weight",
        "limits.tenants.acme.per_second",
        'retries."batch-*".on[1]',
        'retries."batch-*".max_attempts',
        "retries.render.on",
        "retries.render.max_attempts",
    }
    assert not any("high" in fault or "cancelled" in fault for fault in faults)


CONTRADICTIONS = """
[streams.low]
max_priority = 10
default_priority = 20
default_meta = { a = "1" }
forced_meta = { a = "2" }

[limits.jobs.render]
burst = 3

[retries.render]
on = ["lost"]
max_attempts = 2
exit_codes = [1]
backoff_seconds = 700
"""


def test_rules_that_contradict_each_other_are_faults_too() -> None:
    _, faults = read_tables(tomllib.loads(CONTRADICTIONS))

    assert [fault.partition(": ")[0] for fault in faults] == [
        "streams.low.default_meta.a",
        "streams.low.default_priority",
        "limits.jobs.render.burst",
        "retries.render.backoff_seconds",
        "retries.render.exit_codes",
    ]


KEYS = st.sampled_from(
    [
        "streams",
        "limits",
        "retries",
        "version",
        "jobs",
        "tenants",
        "cap",
        "on",
        "*",
        "meta_keys",
        "default_meta",
    ]
)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, json_like, max_size=4))
def test_any_tables_are_a_policy_or_have_faults_with_a_path(tables: dict[str, object]) -> None:
    file, faults = read_tables(tables)

    assert (file is None) == bool(faults)
    assert all(": " in fault for fault in faults)


names = st.text(alphabet="ab-*?", min_size=1, max_size=4)


@given(
    tables=st.dictionaries(names, st.builds(Limit), max_size=6),
    name=st.text("ab-", max_size=4),
    data=st.data(),
)
def test_which_table_counts_does_not_hang_on_their_order(
    tables: dict[str, Limit], name: str, data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(tables.items()))))

    found, again = most_specific(tables, name), most_specific(shuffled, name)

    assert (found and found[0]) == (again and again[0])


def test_one_request_is_explained_rule_by_rule(policy: Policy) -> None:
    refused = explain(policy, "requests", Request("render", priority=51), "secret", "")
    passed = explain(policy, "requests", Request("render"), "default", "")

    assert (refused.allowed, refused.table) == (False, "requests")
    assert refused.error_message == "not allowed by the rule namespaces of the stream requests"
    assert [rule for rule, answer in refused.rules.items() if answer == "broken"] == [
        "namespaces",
        "max_priority",
    ]
    assert passed.allowed
    assert tuple(passed.rules) == RULES
    assert set(passed.rules.values()) == {"kept"}
