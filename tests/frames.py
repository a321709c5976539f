"""Reads an event stream frame by frame, whatever came together."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from worker.core.frames import Frame


async def one_by_one(events: AsyncGenerator[Sequence[Frame], None]) -> AsyncGenerator[Frame, None]:
    """Each frame of a stream; closed, it closes the stream."""
    async with aclosing(events):
        async for frames in events:
            assert frames
            for frame in frames:
                yield frame
