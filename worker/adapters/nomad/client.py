"""The `Nomad` port over Nomad's HTTP API, and the reads of the doctor and the command line.

Knows nothing of TLS, tokens or transports (`connection`), and decides nothing about what an answer means.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import httpx
import msgspec

from worker.adapters.nomad.answers import (
    AgentHealth,
    Counted,
    DispatchAnswer,
    DispatchBody,
    JobStub,
    Parent,
    TokenSelf,
)
from worker.adapters.nomad.calls import Answer, Calls, OnRequest, Operation, unobserved
from worker.adapters.nomad.connection import NomadConnection, NomadOptions, Query
from worker.adapters.nomad.events import follow
from worker.adapters.nomad.wording import addressable, children_prefix, job_path, literal
from worker.core.frames import Frame
from worker.core.model import Dispatched, Order, Place
from worker.core.observed import Allocation, Evaluation, Job, Living, Snapshot
from worker.errors import ChildUnknown, JobUnknown, NomadDenied, RegionUnknown, RegionUnreachable

PAGE_JOBS = 500
"""Jobs per page of a list: about half a megabyte."""

_BODY = msgspec.json.Encoder()
_DISPATCHED = msgspec.json.Decoder(DispatchAnswer).decode
_JOB = msgspec.json.Decoder(Job).decode
_STUBS = msgspec.json.Decoder(list[JobStub] | None).decode
_PARENTS = msgspec.json.Decoder(list[Parent] | None).decode
_EVALUATIONS = msgspec.json.Decoder(list[Evaluation] | None).decode
_ALLOCATIONS = msgspec.json.Decoder(list[Allocation] | None).decode
_COUNT = msgspec.json.Decoder(Counted).decode
_LEADER = msgspec.json.Decoder(str).decode
_TOKEN = msgspec.json.Decoder(TokenSelf).decode
_HEALTH = msgspec.json.Decoder(AgentHealth).decode


class NomadClient:
    """One Nomad cluster, asked through one agent. Fills the port `worker.ports.Nomad`.

    Close it, or use it as a context manager. All methods raise NomadUnavailable (or a kind of it) and
    NomadDenied; none repeats a request.

    Args:
        options: how to reach Nomad.
        on_request: called after each request, for metrics.

    Raises:
        SettingsInvalid: the options cannot be used.
    """

    def __init__(self, options: NomadOptions, *, on_request: OnRequest = unobserved) -> None:
        self._options = options
        self._connection = NomadConnection(options)
        self._calls = Calls(self._connection, on_request)
        self._on_request = on_request

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, event streams included."""
        await self._connection.aclose()

    # The port -------------------------------------------------------------------------------------

    async def dispatch(self, order: Order) -> Dispatched:
        """Start one run of a parameterized job. The contract is `worker.ports.Nomad.dispatch`.

        Source: Nomad HTTP API, POST /v1/job/:job_id/dispatch.
        """
        if not addressable(order.job):
            message = f"Nomad's HTTP API cannot name a job {order.job!r}"
            raise JobUnknown(message)
        body = DispatchBody(
            payload=order.payload,
            meta=dict(order.meta),
            id_prefix_template=order.id_prefix,
            priority=order.priority,
        )
        response = await self._calls.call(
            Operation.DISPATCH,
            "POST",
            job_path(order.job, "/dispatch"),
            [("idempotency_token", order.token)],
            place=order.place,
            content=_BODY.encode(body),
            timeout_seconds=self._options.dispatch_timeout_seconds,
        )
        try:
            answer = self._calls.read(response, _DISPATCHED, Operation.DISPATCH)
        except RegionUnknown as error:
            if order.place.region in self._calls.reached:
                # Servers that have lost a federated region say the same as those that never heard of it.
                raise RegionUnreachable(str(error), maybe_applied=False) from None
            raise
        return Dispatched(job_id=answer.dispatched_job_id, eval_id=answer.eval_id)

    async def job(self, place: Place, job_id: str) -> Job | None:
        """One job; None when Nomad itself says that it does not have it.

        Source: Nomad HTTP API, GET /v1/job/:job_id.
        """
        if not addressable(job_id):
            return None
        response = await self._get(Operation.JOB, job_path(job_id), place)
        try:
            return self._calls.read(response, _JOB, Operation.JOB)
        except ChildUnknown:
            return None

    async def find_by_token(self, place: Place, parent: str, token: str) -> str | None:
        """The ID of the dispatched job of `parent` that carries `token`, dead or alive; the first of several.

        Servers before 2026 could start two jobs for one token; the first one created is the one to keep.
        """
        children = await self._list(
            Operation.FIND_BY_TOKEN,
            place,
            children_prefix(parent),
            f"ParentID == {literal(parent)} and DispatchIdempotencyToken == {literal(token)}",
            _STUBS,
        )
        return min(children, key=lambda child: child.create_index).id if children else None

    async def live_children(self, place: Place, parent: str) -> Mapping[str, Living]:
        """Those that are not dead. The contract is `worker.ports.Nomad.live_children`.

        Source: Nomad HTTP API, GET /v1/jobs.
        """
        children = await self._list(
            Operation.LIVE_CHILDREN,
            place,
            children_prefix(parent),
            f'ParentID == {literal(parent)} and Status != "dead"',
            _STUBS,
        )
        return {
            child.id: Living(
                max(child.modify_index, child.job_summary.modify_index), waits=child.status == "pending"
            )
            for child in children
        }

    async def snapshot(self, place: Place, job_id: str) -> Snapshot:
        """Job, evaluations and allocations read one after another.

        Allocations are read last, so that they are never older than the job status they are judged by.
        """
        gone = Snapshot(job_id=job_id, gone=True, whole=True)
        job = await self.job(place, job_id)
        if job is None:
            return gone
        try:
            evaluations, allocations = await self._tries(place, job_id)
        except ChildUnknown:
            return gone
        if not allocations and job.status == "dead" and await self.job(place, job_id) is None:
            # Purged between the reads: a purge takes the allocations along, which must not look like
            # a job that never had any.
            return gone
        return Snapshot(
            job_id=job_id,
            job=job,
            evaluations={evaluation.id: evaluation for evaluation in evaluations},
            allocations=_linked(allocations),
            whole=True,
        )

    async def _tries(self, place: Place, job_id: str) -> tuple[list[Evaluation], list[Allocation]]:
        """A job's evaluations, then its allocations.

        Raises:
            ChildUnknown: the job is not there (any more).
        """
        evaluations = self._calls.read(
            await self._get(Operation.EVALUATIONS, job_path(job_id, "/evaluations"), place),
            _EVALUATIONS,
            Operation.EVALUATIONS,
        )
        allocations = self._calls.read(
            await self._get(Operation.ALLOCATIONS, job_path(job_id, "/allocations"), place),
            _ALLOCATIONS,
            Operation.ALLOCATIONS,
        )
        return evaluations or [], allocations or []

    async def stop(self, place: Place, job_id: str) -> None:
        """Deregister a dispatched job without purging it. A job that is not there is no error.

        Source: Nomad HTTP API, DELETE /v1/job/:job_id.
        """
        await self._delete(Operation.STOP, place, job_id, ())

    async def purge(self, place: Place, job_id: str) -> None:
        """Remove a dispatched job with its allocations. A job that is not there is no error.

        It frees the idempotency token: only for jobs whose final reply is settled.
        """
        await self._delete(Operation.PURGE, place, job_id, [("purge", "true")])

    def events(
        self, place: Place, index: int, wanted: Callable[[str], bool]
    ) -> AsyncGenerator[Sequence[Frame], None]:
        """Follow Job, Evaluation and Allocation events. The contract is `worker.ports.Nomad.events`.

        Close the generator (`contextlib.aclosing`): the connection lives as long as it does.
        """
        return follow(self._connection, self._calls, place, index, wanted, on_request=self._on_request)

    # For the doctor and the command line ------------------------------------------------------------

    async def parents(self, place: Place, prefix: str = "") -> list[Parent]:
        """The parameterized jobs whose ID begins with `prefix`, in the order of their IDs.

        Raises:
            NomadDenied: the token lacks `list-jobs`.
        """
        jobs = await self._list(Operation.PARENTS, place, prefix, f"ParentID == {literal('')}", _PARENTS)
        return [job for job in jobs if job.parameterized]

    async def open_evaluations(self, place: Place) -> int:
        """How many evaluations are pending or blocked.

        Raises:
            NomadRefused: a server that does not count, before 1.4.

        Source: Nomad HTTP API, GET /v1/evaluations/count.
        """
        query = [("filter", 'Status == "pending" or Status == "blocked"')]
        response = await self._get(Operation.COUNT, "/v1/evaluations/count", place, query)
        return self._calls.read(response, _COUNT, Operation.COUNT).count

    async def leader(self) -> str:
        """The leader's RPC address, `host:port`.

        Raises:
            NomadNoLeader: there is none. A server needs about 5 s to say so.
        """
        response = await self._calls.call(
            Operation.LEADER,
            "GET",
            "/v1/status/leader",
            timeout_seconds=self._options.read_timeout_seconds,
        )
        return self._calls.read(response, _LEADER, Operation.LEADER)

    async def token_self(self) -> TokenSelf | None:
        """The token that asks, and when it expires; None when Nomad does not know it."""
        response = await self._probe(Operation.TOKEN_SELF, "/v1/acl/token/self")
        try:
            return self._calls.read(response, _TOKEN, Operation.TOKEN_SELF)
        except NomadDenied:
            return None

    async def agent_health(self) -> AgentHealth:
        """What the agent says about itself, also when it is not well."""
        response = await self._probe(Operation.AGENT_HEALTH, "/v1/agent/health")
        try:
            # An unwell agent answers 500 with the same JSON.
            return _HEALTH(response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._calls.refused(response, Operation.AGENT_HEALTH) from None

    async def logs(
        self, place: Place, alloc: str, task: str, stream: Literal["stdout", "stderr"], tail_bytes: int
    ) -> bytes:
        """The last bytes a task wrote.

        Args:
            place: of the allocation's job.
            alloc: the allocation's full ID.
            task: the task's name.
            stream: which output.
            tail_bytes: the most bytes to return.

        Returns:
            At most `tail_bytes`; whatever the task wrote, so not always text. Empty: nothing, or the task
            never started.

        Raises:
            ChildUnknown: the allocation is not there (any more).
            NomadRefused: it has no such task.
            NomadUnavailable: also when the node that ran it cannot be reached.
            NomadDenied: the token lacks `read-logs`.
        """
        tail = await self._log(place, alloc, task, stream, [("origin", "end"), ("offset", str(tail_bytes))])
        return tail[-tail_bytes:] if tail_bytes else b""

    async def logs_from(
        self, place: Place, alloc: str, task: str, stream: Literal["stdout", "stderr"], offset: int
    ) -> bytes:
        """What a task has written from a byte on; as `logs` otherwise."""
        return await self._log(place, alloc, task, stream, [("origin", "start"), ("offset", str(offset))])

    # ----------------------------------------------------------------------------------------------

    async def _log(
        self, place: Place, alloc: str, task: str, stream: Literal["stdout", "stderr"], part: Query
    ) -> bytes:
        response = await self._calls.call(
            Operation.LOGS,
            "GET",
            f"/v1/client/fs/logs/{_segment(alloc)}",
            [("task", task), ("type", stream), ("plain", "true"), *part],
            place=place,
            timeout_seconds=self._options.probe_timeout_seconds,
        )
        if response.status_code == httpx.codes.NOT_FOUND and "not started yet" in response.text:
            return b""
        return self._calls.read(response, bytes, Operation.LOGS)

    async def _get(self, operation: Operation, path: str, place: Place, query: Query = ()) -> httpx.Response:
        return await self._calls.call(
            operation,
            "GET",
            path,
            query,
            place=place,
            timeout_seconds=self._options.read_timeout_seconds,
        )

    async def _probe(self, operation: Operation, path: str) -> httpx.Response:
        return await self._calls.call(
            operation, "GET", path, timeout_seconds=self._options.probe_timeout_seconds
        )

    async def _delete(self, operation: Operation, place: Place, job_id: str, query: Query) -> None:
        if not addressable(job_id):
            return
        response = await self._calls.call(
            operation,
            "DELETE",
            job_path(job_id),
            query,
            place=place,
            timeout_seconds=self._options.read_timeout_seconds,
        )
        if not response.is_success:
            error = self._calls.refused(response, operation)
            if not isinstance(error, ChildUnknown):
                raise error

    async def _list(
        self,
        operation: Operation,
        place: Place,
        prefix: str,
        expression: str,
        decode: Callable[[bytes], list[Answer] | None],
    ) -> list[Answer]:
        """All pages of a filtered list of jobs."""
        found: list[Answer] = []
        next_token: str | None = None
        while True:
            response = await self._get(
                operation,
                "/v1/jobs",
                place,
                [
                    ("prefix", prefix),
                    ("filter", expression),
                    ("per_page", str(PAGE_JOBS)),
                    ("next_token", next_token),
                ],
            )
            page = self._calls.read(response, decode, operation)
            found.extend(page or ())
            next_token = response.headers.get("X-Nomad-Nexttoken")
            if not next_token:
                return found


def _linked(stubs: list[Allocation]) -> dict[str, Allocation]:
    """Allocations by ID. Lists leave `PreviousAllocation` out; `NextAllocation` tells the same backwards."""
    previous = {stub.next_allocation: stub.id for stub in stubs if stub.next_allocation}
    return {
        stub.id: msgspec.structs.replace(
            stub, previous_allocation=stub.previous_allocation or previous.get(stub.id, "")
        )
        for stub in stubs
    }


def _segment(name: str) -> str:
    return job_path(name).removeprefix("/v1/job/")
