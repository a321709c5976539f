"""Which requests a policy lets pass: one case per rule, on either side of it."""

import tomllib

import pytest

from worker.core.model import Request
from worker.core.policy import Policy
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
