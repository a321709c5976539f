"""The task drivers of the simulated node: what a real node reports, they report."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dev.simulator.drivers import DRIVERS, RunningTask, StartFailed, TaskExit, TaskSpec
from worker.dev.simulator.durations import parse_duration

pytestmark = pytest.mark.anyio

LAUNCH = "failed to launch command with executor: rpc error: code = Unknown desc = "
WITHIN_SECONDS = 10.0

UNKNOWN_NOPE = 'Invalid label: No argument or block type is named "nope".'
NO_COMMAND = 'Missing required argument: The argument "command" is required, but no definition was found.'
ARGS_NO_LIST = (
    'Incorrect attribute value type: Inappropriate value for attribute "args": '
    "list of string required, but have string."
)
NO_OBJECT = (
    "Root value must be object: The root value in a JSON-based configuration must be either "
    "a JSON object or a JSON array of objects."
)


def refused(*mistakes: str) -> str:
    lines = "".join(f"\t* {line}\n" for line in ("failed to parse config: ", *mistakes))
    return f"{1 + len(mistakes)} errors occurred:\n{lines}\n"


async def start(
    driver: str, config: Any, directory: Path | None = None, env: dict[str, str] | None = None
) -> RunningTask:
    spec = TaskSpec(name="t", driver=driver, config=config, env=env or {}, directory=directory)
    return await DRIVERS[driver].start(spec)


async def shell(directory: Path, script: str, **env: str) -> RunningTask:
    return await start("raw_exec", {"command": "/bin/sh", "args": ["-c", script]}, directory, env)


async def end_of(task: RunningTask) -> TaskExit:
    return await asyncio.wait_for(task.wait(), WITHIN_SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", TaskExit(exit_code=0)),
        ("exit 3", TaskExit(exit_code=3)),
        ("exit 137", TaskExit(exit_code=137)),
        ("kill -9 $$", TaskExit(exit_code=137, signal=9)),
        ("kill -TERM $$", TaskExit(exit_code=143, signal=15)),
    ],
)
async def test_a_process_ends_with_the_exit_code_and_signal_nomad_reports(
    tmp_path: Path, script: str, expected: TaskExit
) -> None:
    task = await shell(tmp_path, script)

    assert await end_of(task) == expected


async def test_a_process_runs_in_its_folder_with_its_environment_and_logs_to_files(tmp_path: Path) -> None:
    task = await shell(tmp_path, 'pwd; echo "$NOMAD_META_who"; echo oops >&2', NOMAD_META_who="ada")

    assert (await end_of(task)).successful
    assert task.logs("stdout") == f"{tmp_path}\nada\n".encode()
    assert task.logs("stderr") == b"oops\n"
    assert (tmp_path / "stdout").read_bytes() == task.logs("stdout")


async def test_a_restarted_process_appends_to_its_log(tmp_path: Path) -> None:
    for word in ("one", "two"):
        await end_of(await shell(tmp_path, f"echo {word}"))

    assert (tmp_path / "stdout").read_bytes() == b"one\ntwo\n"


async def test_a_task_does_not_see_the_secrets_of_the_shell_that_started_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMAD_TOKEN", "secret")

    task = await shell(tmp_path, "env")

    await end_of(task)
    assert b"secret" not in task.logs("stdout")
    assert b"PATH=" in task.logs("stdout")


async def test_numbers_and_booleans_in_args_become_text(tmp_path: Path) -> None:
    config = {"command": "echo", "args": ["a", 1, True, 1.5, 2.0]}

    task = await start("raw_exec", config, tmp_path)

    await end_of(task)
    assert task.logs("stdout") == b"a 1 true 1.5 2\n"


@pytest.mark.parametrize(
    ("config", "event_type", "message"),
    [
        (
            {"command": "/no/such/binary"},
            "Driver Failure",
            f'{LAUNCH}binary "/no/such/binary" could not be found',
        ),
        ({"command": "nosuchthing"}, "Driver Failure", f'{LAUNCH}binary "nosuchthing" could not be found'),
        ({"command": "/bin/true", "nope": 1}, "Failed Validation", refused(UNKNOWN_NOPE)),
        ({"nope": 1}, "Failed Validation", refused(NO_COMMAND, UNKNOWN_NOPE)),
        ({"command": "/bin/true", "args": "x"}, "Failed Validation", refused(ARGS_NO_LIST)),
        ({}, "Failed Validation", refused(NO_OBJECT)),
    ],
)
async def test_a_process_that_cannot_start_fails_with_nomads_words(
    tmp_path: Path, config: dict[str, Any], event_type: str, message: str
) -> None:
    with pytest.raises(StartFailed) as failure:
        await start("raw_exec", config, tmp_path)

    assert (failure.value.event_type, failure.value.message) == (event_type, message)
    assert not failure.value.recoverable


async def test_a_file_that_is_no_program_is_refused_with_nomads_words(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")

    with pytest.raises(StartFailed) as failure:
        await start("raw_exec", {"command": "text", "args": ["x"]}, tmp_path)

    program = tmp_path / "text"
    assert failure.value.message == (
        f'{LAUNCH}failed to start command path="{program}" --- args=["{program}" "x"]: '
        f"fork/exec {program}: permission denied"
    )


async def test_the_config_may_come_as_a_list_of_blocks(tmp_path: Path) -> None:
    task = await start("raw_exec", [{"command": "/bin/echo", "args": ["hi"]}], tmp_path)

    await end_of(task)
    assert task.logs("stdout") == b"hi\n"


async def test_killing_sends_the_signal_and_leaves_time_to_clean_up(tmp_path: Path) -> None:
    task = await shell(tmp_path, "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
    await until(lambda: b"ready" in task.logs("stdout"))

    await task.kill(signal="SIGTERM", timeout_seconds=WITHIN_SECONDS)

    assert await end_of(task) == TaskExit(exit_code=5)
    assert task.logs("stdout") == b"ready\nbye\n"


async def test_a_task_that_ignores_the_signal_is_killed_after_the_timeout_with_its_whole_group(
    tmp_path: Path,
) -> None:
    task = await shell(tmp_path, "trap '' INT; sleep 600 & echo $!; sleep 600")
    await until(lambda: task.logs("stdout").endswith(b"\n"))
    grandchild = int(task.logs("stdout"))

    await task.kill(signal="", timeout_seconds=0.05)

    assert await end_of(task) == TaskExit(exit_code=137, signal=9)
    await until(lambda: not alive(grandchild))


async def test_the_signal_goes_to_the_first_process_only_so_a_waiting_shell_needs_the_timeout(
    tmp_path: Path,
) -> None:
    task = await shell(tmp_path, "echo ready; sleep 600; exit 3")
    await until(lambda: b"ready" in task.logs("stdout"))

    await task.kill(signal="SIGINT", timeout_seconds=0.1)

    assert (await end_of(task)).signal in {signal.SIGKILL, signal.SIGINT}  # the shell decides: 9 for dash


async def test_a_plain_process_ends_on_the_default_signal_with_130(tmp_path: Path) -> None:
    task = await start("raw_exec", {"command": "/bin/sleep", "args": ["600"]}, tmp_path)

    await task.kill(signal="", timeout_seconds=WITHIN_SECONDS)

    assert await end_of(task) == TaskExit(exit_code=130, signal=2)


async def test_a_background_process_does_not_outlive_its_task(tmp_path: Path) -> None:
    task = await shell(tmp_path, "sleep 600 & echo $!")

    assert (await end_of(task)).successful
    await until(lambda: not alive(int(task.logs("stdout"))))


async def test_killing_a_task_that_has_ended_changes_nothing(tmp_path: Path) -> None:
    for task in (await shell(tmp_path, "exit 4"), await start("mock_driver", {"exit_code": 4})):
        ended = await end_of(task)

        await task.kill(signal="SIGTERM", timeout_seconds=1)

        assert await end_of(task) == ended == TaskExit(exit_code=4)


@pytest.mark.parametrize("driver", ["raw_exec", "mock_driver"])
async def test_a_cancelled_wait_leaves_the_task_running_for_others(tmp_path: Path, driver: str) -> None:
    config = {"command": "/bin/sleep", "args": ["600"]} if driver == "raw_exec" else {"run_for": "600s"}
    task = await start(driver, config, tmp_path)
    waiting = asyncio.create_task(task.wait())
    await asyncio.sleep(0)

    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await task.kill(signal="", timeout_seconds=WITHIN_SECONDS)

    assert await end_of(task) == await end_of(task)


SIMULATOR = """
import asyncio, sys
from pathlib import Path
from worker.dev.simulator.drivers import DRIVERS, TaskSpec

