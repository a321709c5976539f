"""What the flow tells whoever counts: one method for each thing worth counting, with no ID among its values.

Knows nothing of how it is counted. No method fails, waits, or keeps what it is given.
"""

from typing import Protocol

from worker.core.model import Outcome, Place, Record, Verdict


class Instruments(Protocol):
    """What happened to messages. `seconds` are measured on a steady clock."""

    def polled(self, stream: str) -> None:
        """A read of this stream was answered, with entries or without."""
        ...

    def received(self, stream: str, wait_seconds: float) -> None:
        """An entry was read for the first time, this long after Redis gave it its ID."""
        ...

    def redelivered(self, stream: str, reason: str) -> None:
        """An entry came again. `reason`: `reconciled` (its first reading was lost), `taken_over`."""
        ...

    def taken_over(self, count: int) -> None:
        """Messages of a dead worker became this one's."""
        ...

    def dispatched(self, job: str, outcome: str, seconds: float) -> None:
        """Nomad answered a dispatch. `outcome`: `created`, `repeated`, or the code of its refusal."""
        ...

    def decided(self, stream: str, seconds: float) -> None:
        """Nomad has a request's job, or it ended without one, this long after it fell due."""
        ...

    def retried(self, code: str) -> None:
        """A step failed with an error that may pass, and will be tried again."""
        ...

    def let_go(self, code: str) -> None:
        """A message was dropped for another worker to hold."""
        ...

    def repeated(self, verdict: Verdict) -> None:
        """A run that ended so is going to be followed by another one of its message."""
        ...

    def settled(self, record: Record, outcome: Outcome, seconds: float) -> None:
        """The final reply was published, this long after the message was received."""
        ...

    def duplicate_stopped(self) -> None:
        """A second dispatched job of one attempt was stopped."""
        ...

    def feed_opened(self, place: Place) -> None:
        """An event stream gave its first line."""
        ...

    def feed_lost(self, place: Place, code: str) -> None:
        """An event stream was refused, ended, broke, or fell silent."""
        ...

    def feed_read(self, place: Place, frames: int, heartbeats: int) -> None:
        """So many lines of an event stream were read, so many of them heartbeats."""
        ...

    def swept(self, corrections: int) -> None:
        """A sweep over the live jobs ended, having found so many ends that no event had told."""
        ...


class NoInstruments:
    """Counts nothing: for tests of the flow."""

    def polled(self, stream: str) -> None:
        """Do nothing."""

    def received(self, stream: str, wait_seconds: float) -> None:
        """Do nothing."""

    def redelivered(self, stream: str, reason: str) -> None:
        """Do nothing."""

    def taken_over(self, count: int) -> None:
        """Do nothing."""

    def dispatched(self, job: str, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def decided(self, stream: str, seconds: float) -> None:
        """Do nothing."""

    def retried(self, code: str) -> None:
        """Do nothing."""

    def let_go(self, code: str) -> None:
        """Do nothing."""

    def repeated(self, verdict: Verdict) -> None:
        """Do nothing."""

    def settled(self, record: Record, outcome: Outcome, seconds: float) -> None:
        """Do nothing."""

    def duplicate_stopped(self) -> None:
        """Do nothing."""

    def feed_opened(self, place: Place) -> None:
        """Do nothing."""

    def feed_lost(self, place: Place, code: str) -> None:
        """Do nothing."""

    def feed_read(self, place: Place, frames: int, heartbeats: int) -> None:
        """Do nothing."""

    def swept(self, corrections: int) -> None:
        """Do nothing."""
