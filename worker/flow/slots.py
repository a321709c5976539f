"""The dispatch slots: who may ask Nomad now, in the order of asking, as many at once as the pace allows.

Knows nothing of what is done in a slot. The number itself is `core.pace`'s.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from worker.core.pace import Brake, Pace
from worker.ports import Clock

READ_AHEAD = 4
"""Messages waiting for a slot for each slot: several reads' worth while Nomad answers within milliseconds."""
ANSWER_ROUNDS = 2.5
"""Rounds of this process's event loop in the time that an answer seems to take: one until the request is
written, half a one until the answer is seen to be there, one until its reader is awake."""
EPOCH_SECONDS = 60
"""On Redis's clock, so that all replicas measure an unloaded Nomad at the same time."""


class Slots:
    """A semaphore whose size changes. Every call takes the same time, however many wait.

    Args:
        round_seconds: how long a round of the event loop takes now: a worker that is busy must not take its
            own delay for Nomad's, and slow down over it.
    """

    def __init__(self, pace: Pace, clock: Clock, *, round_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._pace = pace
        self._clock = clock
        self._round_seconds = round_seconds
        self._used = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._left = 0
        """Of those in the queue, how many gave up waiting."""
        self.on_hunger: Callable[[], object] = lambda: None
        """Called when so few wait that more should be read."""
        self.full = False
        """Whether Nomad has so much waiting that no more should be read for it."""

    @property
    def limit(self) -> int:
        """Most slots in use at once, now."""
        return self._pace.limit

    @property
    def brake(self) -> Brake:
        """What holds the limit down now."""
        return self._pace.brake

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._queue) - self._left

    def room(self, to_dispatch: int) -> int:
        """How many more messages should be read: enough to keep every slot busy, in reads worth making.

        What is not read stays in Redis, where other replicas may take it.

        Args:
            to_dispatch: messages in hand that are in a slot or on their way to one.
        """
        wanted = (1 + READ_AHEAD) * self._pace.limit - to_dispatch
        return 0 if self.full or wanted < READ_AHEAD * self._pace.limit // 2 else wanted

    async def take(self) -> None:
        """Wait for a slot. Cancelled, it takes none."""
        if self._used < self._pace.limit and not self.waiting:
            self._used += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # Given at the very moment: the next one in the queue gets it.
                self.give_back()
            else:
                self._left += 1
            raise

    def give_back(self) -> None:
        """Somebody is done with a slot."""
        self._used -= 1
        self._admit()

    def answered(self, seconds: float) -> None:
        """Nomad answered a dispatch as it should, after so long."""
        seconds = max(0.0, seconds - ANSWER_ROUNDS * self._round_seconds())
        epoch = self._clock.now_ms() // (EPOCH_SECONDS * 1000)
        self._pace.answered(self._clock.monotonic(), seconds, self._used, epoch)
        self._admit()

    def failed(self, seconds: float) -> None:
        """Nomad did not answer a dispatch, or not as it should, after so long."""
        self._pace.failed(self._clock.monotonic(), seconds)

    def pressed(self, evaluations: float, children: float) -> None:
        """How hard what Nomad carries presses on the pace, from 0 to 1; at 1 nothing more should be read."""
        self._pace.pressed(evaluations, children)
        self.full = evaluations >= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._used < self._pace.limit:
            turn = self._queue.popleft()
            if turn.cancelled():
                self._left -= 1
                continue
            self._used += 1
            turn.set_result(None)
        if self.waiting <= READ_AHEAD * self._pace.limit // 2:
            self.on_hunger()