async def main():
    script = "trap '' INT TERM HUP; sleep 600 & echo $$ $!; wait; wait"
    config = {"command": "/bin/sh", "args": ["-c", script]}
    spec = TaskSpec("t", "raw_exec", config, {}, Path(sys.argv[1]))
    task = await DRIVERS["raw_exec"].start(spec)
    while not task.logs("stdout").endswith(b"\\n"):
        await asyncio.sleep(0.01)
    print(task.logs("stdout").decode(), flush=True)
    if sys.argv[2] == "wait":
        await task.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("death", ["SIGKILL", "its end"])
def test_no_process_of_a_task_outlives_the_simulator(tmp_path: Path, death: str) -> None:
    mode = "wait" if death == "SIGKILL" else "end"
    with subprocess.Popen(
        [sys.executable, "-c", SIMULATOR, str(tmp_path), mode], stdout=subprocess.PIPE, text=True
    ) as simulator:
        assert simulator.stdout is not None
        pids = [int(word) for word in simulator.stdout.readline().split()]
        if death == "SIGKILL":
            os.kill(simulator.pid, signal.SIGKILL)
        simulator.wait(WITHIN_SECONDS)

    assert len(pids) == 2
    deadline = time.monotonic() + WITHIN_SECONDS
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"run_for": "1ms"}, TaskExit(exit_code=0)),
        ({}, TaskExit(exit_code=0)),
        ({"exit_code": "3"}, TaskExit(exit_code=3)),
        ([{"exit_code": 4}], TaskExit(exit_code=4)),
        ({"exit_signal": 9}, TaskExit(exit_code=0, signal=9)),
        (
            {"exit_code": 137, "exit_signal": 9, "exit_err_msg": "boom"},
            TaskExit(exit_code=137, signal=9, message="boom"),
        ),
        ({"oom_killed": True}, TaskExit(exit_code=137, signal=9, oom_killed=True, message="OOM Killed")),
        ({"oom_killed": "true", "exit_code": 1}, TaskExit(1, 9, oom_killed=True, message="OOM Killed")),
    ],
)
async def test_a_scripted_task_ends_as_its_config_says(config: Any, expected: TaskExit) -> None:
    task = await start("mock_driver", config)

    assert await end_of(task) == expected


