"""What all benchmarks share: servers and workers in processes of their own, rounds of both sides, results.

Knows nothing of what is measured. Figures of one side mean little on a machine that others use: what counts
is the ratio of two sides that took turns.
"""

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import httpx
from redis.asyncio import Redis

from worker.core.keys import Keys
from worker.core.reply import Reply, decode_reply
from worker.dev.embedded_redis import EmbeddedRedis

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KEYS = Keys("{dispatch}")
STREAM = KEYS.stream("requests")
GROUP = "workers"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
SENT_AT_ONCE = 1_000
VERSIONS = ("redis", "hiredis", "httpx", "aiohttp", "msgspec", "structlog", "uvloop")


# Processes ----------------------------------------------------------------------------------------


@dataclass
class Process:
    """A process that is measured from outside, as Linux tells of it."""

    process: asyncio.subprocess.Process
    log: Path | None = None

    @property
    def cpu_seconds(self) -> float:
        """Processor time taken so far, user and system."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mb(self) -> float:
        """Memory held now."""
        return self._status("VmRSS") / 1024

    @property
    def resident_most_mb(self) -> float:
        """The most memory held so far."""
        return self._status("VmHWM") / 1024

    def connections(self, port: int) -> int:
        """Established TCP connections of this process to a local port."""
        inodes = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                target = link.readlink().name
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        table = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in table]
        return sum(
            row[3] == "01" and int(row[2].rpartition(":")[2], 16) == port and row[9] in inodes for row in rows
        )

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


@asynccontextmanager
async def process(*command: str, log: Path | None = None, **environment: str) -> AsyncIterator[Process]:
    """A process of ours, ended when the block is; its standard output is a pipe, its errors go to `log`."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    errors: Any = asyncio.subprocess.DEVNULL if log is None else log.open("wb")
    started = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=inherited | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        limit=2**20,
    )
    try:
        yield Process(started, log)
    finally:
        if started.returncode is None:
            started.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await started.wait()
        except TimeoutError:
            started.kill()
            await started.wait()
        if log is not None:
            errors.close()


@asynccontextmanager
async def redis_server(*args: str) -> AsyncIterator[tuple[EmbeddedRedis, Any]]:
    """A Redis of the benchmark's own, and a client of it."""
    async with EmbeddedRedis(args=args) as server:
        client: Any = Redis.from_url(server.url, max_connections=16)
        try:
            yield server, client
        finally:
            await client.aclose()


@dataclass
class Stub:
    """The stub Nomad (`benchmarks.stub`) in its process."""

    address: str
    process: Process
    http: httpx.AsyncClient

    async def stats(self) -> dict[str, Any]:
        """Counts, and the Unix seconds of `arrivals` of dispatches and `ends` of children, by token."""
        told: dict[str, Any] = (await self.http.get("/_stub/stats")).json()
        return told

    async def release(self) -> int:
        """End every child that lives. Returns how many."""
        return int((await self.http.post("/_stub/release")).text)

    async def others(self, frames: int) -> None:
        """Send frames of other people's jobs to every event stream."""
        await self.http.post(f"/_stub/others?{frames}")

    async def load(self, seconds: float, knee: float) -> None:
        """Have a dispatch take so long, and twice as long with `knee` of them at once."""
        await self.http.post(f"/_stub/load?{seconds}:{knee}")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@asynccontextmanager
async def stub_nomad(
    *, placed: float = 0.02, running: float = 0.06, ended: float | None = 0.12
) -> AsyncIterator[Stub]:
    """A stub whose children are placed, run and end so many seconds after their dispatch.

    Args:
        ended: None: only when `release` is called.
    """
    times = ("--placed", placed, "--running", running, "--ended", -1 if ended is None else ended)
    async with process(sys.executable, "-m", "benchmarks.stub", *map(str, times)) as started:
        address = await first_line(started)
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            yield Stub(address, started, http)


async def first_line(started: Process) -> str:
    """What a process says first."""
    assert started.process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        return (await started.process.stdout.readline()).decode().strip()


@dataclass
class Worker(Process):
    """One `dispatch-worker run`."""

    http: str = ""


@asynccontextmanager
async def worker(
    redis_url: str, nomad_addr: str, *, program: Sequence[str] = ("-m", "worker", "run"), **settings: str
) -> AsyncIterator[Worker]:
    """A worker that is ready. It logs to a file, as it does anywhere."""
    port = await free_port()
    log = RESULTS / f"worker-{port}.log"
    RESULTS.mkdir(exist_ok=True)
    environment = {
        "REDIS_URL": redis_url,
        "NOMAD_ADDR": nomad_addr,
        "WORKER_HTTP_ADDR": f"127.0.0.1:{port}",
        "WORKER_MAX_IN_FLIGHT": "5000",
        **settings,
    }
    async with process(sys.executable, *program, log=log, **environment) as started:
        running = Worker(started.process, log, http=f"http://127.0.0.1:{port}")
        await _ready(running)
        yield running
    log.unlink()


