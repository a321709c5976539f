"""The form of a policy file: its tables, what each may hold, and every fault of one at once.

Knows nothing of TOML, of files, or of what a rule means for a request (`policy`).
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

POLICY_VERSION = 1
DIALECT = "https://json-schema.org/draft/2020-12/schema"

T = TypeVar("T", bound=msgspec.Struct)

RetriedVerdict = Literal["failed", "oom_killed", "timed_out", "lost", "drained", "preempted", "unplaced"]
"""Ends after which a run may be repeated. Not among them: `stopped` and `cancelled`, which somebody wanted,
and `unknown_gc`, for the work may have been done."""

Globs = Annotated[list[str], Meta(description="Globs (`*`, `?`, `[ab]`). Absent: anything. Empty: nothing.")]
Strings = Annotated[dict[str, str], Meta(description="Meta keys with their values.")]
Cap = Annotated[int, Meta(ge=0, le=1_000_000, description="Most jobs in flight, over all replicas. 0: none.")]
PerSecond = Annotated[float, Meta(gt=0, le=100_000, description="Most dispatches a second, on average.")]
Burst = Annotated[int, Meta(ge=1, le=1_000_000, description="Most dispatches at once after a pause.")]
Weight = Annotated[int, Meta(ge=1, le=1_000, description="Share of the turns while others wait too.")]
Priority = Annotated[int, Meta(ge=1, le=32_767)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class StreamRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may come in through one request stream, and what is put into it."""

    jobs: Globs | None = None
    namespaces: Globs | None = None
    regions: Globs | None = None
    tenants: Globs | None = None
    meta_keys: Globs | None = None
    reply_to: Globs | None = None
    """Names of reply streams; the shared one is always allowed."""
    max_priority: Priority | None = None
    max_payload_bytes: Annotated[int, Meta(ge=0)] | None = None
    default_priority: Priority | None = None
    """Of a request that names none."""
    default_meta: Strings = {}
    """For keys that the request does not give."""
    forced_meta: Strings = {}
    """Whatever the request gives."""


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of one name may be in flight, and how often it may be dispatched."""

    cap: Cap | None = None
    per_second: PerSecond | None = None
    burst: Burst | None = None
    """Default: what one second allows, at least 1."""
    shared: bool = False
    """Whether all names that a glob matches share one limit, instead of having one each."""

    @property
    def bucket(self) -> int:
        """The burst in force, where there is a rate."""
        return self.burst or max(1, math.floor(self.per_second or 0))


class TenantLimit(Limit, frozen=True, forbid_unknown_fields=True):
    """The same for a tenant, with its share. The tenant of a request without one is `""`."""

    weight: Weight | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits over all replicas. Of several globs that match a name, the most specific one counts."""

    cap: Cap | None = None
    jobs: dict[str, Limit] = {}
    tenants: dict[str, TenantLimit] = {}
    namespaces: dict[str, Limit] = {}
    streams: dict[str, Limit] = {}


class RetryRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a run of a job is repeated, as a new dispatched job. Off without such a rule."""

    on: Annotated[list[RetriedVerdict], Meta(min_length=1)]
    max_attempts: Annotated[int, Meta(ge=2, le=100, description="Runs, the first one included.")]
    exit_codes: list[int] | None = None
    """Repeat `failed` after these only."""
    backoff_seconds: Seconds = 10.0
    """About the wait before the second run; it doubles with each further one, and has jitter."""
    max_backoff_seconds: Seconds = 600.0


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy file, version 1 (TOML)."""

    version: Literal[1] = 1
    streams: dict[str, StreamRule] | None = None
    """By request stream; `*` is for those without a table of their own. Absent: everything is allowed."""
    limits: Limits = Limits()
    retries: dict[str, RetryRule] = {}
    """By job, as globs; the most specific one that matches counts."""


def read_tables(tables: Mapping[str, Any]) -> tuple[PolicyFile | None, list[str]]:
    """Check the tables of a policy file.

    Returns:
        The file, or None; and every fault in it, each with its path: `retries."batch-*".on: …`.
    """
    faults = list(_faults(PolicyFile, dict(tables), ""))
    if faults:
        return None, faults
    file = msgspec.convert(tables, PolicyFile)
    faults = list(_contradictions(file))
    return (None if faults else file), faults


