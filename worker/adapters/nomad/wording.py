"""Puts names into Nomad's paths and filter expressions so that they can mean nothing but themselves.

Knows nothing of requests. What is refused here can exist in Nomad, but no HTTP request can name it.
"""

import re
from urllib.parse import quote

_PLAIN = re.compile(r"[A-Za-z0-9_.:-]+")
_SPECIAL = re.compile(r'["\\\x00-\x1f\x7f]')
_DOTS = frozenset({"", ".", ".."})


def addressable(job_id: str) -> bool:
    """Whether Nomad's HTTP API has a path for this job: it has none for an empty ID, `.` and `..`."""
    return job_id not in _DOTS


def job_path(job_id: str, endpoint: str = "") -> str:
    """The path of a job or of one of its endpoints, e.g. `/v1/job/a%2Fb/dispatch`.

    Raises:
        ValueError: the ID has no path, see `addressable`.
    """
    if not addressable(job_id):
        message = f"no path for job {job_id!r}"
        raise ValueError(message)
    return f"/v1/job/{quote(job_id, safe='')}{endpoint}"


def literal(text: str) -> str:
    r"""A string of Nomad's filter language.

    Double quotes are for plain names alone: `"/a"` would be read as a path into the datum and match
    nothing, and `\"` ends the string early (both seen on Nomad 2.0). Raw strings take everything but a
    backtick, and drop carriage returns.
    """
    if _PLAIN.fullmatch(text):
        return f'"{text}"'
    if "`" not in text and "\r" not in text:
        return f"`{text}`"
    return '"' + _SPECIAL.sub(lambda found: f"\\x{ord(found[0]):02x}", text) + '"'


def children_prefix(parent: str) -> str:
    """The prefix of the IDs of a parameterized job's children, and of no neighbour's."""
    return f"{parent}/dispatch-"
