"""How long to wait before the next try: exponential, with full jitter, between two bounds.

Knows nothing of what is tried; randomness is handed in.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds. The ceiling doubles from `first_seconds` to `most_seconds`."""

    first_seconds: float = 0.1
    most_seconds: float = 15.0

    def delay(self, failures: int, chance: float) -> float:
        """The wait after the n-th failure in a row.

        Args:
            failures: at least 1.
            chance: uniform in [0, 1): half of the ceiling is certain, the other half is up to it,
                so that replicas that failed together do not come back together.
        """
        # 2**30 is past every ceiling; without the bound a long outage would make huge integers.
        ceiling = min(self.most_seconds, self.first_seconds * (1 << min(failures - 1, 30)))
        return ceiling * (0.5 + chance / 2)