def policy_schema() -> dict[str, Any]:
    """JSON Schema of a policy file, as editors and validators read it."""
    (top,), components = msgspec.json.schema_components([PolicyFile], ref_template="#/$defs/{name}")
    definition = components.pop(top["$ref"].rpartition("/")[2])
    definition["description"] = inspect.cleandoc(PolicyFile.__doc__ or "")
    return {"$schema": DIALECT, **definition, "title": "Policy", "$defs": components}


def most_specific(tables: Mapping[str, T], name: str) -> tuple[str, T] | None:
    """The table for a name: its own, else that of the matching glob with the most literal characters.

    A rule on the order of tables would not survive tools that sort them.
    """
    if name in tables:
        return name, tables[name]
    matching = [glob for glob in tables if matches(glob, name)]
    if not matching:
        return None
    glob = max(matching, key=lambda one: (literal_characters(one), one))
    return glob, tables[glob]


def literal_characters(glob: str) -> int:
    """How specific a glob is."""
    return sum(character not in "*?[]" for character in glob)


def matches(glob: str, name: str) -> bool:
    """Whether a glob matches a name, case and all; `*` also matches `/`."""
    return fnmatchcase(name, glob)


def _path(path: str, key: str) -> str:
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else msgspec.json.encode(key).decode()
    return f"{path}.{shown}" if path else shown


def _faults(kind: Any, value: Any, path: str) -> Iterator[str]:
    """Every fault of a value, where `msgspec` itself stops at the first."""
    kind = _without(kind, optional=True)
    plain = _without(kind, optional=True, annotated=True)
    origin, arguments = get_origin(plain), get_args(plain)
    inside: list[str] = []
    if origin is dict and isinstance(value, dict):
        inside = [
            fault for key, one in value.items() for fault in _faults(arguments[1], one, _path(path, key))
        ]
    elif origin is list and isinstance(value, list):
        for at, one in enumerate(value):
            inside += _faults(arguments[0], one, f"{path}[{at}]")
    elif isinstance(plain, type) and issubclass(plain, msgspec.Struct) and isinstance(value, dict):
        inside = list(_table_faults(plain, value, path))
    yield from inside
    if not inside:
        yield from _own_fault(kind, plain, value, path)


def _table_faults(kind: type[msgspec.Struct], value: dict[str, Any], path: str) -> Iterator[str]:
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in sorted(value.keys() - known.keys()):
        yield f"{_path(path, key)}: unknown; known are {', '.join(sorted(known))}"
    for name, field in known.items():
        if name in value:
            yield from _faults(field.type, value[name], _path(path, name))
        elif field.required:
            yield f"{_path(path, name)}: missing"


def _own_fault(kind: Any, plain: Any, value: Any, path: str) -> Iterator[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if get_origin(plain) is Literal:
            told = f"must be one of {', '.join(str(one) for one in get_args(plain))}"
        else:
            # The path stands in front already, and is exact.
            told = str(error).partition(" - at `")[0].replace("`object`", "a table").replace("`", "")
            told = told[:1].lower() + told[1:]
        yield f"{path}: {told}"


def _without(kind: Any, *, optional: bool = False, annotated: bool = False) -> Any:
    """A type without `| None` or `Annotated` around it."""
    if optional and type(None) in get_args(kind):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    return get_args(kind)[0] if annotated and get_origin(kind) is Annotated else kind


def _contradictions(file: PolicyFile) -> Iterator[str]:
    """What is well-formed and cannot be meant."""
    for name, rule in (file.streams or {}).items():
        path = _path("streams", name)
        for key in sorted(set(rule.default_meta) & set(rule.forced_meta)):
            yield f"{_path(f'{path}.default_meta', key)}: is forced too; one of the two is of no use"
        ceiling = rule.max_priority
        if ceiling is not None and (rule.default_priority or 0) > ceiling:
            yield f"{path}.default_priority: above max_priority ({ceiling})"
    for scope in ("jobs", "tenants", "namespaces", "streams"):
        limits: Mapping[str, Limit] = getattr(file.limits, scope)
        for name, limit in limits.items():
            if limit.burst is not None and limit.per_second is None:
                yield f"{_path(f'limits.{scope}', name)}.burst: needs per_second"
    for name, retry in file.retries.items():
        path = _path("retries", name)
        if retry.backoff_seconds > retry.max_backoff_seconds:
            most = f"{retry.max_backoff_seconds:g}"
            yield f"{path}.backoff_seconds: above max_backoff_seconds ({most})"
        if retry.exit_codes is not None and "failed" not in retry.on:
            yield f'{path}.exit_codes: counts for "failed" only, which is not in `on`'
