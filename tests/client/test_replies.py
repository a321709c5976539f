"""The pure parts of following: shapes of answers, order of IDs, and what importing the client costs."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.client.replies import just_before, order, stream_entries

ENTRIES = [(b"1-0", {b"a": b"1"}), (b"2-0", None)]


@pytest.mark.parametrize("answer", [{b"s": [ENTRIES]}, {b"s": ENTRIES}, [[b"s", ENTRIES]]])
def test_every_shape_of_an_answer_is_read(answer: object) -> None:
    assert stream_entries(answer) == [("1-0", {b"a": b"1"}), ("2-0", {})]


@pytest.mark.parametrize("answer", [None, {}, [], {b"s": []}, {b"s": [[]]}])
def test_an_empty_answer_has_no_entries(answer: object) -> None:
    assert stream_entries(answer) == []


@given(st.integers(0, 10**14), st.integers(0, 10**6))
def test_a_position_before_a_message_is_before_its_replies(milliseconds: int, sequence: int) -> None:
    before = order(just_before(f"{milliseconds}-{sequence}"))

    assert before < (milliseconds, 0) or before == (0, 0)


def test_the_client_needs_redis_and_msgspec_only() -> None:
    heavy = "httpx aiohttp structlog pydantic pydantic_settings typer rich click prometheus_client uvloop"
    code = f"import sys, worker.client; print(*[m for m in '{heavy}'.split() if m in sys.modules])"

    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=60, text=True
    )

    assert found.stdout.split() == []
