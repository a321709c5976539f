"""The rules about the code as a whole: who may import whom, how long a file may be, and what codes mean.

`cli → runtime → flow | adapters → ports → core → errors`; flow and adapters meet in runtime only.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from worker.errors import WorkerError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "worker").rglob("*.py"))
LONGEST_FILE = {"worker": 400, "tests": 600}
"""Lines. A test file is a list: it is read one test at a time."""
LONGER_FILES: dict[str, str] = {
    "worker/settings/model.py": "the list of all settings: each is a name, a default and a reason",
}
"""Files that may be longer, each with its reason."""

CORE = {"errors", "core"}
MAY_IMPORT = {
    "errors": set[str](),
    "core": {"errors"},
    "ports": CORE,
    "flow": CORE | {"ports"},
    "adapters": CORE | {"ports"},
    "settings": CORE,
    "client": CORE | {"adapters.redis.connection", "adapters.redis.records"},
    "deadletter": CORE | {"client"},
    "runtime": CORE | {"ports", "flow", "adapters", "settings", "client", "deadletter"},
    "dev": CORE | {"ports", "adapters", "settings", "runtime", "client"},
    "cli": CORE | {"ports", "adapters", "settings", "runtime", "client", "deadletter", "dev"},
}
"""Part to parts, besides itself and the version; `testing` offers `dev` to users."""

CORE_LIBRARIES = {"msgspec"}


def named(path: Path) -> str:
    """`worker/core/keys.py`."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """`worker.core.keys` of `worker/core/keys.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those inside functions and type checks included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield node.lineno, name if name in MODULES else node.module


def part_of(module: str) -> str:
    """`core` of `worker.core.keys`; empty for the package itself, which holds the version."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    part = part_of(module)
    if part not in MAY_IMPORT:
        assert module in {"worker", "worker.__main__", "worker.testing"}, "a new part: give it its rule"
        return
    allowed = {f"worker.{name}" for name in MAY_IMPORT[part] | {part}} | {"worker"}

    wrong = [
        f"line {line}: {name}"
        for line, name in imports_of(MODULES[module])
        if name.split(".")[0] == "worker"
        and not any(name == one or (one != "worker" and name.startswith(f"{one}.")) for one in allowed)
    ]

    assert wrong == []


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in CORE])
def test_the_rules_need_the_standard_library_and_msgspec_only(module: str) -> None:
    known = sys.stdlib_module_names | CORE_LIBRARIES | {"worker"}

    assert [name for _, name in imports_of(MODULES[module]) if name.split(".")[0] not in known] == []


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) == "core"])
def test_the_rules_neither_wait_nor_read_clocks_nor_draw_lots(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    waiting = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
    outside = {"asyncio", "time", "random", "secrets", "os", "socket", "threading", "subprocess"}
    effects = [name for _, name in imports_of(MODULES[module]) if name.split(".")[0] in outside]

    assert (waiting, effects) == ([], [])


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=named)
def test_no_file_is_too_long_to_be_read(path: Path) -> None:
    length = len(path.read_text().splitlines())
    name = named(path)
    most = LONGEST_FILE[name.partition("/")[0]]

    assert length <= most or LONGER_FILES.get(name), f"{length} lines"
    assert length > most or name not in LONGER_FILES, "no longer an exception: take it off the list"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_by_saying_what_it_is_about(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def errors(kind: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    yield kind
    for more_special in kind.__subclasses__():
        yield from errors(more_special)


def test_every_error_has_a_code_of_its_own() -> None:
    for module in MODULES:
        if part_of(module) not in {"__main__", "cli"}:
            import_module(module)

    of_worker = [kind for kind in errors() if kind.__module__.startswith("worker.")]
    inherited = [kind.__name__ for kind in of_worker if "code" not in vars(kind)]
    twice = [code for code, count in Counter(kind.code for kind in of_worker).items() if count > 1]

    assert len(of_worker) > 20
    assert (inherited, twice) == ([], [])
