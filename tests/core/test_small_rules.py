"""Keys, instants, delays: small rules with sharp edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.backoff import Backoff
from worker.core.instants import entry_time_ms, format_rfc3339, parse_rfc3339
from worker.core.keys import Keys
from worker.core.model import MessageKey


@pytest.mark.parametrize(
    ("prefix", "one_slot"), [("{dispatch}", True), ("a{b}c", True), ("dispatch", False), ("{a}{b}", False)]
)
def test_only_a_prefix_with_one_hash_tag_keeps_its_keys_together(prefix: str, *, one_slot: bool) -> None:
    assert Keys(prefix).one_slot is one_slot


def test_every_key_carries_the_prefix() -> None:
    keys = Keys("{t}")

    assert keys.message(MessageKey("high", "1-0")) == "{t}:message:high:1-0"
    assert keys.reply_stream("") == "{t}:replies"
    assert keys.reply_stream("billing") == "{t}:replies:billing"


@given(st.text(max_size=80))
def test_no_reply_name_leads_out_of_the_reply_prefix(text: str) -> None:
    keys = Keys("{t}")
    name = keys.reply_name(text)

    if name:
        assert keys.reply_stream(name) == f"{{t}}:replies:{name}"
        assert ":" not in name


@given(st.integers(0, 4_102_444_800_000))
def test_instants_survive_being_written_down(unix_ms: int) -> None:
    assert parse_rfc3339(format_rfc3339(unix_ms)) == unix_ms


def test_offsets_are_understood_and_required() -> None:
    assert parse_rfc3339("2026-11-24T02:00:00+01:00") == parse_rfc3339("2026-11-24T01:00:00Z")
    with pytest.raises(ValueError, match="offset"):
        parse_rfc3339("2026-11-24T02:00:00")


def test_an_entry_id_tells_its_time_unless_it_was_made_up() -> None:
    assert entry_time_ms("1719999999999-3") == 1_719_999_999_999
    assert entry_time_ms("made-up") == 0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_stays_within_its_bounds(failures: int, chance: float) -> None:
    delay = Backoff(0.1, 15.0).delay(failures, chance)

    assert 0.05 <= delay <= 15.0


def test_delays_double_until_the_most() -> None:
    backoff = Backoff(1.0, 10.0)

    assert [backoff.delay(n, 1.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
