"""Finds the parameterized job that a name or the beginning of one means, as Nomad's command does.

Only where Nomad's address is given: a producer needs no access to Nomad. What cannot be asked is taken as
an exact ID, for the queue is there to outlast Nomad's absence.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.cli.monitor import nomads_answer
from worker.cli.text import table
from worker.core.model import Place, Request
from worker.errors import NomadDenied, NomadUnavailable, RegionUnknown

if TYPE_CHECKING:
    from worker.adapters.nomad.answers import Parent
    from worker.cli.session import Environment

LOOK_SECONDS = 3.0
EVERYWHERE = "*"
"""The namespace that stands for all of them, as with Nomad's command."""


class JobNotFound(Exception):
    """No parameterized job, or several, of which none has exactly this ID. The text is Nomad's own."""


async def find_job(environment: "Environment", request: Request) -> Request:
    """The request with the ID and the namespace of the job that its `job` means.

    Raises:
        JobNotFound.
    """
    name, place = request.job, Place(request.region or "", request.namespace or "")
    if not environment.nomad_address:
        return request
    try:
        async with asyncio.timeout(LOOK_SECONDS), environment.nomad() as nomad:
            parents = await nomad.parents(place, name)
    except RegionUnknown as error:
        message = f'Error querying job prefix "{name}": {nomads_answer(str(error))}'
        raise JobNotFound(message) from error
    except (NomadUnavailable, NomadDenied, TimeoutError):
        return request
    job_id = choose(name, parents)
    if place.namespace != EVERYWHERE:
        return replace(request, job=job_id)
    return replace(request, job=job_id, namespace=next(one.namespace for one in parents if one.id == job_id))


def choose(name: str, parents: "Sequence[Parent]") -> str:
    """The one that is meant, among the jobs whose ID begins with `name`.

    Raises:
        JobNotFound.
    """
    ids = [parent.id for parent in parents]
    if name in ids:
        return name
    if len(ids) == 1:
        return ids[0]
    if not ids:
        message = f'No parameterized job(s) with prefix or ID "{name}" found'
        raise JobNotFound(message)
    rows = [
        (one.id, f"{one.type}/parameterized", str(one.priority), one.status, _submitted(one.submit_time))
        for one in parents
    ]
    lines = table(("ID", "Type", "Priority", "Status", "Submit Date"), rows)
    message = "\n".join([f'Prefix "{name}" matched multiple jobs', "", *lines])
    raise JobNotFound(message)


def job_names(incomplete: str) -> list[str]:
    """For shell completion: jobs that begin so; nothing when Nomad is not to be asked, or not at once."""
    import os  # noqa: PLC0415 - for completion alone

    from worker.cli.session import Environment  # noqa: PLC0415 - heavy
    from worker.errors import WorkerError  # noqa: PLC0415

    environment = Environment.read(os.environ)
    if not environment.nomad_address:
        return []

    async def ask() -> list[str]:
        async with asyncio.timeout(1.0), environment.nomad() as nomad:
            place = Place(environment.region, environment.namespace)
            return [parent.id for parent in await nomad.parents(place, incomplete)]

    try:
        return asyncio.run(ask())
    except (WorkerError, TimeoutError):
        return []


def _submitted(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
