"""`dispatch-worker policy`: faults and answers as people and pipelines see them, with exit codes."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli import app

DOCS = Path(__file__).parents[2] / "docs"
RUNNER = CliRunner()
POLICY = """
[streams.requests]
jobs = ["render"]
forced_meta = { origin = "queue" }

[limits.tenants."*"]
cap = 3
weight = 2

[retries.render]
on = ["lost"]
max_attempts = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def test_a_valid_file_is_told_so(file: Path) -> None:
    checked = RUNNER.invoke(app, ["policy", "check", str(file)])

    assert (checked.exit_code, checked.stdout) == (
        0,
        f"{file}: valid: 1 stream tables, 1 limits, 1 retry rules\n",
    )


def test_every_fault_is_told_and_the_exit_code_is_one() -> None:
    checked = RUNNER.invoke(app, ["policy", "check", "-"], input="a = 1\n[limits]\ncap = 'x'\n")
    as_json = RUNNER.invoke(app, ["policy", "check", "-", "--json"], input="a = 1\n[limits]\ncap = 'x'\n")

    assert (checked.exit_code, as_json.exit_code) == (1, 1)
    assert "-: limits.cap: expected int, got str" in checked.output
    assert json.loads(as_json.stdout)["faults"] == [
        "a: unknown; known are limits, retries, streams, version",
        "limits.cap: expected int, got str",
    ]


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path, name: str) -> None:
    checked = RUNNER.invoke(app, ["policy", "check", str(tmp_path / name)])

    assert checked.exit_code == 1
    assert "cannot be read" in checked.output


def test_a_request_that_passes_is_explained_with_what_holds_for_it(file: Path) -> None:
    words = ["policy", "explain", "--job", "render", "--tenant", "acme", "--meta", "who=ada=1"]
    explained = RUNNER.invoke(app, [*words, "--json"], env={"WORKER_ALLOW_FILE": str(file)})
    for_people = RUNNER.invoke(app, words, env={"WORKER_ALLOW_FILE": str(file)})

    told = json.loads(explained.stdout)
    assert (explained.exit_code, told["allowed"], told["table"]) == (0, True, "requests")
    assert told["meta"] == {"who": "ada=1", "origin": "queue"}
    assert told["meta_from"] == {"who": "request", "origin": "forced"}
    assert told["caps"] == [{"scope": "tenant", "name": "acme", "most": 3}]
    assert (told["weight"], told["retry"]["glob"], told["retry"]["max_attempts"]) == (2, "render", 2)
    assert for_people.stdout.startswith('allowed by streams."requests"\n')
    assert "cap: tenant 'acme' 3 in flight" in for_people.stdout


def test_a_request_that_is_refused_is_told_by_its_rule(file: Path) -> None:
    explained = RUNNER.invoke(app, ["policy", "explain", "--file", str(file), "--job", "encode"])
    other = RUNNER.invoke(
        app, ["policy", "explain", "--file", str(file), "--job", "render", "--stream", "low", "--json"]
    )

    assert explained.exit_code == 1
    assert "not allowed by the rule jobs of the stream requests [request.not_allowed]" in explained.stdout
    assert "jobs: broken" in explained.stdout
    assert other.exit_code == 1
    assert json.loads(other.stdout)["table"] is None


def test_a_file_with_faults_explains_nothing() -> None:
    explained = RUNNER.invoke(app, ["policy", "explain", "--file", "-", "--job", "render"], input="a = 1")

    assert explained.exit_code == 2
    assert "a: unknown" in explained.output


def test_every_example_of_the_reference_is_a_valid_policy() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", (DOCS / "policy.md").read_text(), re.DOTALL | re.MULTILINE)

    assert len(examples) >= 4
    for example in examples:
        checked = RUNNER.invoke(app, ["policy", "check", "-"], input=example)
        assert checked.exit_code == 0, checked.output
