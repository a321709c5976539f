"""Decides which named error stands for an answer of Nomad that is no success.

Knows nothing of HTTP clients: status and text in, error out.

Nomad answers most permanent refusals with a plain-text 500, so the text decides and not the status. A server
that passed the request on puts one or more RPC prefixes before the text.
"""

import re

from worker.errors import (
    ChildUnknown,
    JobNotParameterized,
    JobStopped,
    JobUnknown,
    MetaMissing,
    MetaUnpermitted,
    NomadBusy,
    NomadDenied,
    NomadNoLeader,
    NomadRefused,
    NomadTimeout,
    NomadUnavailable,
    PayloadForbidden,
    PayloadOversize,
    PayloadRequired,
    PriorityOutOfRange,
    RegionUnknown,
    WorkerError,
)

TEXT_LIMIT_CHARACTERS = 300
"""How much of Nomad's text an error carries. Texts repeat what was sent, e.g. every unpermitted meta key."""

_RPC_PREFIXES = re.compile(r"(?:rpc error:\s*|RPC Error::\s*\d+,\s*)+")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")

_PERMANENT: tuple[tuple[re.Pattern[str], type[NomadRefused]], ...] = tuple(
    (re.compile(text, re.DOTALL), error)
    for text, error in (
        (r"parameterized job not found", JobUnknown),
        (r"missing parameterized job ID", JobUnknown),
        (r'Specified job ".*" is not a parameterized job', JobNotParameterized),
        (r'Specified job ".*" is stopped', JobStopped),
        (r"Payload provided but forbidden by parameterized job", PayloadForbidden),
        (r"Payload is not provided but required by parameterized job", PayloadRequired),
        (r"Payload exceeds maximum size; \d+ > \d+", PayloadOversize),
        (r"Dispatch request included unpermitted metadata keys: \[.*\]", MetaUnpermitted),
        (r"Dispatch did not provide required meta keys: \[.*\]", MetaMissing),
        (r"dispatch job priority must be between \[-?\d+, -?\d+\]", PriorityOutOfRange),
        (r"No path to region", RegionUnknown),
    )
)

_DENIED = re.compile(
    r"Permission denied|ACL token not found|ACL token expired|failed to parse signed token.*"
    r"|Job registration, dispatch, and scale are disabled.*",
    re.DOTALL,
)

_NOT_THERE = re.compile(r'job not found|alloc not found|eval not found|Unknown allocation ".*"', re.DOTALL)

_NO_LEADER = re.compile(
    r"No cluster leader|node is not the leader|leadership lost|leadership transfer|consistent reads",
    re.IGNORECASE,
)

_PEER_LOST = re.compile(r"stream closed|failed to get conn|session shutdown|lead thread didn't|\bEOF\b")
"""Texts that mean the death of the server behind the one that answers, when an RPC prefix is before them."""

_MOVED = range(300, 400)
_CLIENT_FAULTS = range(400, 500)
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _REQUEST_TIMEOUT, _TOO_MANY = 401, 403, 404, 408, 429


def refusal(status: int, text: str, *, retry_after_seconds: float | None = None) -> WorkerError:
    """The error for an answer of Nomad's HTTP API whose status is not 2xx.

    Args:
        status: the HTTP status.
        text: the body, decoded. Secrets must be masked by the caller; Nomad never repeats a payload or a
            meta value.
        retry_after_seconds: the answer's `Retry-After`, where it had one.

    Returns:
        - NomadRefused or a kind of it: the same request would be refused again.
        - NomadDenied: 401, 403, or such a text behind an RPC prefix.
        - ChildUnknown: 404 in Nomad's own words; a foreign 404 says nothing about a job.
        - NomadUnavailable or a kind of it: it may pass. `maybe_applied` is False only for answers that
            are given before the request is looked at: 3xx, 429 and a foreign 404.
    """
    said = _RPC_PREFIXES.sub("", text.strip(), count=1)
    forwarded = said != text.strip()
    message = _message(status, text)
    match status:
        case _ if status in _MOVED:
            # Nomad redirects nothing that this worker asks: the address leads somewhere else.
            return NomadUnavailable(f"{message} (redirected: check the address)", maybe_applied=False)
        case _ if status in (_UNAUTHORIZED, _FORBIDDEN):
            return NomadDenied(message)
        case _ if status == _TOO_MANY:
            return NomadBusy(message, maybe_applied=False, retry_after_seconds=retry_after_seconds)
        case _ if status == _REQUEST_TIMEOUT:
            return NomadTimeout(message, retry_after_seconds=retry_after_seconds)
    for pattern, error in _PERMANENT:
        if pattern.fullmatch(said):
            return error(message)
    if _DENIED.fullmatch(said):
        return NomadDenied(message)
    if status == _NOT_FOUND:
        if _NOT_THERE.fullmatch(said):
            return ChildUnknown(message)
        return NomadUnavailable(f"{message} (not Nomad's 404: check the address)", maybe_applied=False)
    if status in _CLIENT_FAULTS:
        return NomadRefused(message)
    if _NO_LEADER.search(said) or (forwarded and _PEER_LOST.search(said)):
        return NomadNoLeader(message, retry_after_seconds=retry_after_seconds)
    return NomadUnavailable(message, retry_after_seconds=retry_after_seconds)


def bounded(text: str, limit_characters: int = TEXT_LIMIT_CHARACTERS) -> str:
    """The text on one line, without control characters, cut to `limit_characters`."""
    line = _UNPRINTABLE.sub(" ", text[: limit_characters * 4]).strip()
    return line if len(line) <= limit_characters else f"{line[: limit_characters - 1]}…"


def _message(status: int, text: str) -> str:
    return f"Nomad answered {status}: {bounded(text) or '(no text)'}"
