"""A Nomad that answers as fast as it can, so that what asks it is measured: `python -m benchmarks.stub`.

Speaks what the worker needs: dispatch with tokens, the event stream, lists, single reads, stop. A child lives
as the recorded one did (`tests/data`), frame by frame and byte for byte but for names and indexes; only the
times are chosen. Checks nothing: whether the worker asks the right thing is for the simulator to say.
"""

import argparse
import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

RECORDED = Path(__file__).parents[1] / "tests/data/nomad-transcripts/05-event-stream-full-life.json"
TICK_SECONDS = 0.002
HEARTBEAT_SECONDS = 10.0
NODE_ID = "b7d1d114-1eda-97b7-2b03-a87daa9b646b"


@dataclass(slots=True)
class Child:
    """One dispatched job."""

    values: dict[bytes, Any]
    parent: str
    status: str = "pending"


class Life:
    """The frames of one child's life, as templates.

    Args:
        placed: seconds after the dispatch; `running` and `ended` likewise.
        ended: None: only when told to.
    """

    def __init__(self, placed: float, running: float, ended: float | None) -> None:
        frames = [one["frame"] for one in json.loads(RECORDED.read_text())["exchanges"] if "frame" in one]
        frames = frames[:7]  # what follows is its purge
        job = frames[0]["Events"][0]["Payload"]["Job"]
        evaluation, allocation = (frames[2]["Events"][at]["Payload"] for at in (0, 1))
        names = {
            job["ID"]: b"child",
            job["DispatchIdempotencyToken"]: b"token",
            evaluation["Evaluation"]["ID"]: b"eval",
            allocation["Allocation"]["ID"]: b"alloc",
            f'"{job["ParentID"]}"': b"parent",
        }
        templates = [_template(frame, names) for frame in frames]
        last = {event["Topic"]: event["Payload"] for frame in frames for event in frame["Events"]}
        self.job = _template(last["Job"]["Job"], names)
        self.allocation = _template(last["Allocation"]["Allocation"], names)
        self.evaluation = _template(last["Evaluation"]["Evaluation"], names)
        # Seconds after the dispatch, the job's status from then on, its frames.
        self.steps: list[tuple[float, str, list[bytes]]] = [
            (0.0, "pending", templates[0:2]),
            (placed, "running", templates[2:5]),
            (running, "running", templates[5:6]),
        ]
        self.end = templates[6:7]
        self.ended = ended


def _template(recorded: Any, names: Mapping[str, bytes]) -> bytes:
    text = json.dumps(recorded, separators=(",", ":")).replace("%", "%%")
    text = re.sub(r'"(CreateIndex)":\d+', r'"\1":%(created)d', text)
    text = re.sub(r'"((?:Alloc|Job)?(?:Modify)?Index)":\d+', r'"\1":%(index)d', text)
    for name, key in names.items():
        quoted = '"' if name.startswith('"') else ""
        text = text.replace(name, f"{quoted}%({key.decode()})b{quoted}")
    return text.encode()


