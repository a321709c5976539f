"""docs/logs.md lists every event that the code logs, with its level and its fields."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.observability.server import ROOT

LEVELS = {"debug", "info", "warning", "error", "exception"}
LOGGERS = {"log", "_LOG"}
NAMED_BY = re.compile(r"[a-z_]+\.[a-z_]+")
ROW = re.compile(r"^\| `([a-z_.]+)` \| (\w+) \| (.*?) \| (.+) \|$", re.MULTILINE)
OF_EVERY_LINE = {"exc_info"}


class Event(NamedTuple):
    """One event as it is logged or documented."""

    name: str
    level: str
    fields: frozenset[str]


def logged() -> Iterator[tuple[str, Event]]:
    """Every call of a logger: where, and what."""
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name(logger), level), [first, *_], keywords) if (
                    logger in LOGGERS and level in LEVELS
                ):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    assert isinstance(first, ast.Constant), f"{where}: the event's name is not fixed"
                    fields = frozenset(str(one.arg) for one in keywords) - OF_EVERY_LINE
                    yield where, Event(str(first.value), "error" if level == "exception" else level, fields)


def documented() -> dict[str, Event]:
    rows = ROW.findall((ROOT / "docs" / "logs.md").read_text())
    return {
        name: Event(name, level, frozenset(re.findall(r"`(\w+)`", fields))) for name, level, fields, _ in rows
    }


def test_every_event_is_documented_as_it_is_logged() -> None:
    assert {event for _, event in logged()} == set(documented().values())


def test_the_list_is_in_order_and_names_no_event_twice() -> None:
    names = [name for name, *_ in ROW.findall((ROOT / "docs" / "logs.md").read_text())]

    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("where", "event"), list(logged()), ids=lambda one: str(one) if isinstance(one, str) else ""
)
def test_an_event_is_two_fixed_words(where: str, event: Event) -> None:
    assert NAMED_BY.fullmatch(event.name), where
