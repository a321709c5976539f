"""The policy file while a worker runs: changes are taken up, and a fault never replaces a good policy."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from worker.core.model import Request
from worker.errors import NotAllowed, SettingsInvalid
from worker.runtime.policy import PolicyFile

pytestmark = pytest.mark.anyio

RENDER = '[streams.requests]\njobs = ["render"]\n'
ENCODE = '[streams.requests]\njobs = ["encode"]\n'


def allowed(file: PolicyFile) -> list[str]:
    passed = []
    for job in ("render", "encode"):
        try:
            file.policy.check("requests", Request(job), "default", "")
        except NotAllowed:
            continue
        passed.append(job)
    return passed


def swap(folder: Path, content: str, revision: str) -> None:
    """As the kubelet changes a ConfigMap's files: a new folder, and one rename of a link to it."""
    (folder / revision).mkdir()
    (folder / revision / "policy.toml").write_text(content)
    (folder / "..data.new").symlink_to(revision)
    (folder / "..data.new").rename(folder / "..data")


async def test_a_changed_file_is_in_force_after_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RENDER)
    file = PolicyFile(path)
    before, version = allowed(file), file.version

    path.write_text(ENCODE)

    assert await file.look()
    assert (before, allowed(file)) == (["render"], ["encode"])
    assert file.version != version


async def test_a_change_that_the_time_stamp_and_the_length_do_not_tell_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RENDER)
    known = path.stat()
    file = PolicyFile(path)

    path.write_text(ENCODE)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))

    assert path.stat().st_size == known.st_size
    assert await file.look()


async def test_a_config_map_s_swapped_link_is_followed(tmp_path: Path) -> None:
    swap(tmp_path, RENDER, "..1")
    (tmp_path / "policy.toml").symlink_to("..data/policy.toml")
    file = PolicyFile(tmp_path / "policy.toml")

    swap(tmp_path, ENCODE, "..2")

    assert await file.look()
    assert allowed(file) == ["encode"]


@pytest.mark.parametrize("fault", ["[streams.requests]\njobs = 3\n", "[[[", "\udc80", None, "#" * 1_048_577])
async def test_a_fault_keeps_the_old_policy_and_is_told_once(
    tmp_path: Path, fault: str | None, log_lines: list[MutableMapping[str, Any]]
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RENDER)
    told: list[str] = []
    file = PolicyFile(path, told.append)
    if fault is None:
        path.unlink()
    else:
        path.write_bytes(fault.encode(errors="surrogateescape"))

    looks = [await file.look() for _ in range(3)]
    logged = [line["event"] for line in log_lines]
    path.write_text(RENDER)
    await file.look()

    assert (looks, allowed(file)) == ([False] * 3, ["render"])
    assert logged == ["policy.kept"]
    assert [bool(one) for one in told] == [False, True, False]
    assert file.fault == ""


async def test_an_unchanged_file_is_not_read_into_a_new_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RENDER)
    file = PolicyFile(path)
    policy = file.policy

    path.touch()

    assert not await file.look()
    assert file.policy is policy


def test_at_start_a_fault_is_an_error_with_every_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("a = 1\nb = 2\n")

    with pytest.raises(SettingsInvalid) as caught:
        PolicyFile(path)

    assert len(str(caught.value).splitlines()) == 2


async def test_without_a_file_everything_is_allowed_and_nothing_is_looked_at() -> None:
    file = PolicyFile(None)

    assert not await file.look()
    assert (allowed(file), file.version) == (["render", "encode"], "")
