"""Whether a dispatch is accepted, and the child it makes: Nomad's checks in Nomad's order, with its texts.

Knows nothing of HTTP, permissions or events. Source: Nomad HTTP API, POST /v1/job/:id/dispatch.
"""

import secrets
from dataclasses import dataclass, field
from typing import Any

from worker.dev.simulator.gojson import Malformed, decode, decode_base64, kind, wrong_type
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import Evaluation
from worker.dev.simulator.state import State

MAX_PAYLOAD_BYTES = 16 * 1024
MAX_PRIORITY = 100
_SECOND = 1_000_000_000
_FIELDS = {
    "idempotencytoken": ("IdempotencyToken", str, "string"),
    "idprefixtemplate": ("IdPrefixTemplate", str, "string"),
    "jobid": ("JobID", str, "string"),
    "meta": ("Meta", dict, "map[string]string"),
    "namespace": ("Namespace", str, "string"),
    "payload": ("Payload", str, "[]uint8"),
    "priority": ("Priority", int, "int"),
}


class Refused(Exception):
    """The servers refuse; the message is Nomad's, to be sent with status 500."""


@dataclass(frozen=True, slots=True)
class DispatchRequest:
    """What a dispatch asks for; the payload is decoded."""

    job_id: str
    namespace: str = "default"
    payload: bytes = b""
    meta: dict[str, str] = field(default_factory=dict)
    id_prefix: str = ""
    priority: int = 0
    token: str = ""

    @classmethod
    def parse(cls, job_id: str, body: bytes, *, namespace: str = "", token: str = "") -> "DispatchRequest":
        """Read a request. Namespace and token of the query win over those of the body.

        Raises:
            Malformed: with Go's text, for status 400.
        """
        given = decode(body)
        if given is None:
            given = {}
        if not isinstance(given, dict):
            msg = f"json: cannot unmarshal {kind(given)} into Go value of type structs.JobDispatchRequest"
            raise Malformed(msg)
        values: dict[str, Any] = {}
        for key, value in given.items():
            name, python_type, go_type = _FIELDS.get(key.lower(), ("", object, ""))
            if not name or value is None:
                continue
            if not isinstance(value, python_type) or isinstance(value, bool):
                raise wrong_type(value, f"JobDispatchRequest.{name}", go_type)
            values[name] = value
        meta = {}
        for key, value in values.get("Meta", {}).items():
            if value is not None and not isinstance(value, str):
                raise wrong_type(value, "JobDispatchRequest.Meta", "string")
            meta[key] = value or ""
        payload = decode_base64(values.get("Payload", ""))
        if values.get("JobID") and values["JobID"] != job_id:
            msg = "Job ID does not match"
            raise Malformed(msg)
        return cls(
            job_id=job_id,
            namespace=namespace or values.get("Namespace") or "default",
            payload=payload,
            meta=meta,
            id_prefix=values.get("IdPrefixTemplate", ""),
            priority=values.get("Priority", 0),
            token=token or values.get("IdempotencyToken", ""),
        )


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The answer to an accepted dispatch. No `eval_id`: the token's child was there already."""

    job_id: str
    eval_id: str
    index: int
    job_create_index: int

    def answer(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {
            "DispatchedJobID": self.job_id,
            "EvalCreateIndex": self.index if self.eval_id else 0,
            "EvalID": self.eval_id,
            "Index": self.index,
            "JobCreateIndex": self.job_create_index,
        }


def check(state: State, request: DispatchRequest) -> Job:
    """Return the parent if the request passes every check, else say what Nomad says.

    Raises:
        Refused: the first check that fails.
    """
    parent = state.job(request.namespace, request.job_id)
    if parent is None:
        msg = "parameterized job not found"
        raise Refused(msg)
    rules = parent.spec.parameterized
    if rules is None or not parent.parameterized:
        msg = f'Specified job "{parent.id}" is not a parameterized job'
        raise Refused(msg)
    if parent.stop:
        msg = f'Specified job "{parent.id}" is stopped'
        raise Refused(msg)
    _check_payload(rules.get("Payload") or "optional", request.payload)
    _check_meta(rules, request.meta)
    if request.priority and not 1 <= request.priority <= MAX_PRIORITY:
        msg = f"dispatch job priority must be between [1, {MAX_PRIORITY}]"
        raise Refused(msg)
    return parent


def _check_payload(rule: str, payload: bytes) -> None:
    if payload and rule == "forbidden":
        msg = "Payload provided but forbidden by parameterized job"
        raise Refused(msg)
    if not payload and rule == "required":
        msg = "Payload is not provided but required by parameterized job"
        raise Refused(msg)
    if len(payload) > MAX_PAYLOAD_BYTES:
        msg = f"Payload exceeds maximum size; {len(payload)} > {MAX_PAYLOAD_BYTES}"
        raise Refused(msg)


def _check_meta(rules: Any, meta: dict[str, str]) -> None:
    required = rules.get("MetaRequired") or []
    permitted = {*required, *(rules.get("MetaOptional") or [])}
    # Nomad lists the keys in random order.
    if unpermitted := [key for key in meta if key not in permitted]:
        msg = f"Dispatch request included unpermitted metadata keys: [{' '.join(unpermitted)}]"
        raise Refused(msg)
    if missing := [key for key in required if key not in meta]:
        msg = f"Dispatch did not provide required meta keys: [{' '.join(missing)}]"
        raise Refused(msg)


def child_id(request: DispatchRequest, now: int) -> str:
    """Return a new child's ID: `<parent>/dispatch-[<prefix>-]<unix seconds>-<8 hex digits>`."""
    prefix = f"{request.id_prefix}-" if request.id_prefix else ""
    return f"{request.job_id}/dispatch-{prefix}{now // _SECOND}-{secrets.token_hex(4)}"


def dispatch(state: State, request: DispatchRequest, now: int) -> Dispatched:
    """Accept a dispatch: a new child with its first evaluation, or the child the token already has.

    A token belongs to one parent in one namespace and lives as long as its child, dead or not.

    Raises:
        Refused: nothing was changed.
    """
    parent = check(state, request)
    if request.token:
        known = state.tokens.get((request.namespace, parent.id, request.token))
        if known is not None:
            return Dispatched(known.id, "", known.modify_index, known.create_index)
    write = state.write("JobRegistered", now)
    job = Job(
        spec=parent.spec,
        id=child_id(request, now),
        namespace=parent.namespace,
        priority=request.priority or parent.priority,
        status="pending",
        create_index=write.index,
        modify_index=write.index,
        job_modify_index=write.index,
        submit_time=now,
        meta={**(parent.meta or {}), **request.meta} or parent.meta,
        parent_id=parent.id,
        dispatched=True,
        token=request.token,
        payload=request.payload,
        summary_index=write.index,
    )
    write.job(job)
    write.new_child(job)
    write.cut()
    evaluation = Evaluation(
        id=state.new_id(),
        job_id=job.id,
        create_index=write.index,
        modify_index=write.index,
        create_time=now,
        modify_time=now,
        namespace=job.namespace,
        priority=job.priority,
        status="pending",
        triggered_by="job-register",
        type=job.spec.type,
        job_modify_index=job.modify_index,
    )
    write.evaluation(evaluation)
    write.done()
    state.wake(evaluation)
    return Dispatched(job.id, evaluation.id, write.index, write.index)