async def _ready(running: Worker) -> None:
    async with httpx.AsyncClient() as http:
        for _ in range(int(START_SECONDS / 0.05)):
            if running.process.returncode is not None:
                break
            try:
                if (await http.get(f"{running.http}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    assert running.log is not None
    sys.exit(f"the worker did not get ready:\n{running.log.read_text()[-4000:]}")


async def free_port() -> int:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


# Messages -----------------------------------------------------------------------------------------


async def send(client: Any, count: int, fields: Mapping[str, str | bytes] | None = None) -> list[str]:
    """Add requests as fast as Redis takes them. Returns their IDs."""
    fields = {"job": "bench", "payload": b"x" * 64, "meta": '{"who":"ada"}'} if fields is None else fields
    sent: list[str] = []
    while len(sent) < count:
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(SENT_AT_ONCE, count - len(sent))):
            pipeline.xadd(STREAM, fields)
        sent += [entry_id.decode() for entry_id in await pipeline.execute()]
    return sent


async def all_acknowledged(client: Any, last_id: str, seconds: float, *, partly: bool = False) -> float:
    """Wait until the group has read up to `last_id` and acknowledged all. Returns the time of that.

    With `partly`, what was read later need not be acknowledged.
    """
    async with asyncio.timeout(seconds):
        while True:
            for group in await client.xinfo_groups(STREAM):
                read = group["last-delivered-id"].decode()
                if (partly or group["pending"] == 0) and _parts(read) >= _parts(last_id):
                    return time.perf_counter()
            await asyncio.sleep(0.01)


def _parts(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


async def finals(client: Any) -> list[Reply]:
    """All final replies so far."""
    entries = await client.xrange(KEYS.replies)
    replies = [decode_reply(fields, entry_id.decode()) for entry_id, fields in entries]
    return [reply for reply in replies if reply.final]


# Results ------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One figure of one side, once per round."""

    what: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        least, most = min(self.values), max(self.values)
        return f"{self.what}: {self.median:.4g} {self.unit} (min {least:.4g}, max {most:.4g})"


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    """Its module's."""
    title: str
    measured: list[Measured] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    """Plots: title, x and y labels, and lines of points by name."""
    remarks: list[str] = field(default_factory=list)

    def add(self, what: str, unit: str, values: Sequence[float]) -> Measured:
        """Add a figure, told to whoever watches."""
        measured = Measured(what, unit, [float(value) for value in values])
        self.measured.append(measured)
        print(f"  {measured}", flush=True)
        return measured

    def ratio(self, what: str, ours: Measured, theirs: Measured) -> Measured:
        """Add the ratio of two sides, round by round."""
        pairs = zip(ours.values, theirs.values, strict=True)
        return self.add(what, "x", [mine / other for mine, other in pairs])

    def target(
        self, what: str, measured: Measured, *, least: float | None = None, most: float | None = None
    ) -> None:
        """Compare a figure's median with what was asked for."""
        met = (least is None or measured.median >= least) and (most is None or measured.median <= most)
        bound = f"at least {least:g}" if least is not None else f"at most {most:g}"
        wanted = f"{bound} {measured.unit}"
        told = {"what": what, "wanted": wanted, "found": measured.median, "unit": measured.unit, "met": met}
        self.targets.append(told)
        print(f"  {'met   ' if met else 'MISSED'} {what}: {wanted}; found {measured.median:.4g}", flush=True)

    def curve(self, title: str, x: str, y: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Add a plot."""
        self.curves.append({"title": title, "x": x, "y": y, "lines": {k: list(v) for k, v in lines.items()}})

    def save(self) -> None:
        """Write it down as JSON, with the machine it was measured on."""
        RESULTS.mkdir(exist_ok=True)
        told = {
            "name": self.name,
            "title": self.title,
            "at": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "measured": [{"what": m.what, "unit": m.unit, "values": m.values} for m in self.measured],
            "targets": self.targets,
            "curves": self.curves,
            "remarks": self.remarks,
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(told, indent=1) + "\n")


async def in_turns(rounds: int, sides: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, list[T]]:
    """Measure every side once per round, in an order that changes from round to round."""
    values: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            values[name].append(await sides[name]())
    return values


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except ModuleNotFoundError:
            versions[name] = "not installed"
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}
