"""Reads a job file, JSON or HCL, and returns the job as Nomad would register it.

Knows nothing of the simulator that runs the job.
"""

import json
from pathlib import Path
from typing import Any

from worker.dev.simulator import hcl, jobspec
from worker.dev.simulator.hcl_values import HclError
from worker.dev.simulator.jobdefaults import canonical_job
from worker.dev.simulator.jobrules import InvalidJob

__all__ = ["InvalidJob", "JobFileError", "canonical_job", "load_job", "parse_hcl"]

_HCL_ENDINGS = (".nomad", ".hcl")


class JobFileError(Exception):
    """A job file cannot be used; `file` is its path, `message` says what is wrong and where."""

    def __init__(self, file: Path, message: str) -> None:
        super().__init__(f"{file}: {message}")
        self.file = file
        self.message = message


def load_job(path: str | Path) -> dict[str, Any]:
    """Read a job file.

    Args:
        path: `.json` as `nomad job run -output` prints it, or the job alone; or HCL in a file that
            ends in `.nomad`, `.nomad.hcl` or `.hcl`. Variables take their defaults.

    Returns:
        The job as `canonical_job` gives it: CamelCase keys, durations in nanoseconds.

    Raises:
        JobFileError: unreadable, malformed, a block that is not supported, or a job Nomad refuses.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileError(file, str(error)) from error
    try:
        if file.suffix == ".json":
            return canonical_job(_parse_json(text))
        if file.suffix in _HCL_ENDINGS:
            return canonical_job(parse_hcl(text))
    except HclError as error:
        raise JobFileError(file, str(error)) from error
    except (json.JSONDecodeError, ModuleNotFoundError) as error:
        raise JobFileError(file, str(error)) from error
    except InvalidJob as error:
        raise JobFileError(file, error.message.strip()) from error
    raise JobFileError(file, "a job file ends in .json, .nomad, .nomad.hcl or .hcl")


def parse_hcl(text: str) -> dict[str, Any]:
    """Return the job of an HCL text with only what the text says, as Nomad's HTTP API takes it.

    Raises:
        HclError: a mistake, or a block or an argument that is not supported.
        ModuleNotFoundError: the HCL parser is not installed; the message says how to install it.
    """
    return jobspec.job_of(hcl.parse(text))


def _parse_json(text: str) -> Any:
    document = json.loads(text)
    return document["Job"] if isinstance(document, dict) and "Job" in document else document
