"""`make soak`: SEED, MESSAGES, SEEDS (so many in a row), TOPOLOGY and LIMIT_SECONDS from the environment.

Prints the seed first, so that a soak that failed, or hung, can be run again with the same plan.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.plan import Plan
from tests.soak.soak import soak

MESSAGES = 10_000
SECONDS_PER_MESSAGE = 0.15
"""A generous bound: half of it is the rate that a busy pair of cores manages under faults."""
SECONDS_AT_LEAST = 240.0


def main() -> int:
    """Run as many soaks as asked for. Returns the exit code: 0 if each went as promised."""
    asked = os.environ.get
    first = int(asked("SEED") or random.SystemRandom().randrange(1_000_000))
    messages = int(asked("MESSAGES") or MESSAGES)
    topology = asked("TOPOLOGY") or "standalone"
    limit = float(asked("LIMIT_SECONDS") or SECONDS_AT_LEAST + messages * SECONDS_PER_MESSAGE)
    if topology not in {"standalone", "sentinel"}:
        print(f"TOPOLOGY must be standalone or sentinel, not {topology}", file=sys.stderr)  # noqa: T201
        return 2
    failed = []
    for seed in range(first, first + int(asked("SEEDS") or 1)):
        again = f"SEED={seed} MESSAGES={messages} TOPOLOGY={topology} make soak"
        print(f"{again}\n  (at most {limit:.0f} s)", flush=True)  # noqa: T201
        plan = Plan(seed, messages, "sentinel" if topology == "sentinel" else "standalone")
        # Kept where it did not go as promised: the workers' logs are in there.
        folder = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-"))
        try:
            report = asyncio.run(soak(plan, folder, limit, _tell))
        except BaseException as error:
            print(f"seed {seed} did not come to its end: {error!r}; logs in {folder}", flush=True)  # noqa: T201
            raise
        print(report, flush=True)  # noqa: T201
        if report.faults:
            failed.append(seed)
            print(f"  logs in {folder}", flush=True)  # noqa: T201
            continue
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return 1 if failed else 0


_STARTED = time.monotonic()


def _tell(text: str) -> None:
    print(f"  {time.monotonic() - _STARTED:7.1f} {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
