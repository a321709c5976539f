"""Kills the process groups registered with it once the process that registered them is gone.

Runs as a script of its own, on the standard library alone. Knows nothing of what the groups do.
"""

import os
import signal
import sys
from collections.abc import Iterable

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def survivors(lines: Iterable[bytes]) -> set[int]:
    r"""Return the group IDs that were added and not removed.

    Args:
        lines: b"+<group ID>\n" adds a group, b"-<group ID>\n" removes it. A line cut short by the
            death of its writer is skipped.
    """
    groups: set[int] = set()
    for line in lines:
        if not line.endswith(b"\n"):
            continue  # one group that is gone must not save the others
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def main() -> None:
    """Read registrations from standard input to its end, then kill what is still registered."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for group in survivors(sys.stdin.buffer):
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # one group that is gone must not save the others


if __name__ == "__main__":
    main()
