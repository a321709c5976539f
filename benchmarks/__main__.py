"""Runs benchmarks one after another, each in a process of its own, and writes what they found."""

import argparse
import asyncio
import importlib
import sys

from benchmarks.common import ROOT

BENCHMARKS = ("end_to_end", "agent", "redis_side", "latency", "growth", "holding", "overload", "purge")
"""Modules with `async def run(*, full: bool) -> Result`."""
SHORT = ("end_to_end", "redis_side", "latency")
"""Those run where neither names are given nor --full: some two minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--full", action="store_true", help="more and longer rounds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for unknown in set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {unknown!r}")
    if arguments.here:
        (name,) = arguments.names
        asyncio.run(importlib.import_module(f"benchmarks.{name}").run(full=arguments.full)).save()
        return
    failed = [
        name
        for name in arguments.names or (BENCHMARKS if arguments.full else SHORT)
        if asyncio.run(_apart(name, arguments.full))
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


async def _apart(name: str, full: bool) -> int:  # noqa: FBT001
    """Run one benchmark in a fresh process: what one leaves in memory must not slow the next one down."""
    print(f"{name}:", flush=True)
    command = (sys.executable, "-m", "benchmarks", name, "--here", *(["--full"] if full else []))
    return await (await asyncio.create_subprocess_exec(*command, cwd=ROOT)).wait()


if __name__ == "__main__":
    main()
