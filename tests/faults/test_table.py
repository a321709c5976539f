"""The tables in docs/reliability.md and the tests tell of each other: every row has tests, and they exist."""

import ast
import re
from collections.abc import Iterator

from tests.faults.test_crashes import CRASHES
from tests.processes.fleet import ROOT

TESTS = ROOT / "tests"
ROWS = [*(f"F{number:02}" for number in range(1, 56)), *(f"c{number:02}" for number in range(1, 31))]
ROW_OF_NAME = re.compile(r"(?<![A-Za-z0-9])([Fc]\d\d)(?![0-9])")


def rows() -> dict[str, str]:
    """Row to its cell of tests."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    found = re.findall(r"^\| ([Fc]\d\d) \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert len(dict(found)) == len(found), "a row is there twice"
    return dict(found)


def cited(cell: str) -> Iterator[tuple[str, str, list[str]]]:
    """Folder and module, test, and parameters."""
    for test in re.findall(r"`([^`]+)`", cell):
        module, _, rest = test.partition("::")
        name = rest.partition("[")[0]
        yield module if "/" in module else f"faults/{module}", name, re.findall(r"\[([^\]]+)\]", rest)


def names_in(module: str) -> list[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    functions = (ast.AsyncFunctionDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")]


def test_every_row_is_in_the_tables() -> None:
    assert sorted(rows()) == sorted(ROWS)


def test_every_test_that_a_row_names_exists() -> None:
    for row, cell in rows().items():
        found = list(cited(cell))
        assert found, f"{row} names no test"
        for module, name, parameters in found:
            assert name in names_in(module), f"{row}: {module} has no {name}"
            assert set(parameters) <= set(CRASHES), f"{row}: no such steps"


def test_every_test_that_names_a_row_is_named_by_it() -> None:
    table = {row: {name for _, name, _ in cited(cell)} for row, cell in rows().items()}
    for path in (TESTS / "faults").glob("test_*.py"):
        for name in names_in(f"faults/{path.stem}"):
            for row in ROW_OF_NAME.findall(name.replace("_", " ")):
                assert name in table[row], f"{row} does not name {name}"


def test_every_crash_of_a_step_is_named_by_its_rows() -> None:
    table = rows()
    for step in CRASHES:
        for row in ROW_OF_NAME.findall(step.replace("_", " ")):
            assert f"[{step}]" in table[row], f"{row} does not name {step}"
