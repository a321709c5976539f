"""Faults planted in the product, one at a time, in a copy of it: each must make the tests that guard it fail.

`make mutations`, or with names: `make mutations MUTATIONS="no_fence"`. The tree itself is never changed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LUA = "worker/adapters/redis/lua"
SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault: what stands in the file now, what is put there, and the tests that must notice."""

    name: str
    file: str
    now: str
    planted: str
    tests: Sequence[str]


CRASHES, REDIS, NOMAD = (f"tests/faults/test_{name}.py" for name in ("crashes", "redis", "nomad"))
MUTATIONS = [
    Mutation(
        "no_fence",  # whoever comes late settles too
        f"{LUA}/settle.lua",
        "if known[3] and (known[1] ~= ARGV[3] or known[2] ~= ARGV[4]) then",
        "if false then",
        [f"{CRASHES}::test_F06_c13_of_two_workers_about_to_settle_only_the_owner_does"],
    ),
    Mutation(
        "settles_twice",  # a repeat is not recognised
        f"{LUA}/settle.lua",
        "if known[3] == 'settled' then",
        "if false then",
        [f"{CRASHES}::test_c11_a_settlement_whose_answer_was_lost_is_not_repeated"],
    ),
    Mutation(
        "acknowledges_first",  # and then Redis has no memory left for the reply
        f"{LUA}/settle.lua",
        "local reply_id = append(",
        "redis.call('XACK', KEYS[1], group, id)\nlocal reply_id = append(",
        [f"{REDIS}::test_F15_c27_c28_a_redis_that_refuses_writes_delays_finals_and_loses_none"],
    ),
    Mutation(
        "never_acknowledges",
        f"{LUA}/settle.lua",
        "redis.call('XACK', KEYS[1], group, id)\nreturn {'ok'",
        "return {'ok'",
        [f"{CRASHES}::test_a_worker_killed_at_a_step[F04_c12_settled]"],
    ),
    Mutation(
        "sends_without_intent",  # the request leaves before anything is on record
        "worker/adapters/redis/ledger.py",
        "answer = await self._owned(Script.INTEND, before, args)",
        "answer = [b'ok', b'0', b'']",
        [f"{CRASHES}::test_a_worker_killed_at_a_step[F02_c05_sent_and_not_recorded]"],
    ),
    Mutation(
        "never_looks_up",  # an uncertain dispatch is sent again without a look
        "worker/flow/dispatch.py",
        "if message.unsure and not message.looked:",
        "if False:",
        ["tests/flow/test_dispatch.py"],
    ),
    Mutation(
        "another_token_per_try",
        "worker/flow/dispatch.py",
        "token=record.run_token,",
        "token=f'{record.run_token}{message.failures or str()}',",
        [f"{NOMAD}::test_F25_F28_a_nomad_that_does_not_serve_stops_intake_and_costs_no_attempt[500]"],
    ),
    Mutation(
        "takes_from_the_living",
        f"{LUA}/take.lua",
        "if not lease_over(KEYS[2], dead) then return {'alive'} end",
        "",
        ["tests/adapters/redis/test_leases.py"],
    ),
    Mutation(
        "takes_after_a_failover",  # whoever is back first takes everything
        f"{LUA}/take.lua",
        "return {'unsteady'}",
        "",
        ["tests/adapters/redis/test_leases.py"],
    ),
    Mutation(
        "believes_in_its_lease",  # sends and settles long after it is over
        "worker/flow/lease.py",
        "if self.remaining_seconds <= 0:\n            message",
        "if False:\n            message",
        ["tests/flow/test_gate_and_lease.py", "tests/flow/test_dispatch.py"],
    ),
    Mutation(
        "keeps_both_jobs",  # the second job of a message is taken for its first
        f"{LUA}/dispatched.lua",
        "if child and child ~= ARGV[4] then return {'conflict', child} end",
        "",
        [f"{CRASHES}::test_F27_c14_of_two_jobs_for_one_message_the_later_one_is_stopped_and_counted"],
    ),
    Mutation(
        "runs_again_what_is_gone",  # a job that Nomad forgot is dispatched once more
        "worker/flow/watch.py",
        "            if isinstance(finding, Final):\n",
        "            if child.snapshot.gone:\n"
        "                from worker.core.model import Order\n"
        "                routing = record.routing\n"
        "                await self._nomad.dispatch(Order(routing.place, routing.job, record.token))\n"
        "            if isinstance(finding, Final):\n",
        [f"{CRASHES}::test_F05_c09_a_job_collected_while_every_worker_was_down_is_never_run_again"],
    ),
    Mutation(
        "calls_a_kill_a_success",
        "worker/core/verdict.py",
        "Final(_of_gone(story_of(snapshot), stopping))",
        "Final(_outcome(story_of(snapshot), [], Verdict.SUCCEEDED, None, ''))",
        [f"{CRASHES}::test_F05_c09_a_job_collected_while_every_worker_was_down_is_never_run_again"],
    ),
    Mutation(
        "never_reconciles",  # what a lost answer brought is lost from sight
        "worker/flow/intake.py",
        "        if unknown:\n",
        "        if False:\n",
        [f"{CRASHES}::test_c02_a_lost_answer_of_a_read_is_found_by_reconciling"],
    ),
    Mutation(
        "claims_deleted_entries",  # and so loses the only way to find their messages
        f"{LUA}/take.lua",
        "if #redis.call('XRANGE', KEYS[1], id, id) > 0 then",
        "if true then",
        ["tests/adapters/redis/test_leases.py"],
    ),
    Mutation(
        "never_stops_asking",  # the breaker stays open whatever Nomad says
        "worker/flow/gate.py",
        "        self._opened.clear()\n",
        "",
        [f"{NOMAD}::test_F25_F28_a_nomad_that_does_not_serve_stops_intake_and_costs_no_attempt[500]"],
    ),
    Mutation(
        "dispatches_the_unconfirmed",
        "worker/adapters/redis/ledger.py",
        "if not confirmed:\n            # Were it lost",
        "if False:\n            # Were it lost",
        ["tests/faults/test_topologies.py::test_c28_an_intent_that_no_replica_confirms_is_not_dispatched"],
    ),
    Mutation(
        "settled_once_more_on_redelivery",
        f"{LUA}/admit.lua",
        "  if state == 'settled' then\n",
        "  if false then\n",
        [f"{REDIS}::test_F12_c22_a_destroyed_group_is_made_again_and_nothing_runs_twice"],
    ),
]


