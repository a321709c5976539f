"""The image's recipe: the linter is content, and what only a reader would see is kept."""

import re

import pytest

from tests.deploy.chart import CHECKS, ROOT, run, tool

TEXT = (ROOT / "Dockerfile").read_text()


@pytest.mark.deploy
def test_hadolint_finds_nothing() -> None:
    ended = run(tool(CHECKS / "hadolint"), "-", given=TEXT)

    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.deploy
def test_hadolint_finds_what_is_wrong() -> None:
    ended = run(tool(CHECKS / "hadolint"), "-", given=TEXT.replace("USER 65532:65532", "USER root"))

    assert ended.returncode != 0
    assert "DL3002" in ended.stdout


def test_every_stage_stands_on_the_base_that_one_may_pin() -> None:
    stages = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)

    assert stages == ["${PYTHON_IMAGE}"] * 2
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:\d+\.\d+-slim$", TEXT, re.MULTILINE)


def test_dependencies_come_as_wheels_by_hash() -> None:
    for install in re.findall(r"pip .*?install (.*?)(?: &&|\n[A-Z&])", TEXT.replace("\\\n", " "), re.DOTALL):
        assert "--require-hashes" in install or "--no-index" in install, install


def test_nothing_secret_is_baked_in() -> None:
    assert re.findall(r"(?i)^(?:ARG|ENV).*(?:token|password|secret)", TEXT, re.MULTILINE) == []


def test_only_what_is_needed_is_sent_to_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert ignored[1] == "*"
    copied = {
        word for line in re.findall(r"^COPY (?!--)(.*) \S+$", TEXT, re.MULTILINE) for word in line.split()
    }
    allowed = {line.removeprefix("!").split("/")[0] for line in ignored if line.startswith("!")}
    assert {word.rstrip("/") for word in copied} == allowed
