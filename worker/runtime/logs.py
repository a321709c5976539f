"""Sets up logging: one line per event, secrets taken out last, floods of one error thinned.

Knows nothing of which events there are: they are fixed words, and their data are fields.
"""

import json
import logging
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from worker.core.instants import format_rfc3339_us
from worker.core.redact import MASK, without_userinfo

SENSITIVE = frozenset(
    {"token", "password", "passwd", "secret", "authorization", "cookie", "payload", "meta", "fields"}
)
"""Words that make a field's name one whose value is masked: `token`, `x_nomad_token`, `request-meta`."""
TELLING = frozenset({"file", "bytes", "count", "expiry"})
"""Last words of a name that tells of such a thing without holding it: `token_file`, `payload_bytes`."""

NOISY = ("httpx", "httpcore", "aiohttp", "aiohttp.access", "redis", "asyncio", "hpack")
"""Libraries whose every request would be a line: heard from WARNING on."""

REPEAT_SECONDS = 10.0
REPEATED_LEVELS = frozenset({"warning", "error", "critical"})
KINDS_REMEMBERED = 256
NAMES_REMEMBERED = 1_000
SECRET_LENGTH_MIN = 4
"""Shorter ones are not searched for: they would mask innocent text, and tell an attacker nothing."""

Event = MutableMapping[str, Any]


class Redactor:
    """A structlog processor: masks sensitive fields, users in URLs, and every known secret anywhere.

    Put last before the renderer, so that nothing can add a secret after it.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self._names: dict[Any, tuple[str, bool]] = {}
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: str) -> None:
        """Mask this text too from now on: for secrets that are read from files while running."""
        if len(secret) < SECRET_LENGTH_MIN or secret in self._secrets:
            return
        self._secrets |= {secret}
        self._names.clear()
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        """The event with everything secret in it masked."""
        return event if self._innocent(event) else self._masked(event)

    def _innocent(self, event: Event) -> bool:
        """Whether there is nothing to mask, as one look at all texts together tells of nearly every event."""
        texts = []
        for name, value in event.items():
            known = self._names.get(name) or self._name(name)
            if known[1] or known[0] != name:
                return False
            if type(value) is str:
                texts.append(value)
            elif value is not None and type(value) not in {int, float, bool}:
                return False
        joined = "\n".join(texts)
        if "://" in joined:
            return False
        # One after the other: the pattern of them all takes many times as long.
        return not any(secret in joined for secret in self._secrets)

    def text(self, text: str) -> str:
        """Mask a text."""
        masked = without_userinfo(text)
        return self._pattern.sub(MASK, masked) if self._pattern else masked

    def _masked(self, fields: Mapping[Any, Any]) -> dict[str, Any]:
        masked = {}
        for name, value in fields.items():
            known = self._names.get(name) or self._name(name)
            masked[known[0]] = MASK if known[1] and value else self._clean(value)
        return masked

    def _name(self, name: Any) -> tuple[str, bool]:
        """A field's name as it is written, and whether its value is masked; names are few, and come again."""
        text = str(name)
        if len(self._names) >= NAMES_REMEMBERED:
            self._names.clear()
        self._names[name] = known = self.text(text), _is_sensitive(text)
        return known

    def _clean(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case Mapping():
                return self._masked(value)
            case bytes() | bytearray():
                return f"<{len(value)} bytes>"
            case list() | tuple() | set() | frozenset():
                return [self._clean(inner) for inner in value]
            case _:
                # Rendered here: the renderer would call repr or str after the masking.
                return self.text(str(value))


class RepeatLimiter:
    """A structlog processor: of equal warnings and errors at most one in `seconds`.

    Equal are those with the same event and `code`. The next one let through carries how many were
    `suppressed`. An outage would otherwise write one line per message and try.
    """

    def __init__(
        self, seconds: float = REPEAT_SECONDS, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        """Let an event through, or drop it.

        Raises:
            structlog.DropEvent: it repeats one just seen. An event with a traceback is never dropped.
        """
        if event.get("level") not in REPEATED_LEVELS or event.get("exc_info"):
            return event
        kind = (str(event.get("event")), str(event.get("code", "")))
        now = self._monotonic()
        last, suppressed = self._seen.get(kind, (float("-inf"), 0))
        if now - last < self._seconds:
            self._seen[kind] = (last, suppressed + 1)
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        self._seen[kind] = (now, 0)
        self._seen.move_to_end(kind)
        if len(self._seen) > KINDS_REMEMBERED:
            self._seen.popitem(last=False)
        return event


def configure(
    *,
    form: str,
    level: str,
    worker: str,
    redactor: Redactor,
    stream: TextIO | None = None,
    lasting: bool = False,
) -> None:
    """Set up structlog and, going the same way, the standard library's logging.

    Args:
        form: `json` or `console`.
        level: least severe level written.
        worker: this process's name, on every line.
        redactor: kept by the caller, who may teach it more secrets.
        stream: where lines go; standard error by default, for standard output is for commands' results.
        lasting: this is the process's last set-up, which its loggers may keep.
    """
    out = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]

    def add_origin(_logger: Any, _method: str, event: Event) -> Event:
        event["at"] = format_rfc3339_us(time.time_ns() // 1_000)
        event["worker"] = worker
        return event

    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        add_origin,
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        redactor,
        _renderer(form, out),
    ]
    writer = _Writer(out)
    structlog.configure(
        processors=[*common, RepeatLimiter(), *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        # Not by way of the standard library: that doubles what a line costs, and each message writes five.
        logger_factory=lambda *_: writer,
        # Loggers are made at import time, before this runs: none may keep the set-up of then, nor one that
        # is made for a while.
        cache_logger_on_first_use=lasting,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _Writer:
    """Writes lines. Those that cannot be written (a closed pipe, a full disk) are lost, and nothing else."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        try:
            with self._lock:
                self._out.write(f"{line}\n")
                self._out.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = exception = msg


def _json(_logger: Any, _method: str, event: Event) -> str:
    try:
        return msgspec.json.encode(event).decode()
    except (TypeError, ValueError, OverflowError):
        # Half a character, or a number beyond 64 bits: the slower one knows how to write them.
        return json.dumps(event, default=str)


def _renderer(form: str, out: TextIO) -> structlog.typing.Processor:
    if form == "json":
        return _json
    # Plain: a traceback with local variables would show what the redactor took out.
    return structlog.dev.ConsoleRenderer(
        colors=out.isatty(), timestamp_key="at", exception_formatter=structlog.dev.plain_traceback
    )


def _is_sensitive(name: str) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    return words[-1] not in TELLING and not SENSITIVE.isdisjoint(words)