def test_a_message_alone_fails_a_task() -> None:
    assert not TaskExit(exit_code=0, message="boom").successful
    assert not TaskExit(exit_code=0, signal=9).successful


@pytest.mark.parametrize(
    ("config", "event_type", "message", "recoverable"),
    [
        ({"start_error": "no image"}, "Driver Failure", "no image", False),
        ({"start_error": "no image", "start_error_recoverable": "true"}, "Driver Failure", "no image", True),
        (
            {"run_for": "abc"},
            "Driver Failure",
            'run_for abc not a valid duration: time: invalid duration "abc"',
            False,
        ),
        (
            {"run_for": 5},
            "Driver Failure",
            'run_for 5 not a valid duration: time: missing unit in duration "5"',
            False,
        ),
        ({"nope": 1}, "Failed Validation", refused(UNKNOWN_NOPE), False),
    ],
)
async def test_a_scripted_task_fails_to_start_as_its_config_says(
    config: dict[str, Any], event_type: str, message: str, *, recoverable: bool
) -> None:
    with pytest.raises(StartFailed) as failure:
        await start("mock_driver", config)

    assert (failure.value.event_type, failure.value.message) == (event_type, message)
    assert failure.value.recoverable is recoverable


async def test_a_scripted_start_blocks_for_its_time() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    await start("mock_driver", {"start_block_for": "30ms"})

    assert loop.time() - began >= 0.03


async def test_a_killed_scripted_task_reports_its_own_exit_code() -> None:
    task = await start("mock_driver", {"run_for": "600s", "exit_code": 7})

    await task.kill(signal="SIGINT", timeout_seconds=5)

    assert await end_of(task) == TaskExit(exit_code=7)


async def test_a_scripted_task_takes_its_time_to_be_killed_but_not_more_than_the_timeout() -> None:
    loop = asyncio.get_running_loop()
    slow = await start("mock_driver", {"run_for": "600s", "kill_after": "20ms"})
    stubborn = await start("mock_driver", {"run_for": "600s", "kill_after": "600s"})

    began = loop.time()
    await slow.kill(signal="", timeout_seconds=5)
    assert loop.time() - began >= 0.02
    await asyncio.wait_for(stubborn.kill(signal="", timeout_seconds=0.02), WITHIN_SECONDS)

    assert (await end_of(stubborn)).exit_code == 0


async def test_a_scripted_task_prints_its_text_again_and_again() -> None:
    config = {"run_for": "600s", "stdout_string": "hey\n", "stdout_repeat": 3}
    at_once = await start("mock_driver", config)
    slowly = await start("mock_driver", {**config, "stdout_repeat_duration": "10ms"})

    assert at_once.logs("stdout") == b"hey\n" * 4
    assert at_once.logs("stderr") == b""
    await until(lambda: slowly.logs("stdout") == b"hey\n" * 4)

    for task in (at_once, slowly):
        await task.kill(signal="", timeout_seconds=1)


async def test_a_log_ends_with_the_task() -> None:
    config = {"run_for": "600s", "stdout_string": "x", "stdout_repeat": 9, "stdout_repeat_duration": "300s"}
    task = await start("mock_driver", config)
    await task.kill(signal="", timeout_seconds=1)

    assert task.logs("stdout") == b"x"


async def test_ten_thousand_scripted_tasks_at_once_need_no_task_of_their_own() -> None:
    before = len(asyncio.all_tasks())

    tasks = [await start("mock_driver", {"run_for": "50ms", "exit_code": n % 3}) for n in range(10_000)]
    assert len(asyncio.all_tasks()) == before
    codes = [(await end_of(task)).exit_code for task in tasks]

    assert codes == [n % 3 for n in range(10_000)]


def test_only_these_drivers_are_on_the_node() -> None:
    assert set(DRIVERS) == {"raw_exec", "exec", "mock_driver"}


UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)

    assert parse_duration(text) == sum(number * UNITS[unit] for number, unit in parts)
    assert parse_duration("-" + text) == -parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("1.5s", 1_500_000_000), ("1h2m3.5s", 3723 * 10**9 + 5 * 10**8)]
)
def test_a_duration_may_be_a_fraction(text: str, expected: int) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
    ],
)
def test_a_wrong_duration_is_refused_in_gos_words(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        parse_duration(text)

    assert str(error.value) == message
