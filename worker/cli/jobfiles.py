"""Reads a folder of job files for the commands that run the Nomad simulator.

Knows nothing of what is in them.
"""

from pathlib import Path
from typing import Any

import typer

PATTERNS = ("*.json", "*.nomad", "*.hcl")


def load_jobs(folder: Path) -> list[dict[str, Any]]:
    """All jobs of a folder, in the order of the files' names.

    Raises:
        typer.BadParameter: it is no folder, holds no job file, or one cannot be read.
    """
    from worker.dev.simulator.jobfile import JobFileError, load_job  # noqa: PLC0415 - heavy

    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    if not files:
        message = f"{folder} holds no job files ({', '.join(PATTERNS)})"
        raise typer.BadParameter(message)
    jobs = []
    for file in files:
        try:
            jobs.append(load_job(file))
        except JobFileError as error:
            raise typer.BadParameter(str(error)) from error
    return jobs
