"""One line per event, no secret in any, and no flood of one error."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime.logs import Redactor, RepeatLimiter, configure

CANARY = "c4n4ry-0f-a-s3cr3t"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def started(form: str = "json", level: str = "info", secrets: tuple[str, ...] = (CANARY,)) -> io.StringIO:
    out = io.StringIO()
    configure(form=form, level=level, worker="w-1", redactor=Redactor(secrets), stream=out)
    return out


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_holds_event_level_time_worker_and_what_is_bound() -> None:
    out = started()

    with structlog.contextvars.bound_contextvars(message_id="1-0"):
        structlog.get_logger().info("job.accepted", job_id="render/dispatch-1-a")

    (line,) = lines(out)
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "job.accepted",
        "level": "info",
        "worker": "w-1",
        "message_id": "1-0",
        "job_id": "render/dispatch-1-a",
    }


def test_a_logger_made_before_the_set_up_follows_it() -> None:
    early = structlog.get_logger()
    out = started()

    early.info("late.event")

    assert [line["event"] for line in lines(out)] == ["late.event"]


def test_the_standard_library_logs_the_same_way() -> None:
    out = started()

    logging.getLogger("some.library").warning(
        "slow answer from %s", f"https://user:{CANARY}@nomad.example/v1"
    )

    (line,) = lines(out)
    assert line["event"] == "slow answer from https://***@nomad.example/v1"
    assert (line["logger"], line["worker"], line["level"]) == ("some.library", "w-1", "warning")


@pytest.mark.parametrize("library", ["httpx", "aiohttp.access", "redis"])
def test_libraries_are_heard_from_warning_on(library: str) -> None:
    out = started(level="debug")

    logging.getLogger(library).info("every request")
    logging.getLogger(library).warning("a fault")

    assert [line["event"] for line in lines(out)] == ["a fault"]


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, seen: int) -> None:
    out = started(level=level)
    log = structlog.get_logger()

    for method in (log.debug, log.info, log.warning, log.error):
        method(f"event.{method.__name__}")

    assert len(lines(out)) == seen


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_gets_out_by_any_way(form: str) -> None:
    out = started(form)
    log = structlog.get_logger()

    log.info(
        "a", token=CANARY, note=f"x{CANARY}y", nested={"deep": [CANARY, {"Authorization": "Bearer other"}]}
    )
    log.info("b", payload=b"other", meta={"k": "other"}, **{"X-Nomad-Token": "other"}, raw=b"other")
    log.info("c", url="redis://:oth/er@host:6379/0?password=other")
    log.info(CANARY, **{f"key-{CANARY}": 1})
    logging.getLogger("x").error("e %s", CANARY)
    try:
        {"innocent": 1}[CANARY]
    except KeyError:
        log.exception("f")

    text = out.getvalue()
    assert "KeyError" in text
    assert CANARY not in text
    assert "other" not in text.replace("oth/er", "other").replace("***", "")


def test_a_secret_learnt_later_is_masked_from_then_on() -> None:
    redactor = Redactor()

    before = redactor.text(CANARY)
    redactor.learn(CANARY)

    assert (before, redactor.text(f"<{CANARY}>")) == (CANARY, "<***>")


def test_what_tells_of_a_secret_without_holding_it_is_shown() -> None:
    event = Redactor()(None, "info", {"token_file": "/run/token", "payload_bytes": 12, "token": ""})

    assert event == {"token_file": "/run/token", "payload_bytes": 12, "token": ""}


values = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_whatever_is_logged_the_secret_is_not(event: dict[str, Any]) -> None:
    assert CANARY not in json.dumps(Redactor([CANARY])(None, "info", dict(event)))


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def passes(limiter: RepeatLimiter, **event: Any) -> dict[str, Any] | None:
    try:
        return dict(limiter(None, "", {"level": "error", **event}))
    except structlog.DropEvent:
        return None


def test_of_equal_errors_one_passes_and_the_next_says_how_many_did_not() -> None:
    clock = Hand()
    limiter = RepeatLimiter(10, monotonic=clock)

    first = passes(limiter, event="feed.lost", code="nomad.busy")
    again = [passes(limiter, event="feed.lost", code="nomad.busy") for _ in range(3)]
    other = passes(limiter, event="feed.lost", code="nomad.timeout")
    clock.now = 10
    later = passes(limiter, event="feed.lost", code="nomad.busy")

    assert first == {"level": "error", "event": "feed.lost", "code": "nomad.busy"}
    assert again == [None, None, None]
    assert other is not None
    assert later is not None
    assert later["suppressed"] == 3


def test_information_and_tracebacks_are_never_dropped() -> None:
    limiter = RepeatLimiter(10, monotonic=Hand())

    assert all(passes(limiter, event="a", level="info") for _ in range(3))
    assert all(passes(limiter, event="b", exc_info=True) for _ in range(3))


def test_the_limiter_remembers_a_bounded_number_of_kinds() -> None:
    limiter = RepeatLimiter(10, monotonic=Hand())

    assert all(passes(limiter, event=f"e{number}") for number in range(1000))
    assert len(limiter._seen) <= 256
