"""The policy of a running worker process: changed, spoilt and mended while messages come in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes.fleet import Fleet, WorkerProcess, fleet, until
from tests.processes.jobs import scripted

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

LOOKS_SECONDS = 30.0
"""The file is looked at every 5 s; this bound allows for a machine that others use too."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, [scripted("render"), scripted("encode")]) as made:
        yield made


def only(job: str) -> str:
    return f'[streams.requests]\njobs = ["{job}"]\n'


async def verdicts(world: Fleet) -> tuple[str, str]:
    """How a request for each job ends now."""
    ids = [await world.send(job=job) for job in ("render", "encode")]
    first, second = await world.all_final(ids, 30)
    return str(first.verdict), str(second.verdict)


async def reload_is(worker: WorkerProcess, value: float) -> None:
    async def so() -> bool:
        return await worker.metric("config_last_reload_successful") == value

    await until(so, LOOKS_SECONDS, f"the metric of the last reload is {value}")


async def test_a_policy_is_changed_kept_when_it_is_spoilt_and_taken_up_when_it_is_mended(
    world: Fleet, tmp_path: Path
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(only("render"))
    worker = await world.start(WORKER_ALLOW_FILE=str(path))
    first = await verdicts(world)

    path.write_text(only("encode") + "jobz = 1\n")
    await reload_is(worker, 0)
    spoilt, reasons = await verdicts(world), await worker.not_ready()
    told = (await worker.get("/status")).json()["policy"]["fault"]
    path.write_text(only("encode"))
    await reload_is(worker, 1)
    mended = await verdicts(world)

    assert first == spoilt == ("succeeded", "rejected")
    assert mended == ("rejected", "succeeded")
    assert reasons == {}
    assert "streams.requests.jobz: unknown" in told
    assert [len(worker.logged(event)) for event in ("policy.kept", "policy.loaded")] == [1, 1]
