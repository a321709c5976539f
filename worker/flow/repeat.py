"""After step 4: a run that ended may be followed by another, where the policy says so.

Knows nothing of how a run ended or of how the next one is dispatched; the rule is `core.repeat`'s.
"""

import random
from collections.abc import Callable

from worker.core.lifecycle import Ended, Fact
from worker.core.model import Record
from worker.core.policy import Policy
from worker.core.repeat import repeat
from worker.flow.admit import Admit
from worker.flow.message import Message
from worker.ports import Clock


class Repeat:
    """Decides once per run, when its end is certain.

    Args:
        policy: the one in force now.
    """

    def __init__(self, admit: Admit, clock: Clock, policy: Callable[[], Policy]) -> None:
        self._admit = admit
        self._clock = clock
        self._policy = policy

    async def instead(self, message: Message, record: Record, fact: Fact) -> Fact:
        """`Repeated` in place of an end that a retry rule covers; any other fact as it is.

        Raises:
            RedisUnavailable: the entry could not be read, which the next run needs.
        """
        retry = self._policy().retry(record.routing.job)
        if retry is None or message.cancelled or not isinstance(fact, Ended):
            return fact
        if not retry.again(fact.outcome, record.attempt):
            return fact
        await self._admit.load(message)
        repeated = repeat(
            record,
            fact.outcome,
            retry,
            now_ms=self._clock.now_ms(),
            chance=random.random(),  # noqa: S311
            deadline_ms=message.request.deadline_ms if message.request else None,
        )
        return repeated or fact