@dataclass
class Stub:
    """All children, and who listens."""

    life: Life
    children: dict[str, Child] = field(default_factory=dict)
    by_token: dict[str, Child] = field(default_factory=dict)
    arrivals: dict[str, float] = field(default_factory=dict)
    """Unix seconds at which the dispatch with a token came in."""
    ends: dict[str, float] = field(default_factory=dict)
    """Unix seconds at which a token's child was told to have ended."""
    streams: set["Connection"] = field(default_factory=set)
    index: int = 1_000
    number: int = 0
    frames: int = 0
    requests: int = 0
    load: tuple[float, float] | None = None
    """Seconds of a dispatch, and how many at once make each of them take twice as long; None: no time."""
    at_once: int = 0
    most_at_once: int = 0
    took: list[float] = field(default_factory=list)
    """Seconds that each dispatch under load was made to take."""
    due: list[deque[tuple[float, Child]]] = field(default_factory=lambda: [deque() for _ in range(4)])
    """Children by the step that comes next for them; each step takes the same time for all."""

    def dispatch(self, parent: str, token: str) -> bytes:
        """The answer to a dispatch; its first events come with it, or a moment later."""
        known = self.by_token.get(token) if token else None
        if known is not None:
            return b'{"DispatchedJobID":"%(child)b","EvalCreateIndex":0,"EvalID":""}' % known.values
        self.number += 1
        now, tail = time.time(), f"{self.number:012x}"
        name = f"{parent}/dispatch-{int(now)}-{self.number:08x}"
        self.index += 1
        child = Child(
            {
                b"child": name.encode(),
                b"parent": parent.encode(),
                b"token": token.encode(),
                b"eval": f"69048121-e42c-ae4b-ff12-{tail}".encode(),
                b"alloc": f"d0d2643d-e69f-5725-0c5f-{tail}".encode(),
                b"created": self.index,
                b"index": self.index,
            },
            parent,
        )
        self.children[name] = child
        if token:
            self.by_token[token] = child
            self.arrivals[token] = now
        self.due[0].append((now, child))
        answer = b'{"DispatchedJobID":"%(child)b","EvalCreateIndex":%(created)d,"EvalID":"%(eval)b",'
        return (answer + b'"Index":%(index)d,"JobCreateIndex":%(created)d}') % child.values

    async def live(self) -> None:
        """Let every child come to its next step in time, for ever."""
        heartbeat = time.time() + HEARTBEAT_SECONDS
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.time()
            told: list[bytes] = []
            for step, (_, status, frames) in enumerate(self.life.steps):
                queue = self.due[step]
                while queue and queue[0][0] <= now:
                    since, child = queue.popleft()
                    child.status = status
                    told += self._frames(child, frames)
                    self._next(step + 1, now if step == 0 else since, child)
            queue = self.due[-1]
            while queue and queue[0][0] <= now:
                told += self._ended(queue.popleft()[1])
            if now > heartbeat:
                heartbeat = now + HEARTBEAT_SECONDS
                told.append(b"{}\n")
            self.tell(told)

    def _next(self, step: int, at: float, child: Child) -> None:
        """Put a child where its next step finds it, as long after this one as the steps are apart."""
        times = [seconds for seconds, _, _ in self.life.steps] + [self.life.ended]
        following = times[step]
        if following is not None:
            self.due[step].append((at + following - (times[step - 1] or 0.0), child))

    def _ended(self, child: Child) -> list[bytes]:
        child.status = "dead"
        self.ends[child.values[b"token"].decode()] = time.time()
        return self._frames(child, self.life.end)

    def release(self) -> int:
        """End every child that is running. Returns how many."""
        living = [child for child in self.children.values() if child.status != "dead"]
        for queue in self.due:
            queue.clear()
        self.tell([frame for child in living for frame in self._ended(child)])
        return len(living)

    def others(self, count: int) -> None:
        """Frames of children that nobody here asked for: each lives through a whole life at once."""
        told: list[bytes] = []
        while len(told) < count:
            self.number += 1
            tail = f"{self.number:012x}".encode()
            values = {
                b"child": b"somebody-elses/dispatch-1795484592-" + tail[4:],
                b"parent": b"somebody-elses",
                b"token": tail,
                b"eval": b"69048121-e42c-ae4b-ff13-" + tail,
                b"alloc": b"d0d2643d-e69f-5725-0c60-" + tail,
                b"created": self.index,
            }
            child = Child(values, "somebody-elses")
            for frames in (*(frames for _, _, frames in self.life.steps), self.life.end):
                told += self._frames(child, frames)
        self.tell(told[:count])

    def _frames(self, child: Child, templates: list[bytes]) -> list[bytes]:
        written = []
        for template in templates:
            self.index += 1
            child.values[b"index"] = self.index
            written.append(template % child.values + b"\n")
        self.frames += len(written)
        return written

    def tell(self, frames: list[bytes]) -> None:
        """Write frames, one chunk each, to every stream."""
        if not frames or not self.streams:
            return
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames)
        for stream in self.streams:
            stream.write(chunks)

    def begin(self) -> float:
        """A dispatch has come. Returns the seconds it takes under the present load."""
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.load is not None
        seconds, knee = self.load
        self.took.append(seconds * (1 + (self.at_once / knee) ** 2))
        return self.took[-1]

    def answer(self, method: str, target: str, stream: Callable[[], None]) -> tuple[int, bytes] | None:
        """What is answered to a request; None where a stream was begun."""
        self.requests += 1
        path, _, query = target.partition("?")
        if path.endswith("/dispatch"):
            token = re.search(r"idempotency_token=([^&]*)", query)
            return 200, self.dispatch(unquote(path[8:-9]), token[1] if token else "")
        if path == "/v1/event/stream":
            stream()
            return None
        if path.startswith("/v1/job/"):
            return self._job(method, path[8:])
        if path == "/v1/jobs":
            return 200, self._list(dict(parse_qsl(query)))
        if path == "/_stub/release":
            return 200, b"%d" % self.release()
        if path == "/_stub/others":
            self.others(int(query or "1"))
            return 200, b"{}"
        if path == "/_stub/load":
            seconds, _, knee = query.partition(":")
            self.load = (float(seconds), float(knee)) if query else None
            return 200, b"{}"
        if path == "/_stub/stats":
            return 200, self._stats()
        if path == "/v1/status/leader":
            return 200, b'"127.0.0.1:4647"'
        if path == "/v1/agent/health":
            return 200, b'{"server":{"ok":true,"message":"ok"}}'
        if path == "/v1/acl/token/self":
            return 200, b'{"AccessorID":"acls-disabled","Name":"ACLs disabled"}'
        return 404, b"not known to the stub"

    def _job(self, method: str, rest: str) -> tuple[int, bytes]:
        name, _, what = rest.rpartition("/")
        if what not in {"allocations", "evaluations"}:
            name, what = rest, ""
        child = self.children.get(unquote(name))
        if child is None:
            return (200, b"[]") if what else (404, b"job not found")
        if method == "DELETE":
            self.tell(self._ended(child))
            return 200, b'{"EvalID":"","EvalCreateIndex":0}'
        if what == "evaluations":
            return 200, b"[" + self.life.evaluation % child.values + b"]"
        if what == "allocations":
            dead = child.status == "dead"
            return 200, b"[" + self.life.allocation % child.values + b"]" if dead else b"[]"
        job = self.life.job % child.values
        return 200, job.replace(b'"Status":"dead"', b'"Status":"%b"' % child.status.encode())

    def _list(self, query: Mapping[str, str]) -> bytes:
        token = re.search(r'DispatchIdempotencyToken == "([^"]*)"', query.get("filter", ""))
        if token:
            found = self.by_token.get(token[1])
            living = [found] if found else []
        else:
            parent = query.get("prefix", "").removesuffix("/dispatch-")
            alive = (one for one in self.children.values() if one.status != "dead")
            living = [one for one in alive if one.parent == parent]
        stub = b'{"ID":"%(child)b","CreateIndex":%(created)d}'
        return b"[" + b",".join(stub % child.values for child in living) + b"]"

    def _stats(self) -> bytes:
        told = {
            "requests": self.requests,
            "dispatches": len(self.arrivals),
            "children": len(self.children),
            "frames": self.frames,
            "streams": len(self.streams),
            "arrivals": self.arrivals,
            "ends": self.ends,
            "most_at_once": self.most_at_once,
            "took": self.took,
        }
        return json.dumps(told).encode()


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as it is spoken to the stub: whole requests, kept alive; bodies are read past."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._stub.streams.discard(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            method, target, _ = head.split(b" ", 2)
            if self._stub.load is not None and b"/dispatch?" in target:
                asyncio.get_running_loop().call_later(self._stub.begin(), self._late, method, target)
            else:
                self._answer(method, target)

    def _late(self, method: bytes, target: bytes) -> None:
        self._stub.at_once -= 1
        self._answer(method, target)

    def _answer(self, method: bytes, target: bytes) -> None:
        answer = self._stub.answer(method.decode(), target.decode(), self._stream)
        if answer is not None:
            status, body = answer
            self.write(
                b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nX-Nomad-Index: %d\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (status, self._stub.index, len(body), body)
            )

    def _stream(self) -> None:
        self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\n"
            b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
        )
        self._stub.streams.add(self)


async def serve(stub: Stub, port: int) -> None:
    """Serve for ever; the address is the first line printed."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server, asyncio.TaskGroup() as group:
        group.create_task(server.serve_forever())
        group.create_task(stub.live())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--placed", type=float, default=0.02, help="seconds after the dispatch")
    parser.add_argument("--running", type=float, default=0.06)
    parser.add_argument("--ended", type=float, default=0.12, help="below 0: when told to (/_stub/release)")
    arguments = parser.parse_args()
    ended = arguments.ended if arguments.ended >= 0 else None
    stub = Stub(Life(arguments.placed, arguments.running, ended))
    loop_factory = None
    if find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415 - an extra

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(stub, arguments.port))


if __name__ == "__main__":
    main()
