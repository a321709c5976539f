"""The answers of Nomad's HTTP API that only the adapter, the doctor and the command line read.

Knows nothing of requests. Jobs, evaluations and allocations are in `worker.core.observed`.
"""

import msgspec

from worker.core.observed import Observed


class DispatchBody(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """Body of a dispatch. What is not given is not sent. Bytes become padded standard base64."""

    payload: bytes = b""
    meta: dict[str, str] = msgspec.field(default_factory=dict)
    id_prefix_template: str = ""
    priority: int | None = None


class DispatchAnswer(Observed, frozen=True):
    """Answer of a dispatch."""

    dispatched_job_id: str = msgspec.field(name="DispatchedJobID")
    eval_id: str = msgspec.field(name="EvalID", default="")


class Children(Observed, frozen=True):
    """How many children a parameterized job has, by status."""

    pending: int = 0
    running: int = 0
    dead: int = 0


class JobSummary(Observed, frozen=True):
    """The numbers of a job's allocations by state, or of a parameterized job's children."""

    children: Children | None = None
    modify_index: int = 0


class JobStub(Observed, frozen=True):
    """A job in a list, reduced to what finding children needs."""

    id: str = msgspec.field(name="ID")
    status: str = ""
    create_index: int = 0
    modify_index: int = 0
    job_summary: JobSummary = JobSummary()


class Parent(Observed, frozen=True):
    """A parameterized job, as it stands in a list of jobs."""

    id: str = msgspec.field(name="ID")
    namespace: str = ""
    type: str = ""
    """`batch` or `sysbatch`."""
    priority: int = 0
    status: str = ""
    stop: bool = False
    parameterized: bool = msgspec.field(name="ParameterizedJob", default=False)
    submit_time: int = 0
    """Nanoseconds since the epoch."""
    job_summary: JobSummary | None = None

    @property
    def children(self) -> Children:
        """Children Nomad still has. Each dispatch with a token looks at all of them."""
        return (self.job_summary and self.job_summary.children) or Children()


class Counted(Observed, frozen=True):
    """How many things there are."""

    count: int = 0


class TokenSelf(Observed, frozen=True):
    """What Nomad says about the token that asks; never the secret itself."""

    accessor_id: str = msgspec.field(name="AccessorID", default="")
    name: str = ""
    type: str = ""
    """`client` or `management`."""
    policies: list[str] | None = None
    expiration_time: str | None = None
    """RFC 3339; None: it does not expire."""

    @property
    def acl_disabled(self) -> bool:
        """Whether ACLs are off, so that any request may do anything."""
        return self.accessor_id == "acls-disabled"


class Part(msgspec.Struct, frozen=True):
    """Health of an agent's server or client part."""

    ok: bool = False
    message: str = ""


class AgentHealth(msgspec.Struct, frozen=True):
    """Health of the agent that is asked. An agent has a server part, a client part, or both."""

    server: Part | None = None
    client: Part | None = None

    @property
    def ok(self) -> bool:
        """Whether every part the agent has is well."""
        parts = [part for part in (self.server, self.client) if part is not None]
        return bool(parts) and all(part.ok for part in parts)