def seen(mutation: Mutation, tree: Path) -> str:
    """Plant one fault, run its tests, take it out again. Returns what is wrong; empty: it was noticed."""
    path = tree / mutation.file
    original = path.read_text()
    if original.count(mutation.now) != 1:
        return f"{mutation.file} holds {original.count(mutation.now)} of what is to be changed"
    path.write_text(original.replace(mutation.now, mutation.planted))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-m",
        "slow or not slow",
        "-p",
        "no:cacheprovider",
    ]
    try:
        done = subprocess.run(
            [*command, *mutation.tests],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""  # it hangs: noticed as well
    finally:
        path.write_text(original)
    lines = done.stdout.strip().splitlines() or [done.stderr]
    match done.returncode:
        case 0:
            return f"survived: {lines[-1]}"
        case 1:
            return ""
        case code:
            return f"pytest ended with {code}: {lines[-1]}"


def main(names: Sequence[str]) -> int:
    """Try the named mutations, or all. Returns the exit code: 0 if each was noticed."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "dist", "build", "__pycache__"))
        for mutation in chosen:
            started = time.monotonic()
            fault = seen(mutation, tree)
            survivors += bool(fault)
            seconds = time.monotonic() - started
            print(f"{mutation.name:32} {fault or 'noticed'} ({seconds:.0f} s)", flush=True)  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
