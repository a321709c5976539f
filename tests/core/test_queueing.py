"""The limits as the queue's script reads them."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa.lua51 import LuaRuntime  # type: ignore[import-untyped]  # has none

from worker.core.policy import Cap, Policy
from worker.core.policy_file import matches
from worker.core.queueing import encode_limits, limited, lua_pattern, slots_text

NAMES = st.text(st.sampled_from("abcR09-_./%^$][!é☃"), max_size=8)
GLOBS = st.text(st.sampled_from("abcR09-_./%^$é☃*?[]!"), max_size=10)
LUA = LuaRuntime(encoding=None)
FIND = LUA.eval(
    b"function(name, pattern)"
    b"  pattern = string.gsub(pattern, '\\1', '[\\1-\\127\\194-\\244][\\128-\\191]*')"
    b"  pattern = string.gsub(pattern, '\\2', '\\194-\\244')"
    b"  pattern = string.gsub(pattern, '\\3', '[\\128-\\191]*')"
    b"  return string.find(name, pattern) ~= nil end"
)


def holds_others(glob: str) -> bool:
    """Whether a set of the glob names characters beyond ASCII, which are matched by none."""
    return any(not part.isascii() for part in re.findall(r"\[!?\]?[^\]]*\]", glob))


@given(glob=GLOBS, name=NAMES)
def test_a_lua_pattern_matches_what_the_glob_does(glob: str, name: str) -> None:
    if not holds_others(glob):
        assert FIND(name.encode(), lua_pattern(glob).encode()) == matches(glob, name)


@pytest.mark.parametrize(
    ("glob", "name", "matching"),
    [
        ("render-*", "render-4k/x", True),
        ("render-*", "prerender-4k", False),
        ("a.b", "axb", False),
        ("t?", "té", True),
        ("t?", "t", False),
        ("[!a]x", "éx", True),
        ("[a-c]x", "bx", True),
        ("[]]x", "]x", True),
        ("[z", "[z", True),
    ],
)
def test_globs_by_example(glob: str, name: str, matching: bool) -> None:  # noqa: FBT001
    assert matches(glob, name) == matching
    assert FIND(name.encode(), lua_pattern(glob).encode()) == matching


def test_nothing_is_limited_without_a_limit() -> None:
    assert not limited(Policy())
    assert not limited(Policy.parse({"streams": {"*": {"jobs": ["a"]}}, "retries": {}}))
    assert encode_limits(Policy()) == msgspec.msgpack.encode({})


@pytest.mark.parametrize(
    "limits", [{"cap": 3}, {"tenants": {"*": {}}}, {"jobs": {"a": {"per_second": 1}}}], ids=str
)
def test_any_limit_or_share_makes_messages_queue(limits: dict[str, Any]) -> None:
    assert limited(Policy.parse({"limits": limits}))


def test_the_most_specific_glob_is_told_first_with_all_that_counts() -> None:
    policy = Policy.parse(
        {
            "limits": {
                "cap": 9,
                "jobs": {"*": {"cap": 1}, "ren*": {"per_second": 2.5, "shared": True}},
                "tenants": {"acme": {"weight": 3}},
            }
        }
    )

    told = msgspec.msgpack.decode(encode_limits(policy))

    assert [one["glob"] for one in told["job"]["globs"]] == ["ren*", "*"]
    assert told["job"]["names"]["ren*"] == {"per_second": 2.5, "burst": 2, "shared": True}
    assert told["tenant"]["names"] == {"acme": {"weight": 3}}
    assert told["total"]["names"] == {"": {"cap": 9}}


def test_slots_are_lines_of_scope_and_name() -> None:
    assert slots_text([Cap("total", "", 1), Cap("job", "a b", 2)]) == "total\t\njob\ta b"
