"""What the status page shows: values and the reasons for which some of them are not to be had.

Knows nothing of HTML. Redis is asked for each part by itself, so that the page lives without it.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar
from urllib.parse import quote

from worker.adapters.redis.lookback import DEAD_LETTERS_READ, DeadLetter, RedisLookback, Story
from worker.adapters.redis.survey import WorkerSeen
from worker.core.backlog import Backlog
from worker.core.model import MessageKey
from worker.core.pace import Brake
from worker.core.reply import Reply
from worker.errors import WorkerError
from worker.runtime.wiring import Parts

REDIS_SECONDS = 2.0
"""For all of one page. A page that is late is worse than one that says what is missing."""
SHOWN = 100
RESULTS_SHOWN = 25
DEAD_LETTERS_SHOWN = DEAD_LETTERS_READ

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T_co]):
    """One part of the page: its value, or why there is none."""

    value: T_co | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class InHand:
    """One message that this worker holds."""

    key: MessageKey
    job: str
    state: str
    """The phase, or the last step of its job that was told."""
    stopping: str
    dispatched_job_id: str
    job_url: str
    age_seconds: float
    retries: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The page's first view."""

    worker: str
    version: str
    at_ms: int
    not_ready: Mapping[str, str]
    draining: bool
    in_flight: int
    in_flight_limit: int
    dispatch_limit: int
    """Most dispatches on their way at once, now; `dispatch_most` at best."""
    dispatch_most: int
    brake: Brake
    """What holds that limit down."""
    backlog: Part[Backlog]
    workers: Part[Sequence[WorkerSeen]]
    messages: Sequence[InHand]
    """The oldest ones."""
    results: Part[Sequence[Reply]]
    dead_letters: Part[Sequence[DeadLetter]]

    @property
    def dead_by_reason(self) -> list[tuple[str, str, int]]:
        """Verdict, code and count over the dead letters read, the most frequent first."""
        counts = Counter((letter.verdict, letter.code) for letter in self.dead_letters.value or ())
        return [(verdict, code, count) for (verdict, code), count in counts.most_common()]


@dataclass(frozen=True, slots=True)
class Found:
    """The page's second view: what was searched for, and what there is."""

    worker: str
    version: str
    at_ms: int
    sought: str
    fault: str = ""
    """Why nothing was searched for, or why Redis did not tell."""
    stories: Sequence[Story] = ()
    """One per stream that has a message of this ID."""
    job_urls: dict[str, str] = field(default_factory=dict)
    """Addresses in Nomad's web interface by dispatched job ID."""
    letters: Mapping[MessageKey, DeadLetter] = field(default_factory=dict)
    """Those of the last dead letters that are meant."""
    may_act: bool = False
    """Whether actions are set up."""
    told: str = ""
    """What became of an action, as the address says it."""
    refused: str = ""
    """Why an action was not carried out."""


@dataclass(frozen=True, slots=True)
class Dead:
    """The page's third view: the last dead letters."""

    worker: str
    version: str
    at_ms: int
    total: int | None
    letters: Part[Sequence[DeadLetter]]


class Viewer:
    """Makes the views of one worker."""

    def __init__(self, parts: Parts, version: str) -> None:
        self._parts = parts
        self._version = version
        self._lookback = RedisLookback(parts.redis.ops, parts.keys)

    async def overview(self) -> Overview:
        """The state of things now, read at most for `REDIS_SECONDS`."""
        parts = self._parts
        backlog, workers, results, dead = await asyncio.gather(
            _part(parts.survey.backlog),
            _part(parts.survey.workers),
            _part(self._lookback.results),
            _part(self._lookback.dead_letters),
        )
        messages = self._in_hand()
        return Overview(
            worker=parts.settings.name,
            version=self._version,
            at_ms=parts.clock.now_ms(),
            not_ready=parts.health.not_ready(),
            draining=parts.pipeline.draining,
            in_flight=len(parts.pipeline),
            in_flight_limit=parts.settings.max_in_flight,
            dispatch_limit=parts.slots.limit,
            dispatch_most=parts.settings.dispatch_concurrency,
            brake=parts.slots.brake,
            backlog=backlog,
            workers=workers,
            messages=sorted(messages, key=lambda one: -one.age_seconds)[:SHOWN],
            results=Part(results.value and results.value[:RESULTS_SHOWN], results.missing),
            dead_letters=dead,
        )

    async def find(self, sought: str) -> Found:
        """Messages by ID, `1719999999999-0` or `<stream>:1719999999999-0`."""
        sought = sought.strip()[:200]
        stream, _, entry_id = sought.rpartition(":")
        streams = self._parts.settings.stream_names
        found = Found(self._parts.settings.name, self._version, self._parts.clock.now_ms(), sought)
        if not sought:
            return found
        if not _ENTRY_ID.fullmatch(entry_id):
            return replace(found, fault="A message ID has the form 1719999999999-0, as XADD returns it.")
        if stream and stream not in streams:
            return replace(
                found, fault=f"This worker reads no stream of that name, but {', '.join(streams)}."
            )
        keys = [MessageKey(name, entry_id) for name in streams if stream in {"", name}]
        told = [await _part(partial(self._lookback.story, key)) for key in keys]
        stories = [part.value for part in told if part.value is not None]
        dead = await _part(self._lookback.dead_letters) if stories else Part(())
        return replace(
            found,
            fault=next((part.missing for part in told if part.missing), ""),
            stories=stories,
            letters={letter.key: letter for letter in dead.value or () if letter.key in keys},
            job_urls={
                story.record.job_id: self._job_url(story.record.job_id, story.record.routing.namespace)
                for story in stories
                if story.record
            },
        )

    async def dead(self) -> Dead:
        """The last dead letters."""
        backlog, letters = await asyncio.gather(
            _part(self._parts.survey.backlog), _part(self._lookback.dead_letters)
        )
        return Dead(
            self._parts.settings.name,
            self._version,
            self._parts.clock.now_ms(),
            backlog.value.dead_letters if backlog.value else None,
            letters,
        )

    def _in_hand(self) -> list[InHand]:
        now_ms = self._parts.clock.now_ms()
        shown = []
        for message in self._parts.pipeline.messages:
            record = message.record
            since_ms = record.received_at_ms if record and record.received_at_ms else message.due_ms
            shown.append(
                InHand(
                    key=message.key,
                    job=message.job,
                    state=(record.shown or record.phase.value) if record else "reading",
                    stopping=record.stopping if record else "",
                    dispatched_job_id=record.job_id if record else "",
                    job_url=self._job_url(record.job_id, record.routing.namespace) if record else "",
                    age_seconds=max(0, now_ms - since_ms) / 1000,
                    retries=message.failures,
                )
            )
        return shown

    def _job_url(self, job_id: str, namespace: str) -> str:
        base = self._parts.settings.ui_base_url
        return f"{base}/ui/jobs/{quote(job_id, safe='')}@{namespace or 'default'}" if base and job_id else ""


async def _part(read: Callable[[], Awaitable[T]]) -> Part[T]:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            return Part(await read())
    except TimeoutError:
        return Part(None, f"Redis did not answer within {REDIS_SECONDS:g} s.")
    except WorkerError as error:
        return Part(None, f"{error.code}: {error}")
