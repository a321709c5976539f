"""Every setting: environment name, form, unit, default, and why it is there.

Knows nothing of the objects built from them; what several settings must agree on is in `checks`.
"""

import re
import secrets
import socket
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.settings.values import (
    Flag,
    Listen,
    ListenAddress,
    Name,
    Names,
    NomadAddress,
    Prefix,
    ReadableFile,
    ReadableFolder,
    RedisUrl,
    Streams,
    TokenTemplate,
    UiLinks,
    WeightedStream,
)

DAY_SECONDS = 86_400
SELF_FENCE_SECONDS = 2.0
"""A worker trusts its own lease for this much less than Redis does: room for clocks and the network."""

Seconds = Annotated[float, Field(allow_inf_nan=False)]


def _worker_name() -> str:
    """Host name and a nonce: a restarted process must not be taken for the one that died."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64].strip("-._") or "worker"
    return f"{host}-{secrets.token_hex(4)}"


def _setting(name: str, default: Any, why: str, *, unit: str = "", **bounds: Any) -> Any:
    if callable(default):
        bounds["default_factory"] = default
    else:
        bounds["default"] = default
    return Field(validation_alias=name, description=why, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseSettings):
    """What one worker process runs with. Make one with `load`, which names every fault at once."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=True)

    # Nomad, as its own CLI reads it -----------------------------------------------------------------

    nomad_addr: NomadAddress = _setting(
        "NOMAD_ADDR",
        "http://127.0.0.1:4646",
        "The agent: `http://host:4646`, `https://host:4646`, or `unix:///path/api.sock` (a task's own).",
    )
    nomad_token: SecretStr | None = _setting(
        "NOMAD_TOKEN", None, "ACL token. Prefer the file: an environment variable cannot be renewed."
    )
    nomad_token_file: ReadableFile = _setting(
        "NOMAD_TOKEN_FILE",
        None,
        "File with the ACL token, read again when it changes, so that tokens can rotate.",
    )
    nomad_region: Name = _setting(
        "NOMAD_REGION", "", "Region of a request that names none. Unset: the region of the agent."
    )
    nomad_namespace: Name = _setting(
        "NOMAD_NAMESPACE", "", "Namespace of a request that names none. Unset: `default`."
    )
    nomad_cacert: ReadableFile = _setting(
        "NOMAD_CACERT", None, "CA certificates (PEM) that the agent's must come from."
    )
    nomad_capath: ReadableFolder = _setting(
        "NOMAD_CAPATH", None, "Folder of such certificates; `NOMAD_CACERT` wins."
    )
    nomad_client_cert: ReadableFile = _setting(
        "NOMAD_CLIENT_CERT", None, "Client certificate (PEM) for mutual TLS."
    )
    nomad_client_key: ReadableFile = _setting(
        "NOMAD_CLIENT_KEY", None, "Private key (PEM) of the client certificate."
    )
    nomad_tls_server_name: str = _setting(
        "NOMAD_TLS_SERVER_NAME",
        "",
        "Name the agent's certificate must carry, where it is not the address's host.",
    )
    nomad_skip_verify: Flag = _setting(
        "NOMAD_SKIP_VERIFY",
        default=False,
        why="Accept any certificate. Whoever is in between then reads the token: tests only.",
    )

    # Redis ------------------------------------------------------------------------------------------

    redis_url: RedisUrl = _setting(
        "REDIS_URL",
        SecretStr("redis://127.0.0.1:6379/0"),
        "Where Redis is: `redis://`, `rediss://` (TLS), `unix://`, "
        "`redis+sentinel://host:26379,host2:26379/service/0`, `redis+cluster://host:6379`.",
    )
    redis_username: str = _setting(
        "REDIS_USERNAME", "", "ACL user; its rights are listed in the operations guide."
    )
    redis_password_file: ReadableFile = _setting(
        "REDIS_PASSWORD_FILE", None, "File with the password, so that it stands in no environment and no URL."
    )
    redis_ca_file: ReadableFile = _setting(
        "REDIS_CA_FILE", None, "CA certificates (PEM) that the server's must come from."
    )
    redis_cert_file: ReadableFile = _setting(
        "REDIS_CERT_FILE", None, "Client certificate (PEM) for mutual TLS."
    )
    redis_key_file: ReadableFile = _setting(
        "REDIS_KEY_FILE", None, "Private key (PEM) of the client certificate."
    )

    # What is read, and as whom ----------------------------------------------------------------------

    prefix: Prefix = _setting(
        "WORKER_PREFIX",
        "{dispatch}",
        "What every key begins with. One hash tag `{...}` keeps all keys in one Redis Cluster slot, "
        "which scripts over several keys need.",
    )
    streams: Streams = _setting(
        "WORKER_STREAMS",
        (WeightedStream("requests", 1),),
        "Request streams with their weights, such as `high:6,normal:3,low:1`: the shares of the reads while "
        "all have entries waiting, so that none is starved.",
    )
    stream_order: Literal["weighted", "strict"] = _setting(
        "WORKER_STREAM_ORDER",
        "weighted",
        "What the weights of several streams are: shares (`weighted`), or levels (`strict`: the highest one "
        "goes first, always, but for ageing).",
    )
    stream_ageing_seconds: Seconds = _setting(
        "WORKER_STREAM_AGEING_SECONDS",
        300.0,
        "In strict order: a message that waits rises by one level in this time, so that none waits for "
        "ever. 0: it does not.",
        unit="seconds",
        ge=0,
        le=365 * DAY_SECONDS,
    )
    group: Name = _setting(
        "WORKER_GROUP", "workers", "Consumer group. Replicas share one; each message goes to one of them."
    )
    name: Name = _setting(
        "WORKER_NAME",
        _worker_name,
        "This process among the replicas. Default: host name and a random suffix, new at every start. A name "
        "given here must be new at every start too: two processes of one name would share a lease.",
    )
    namespaces: Names = _setting(
        "WORKER_NAMESPACES",
        (),
        "Namespaces a request may choose, besides `NOMAD_NAMESPACE`; one event stream is held for each.",
    )
    regions: Names = _setting("WORKER_REGIONS", (), "Regions a request may choose, besides `NOMAD_REGION`.")
    allow_file: ReadableFile = _setting(
        "WORKER_ALLOW_FILE",
        None,
        "Policy file (TOML, see docs/policy.md): what is allowed, limited and run again. Read again when it "
        "changes; a faulty one leaves the last good one in force. Unset: whatever the token may dispatch.",
    )
    max_meta_bytes: int = _setting(
        "WORKER_MAX_META_BYTES",
        16_384,
        "Most meta a request may carry. Nomad has no limit, and repeats meta in every event of the job.",
        unit="bytes",
        ge=0,
        le=1_048_576,
    )
    token_template: TokenTemplate = _setting(
        "WORKER_TOKEN_TEMPLATE",
        "{message_id}",
        "Nomad's idempotency token of a message. With several streams it must hold `{stream}`: entry IDs are "
        "unique within one stream only, and Nomad would answer the second message with the first one's job.",
    )

    # How much, and how fast -------------------------------------------------------------------------

    max_in_flight: int = _setting(
        "WORKER_MAX_IN_FLIGHT",
        500,
        "Messages this process holds at once. Entries beyond it stay unread, for other replicas to take.",
        unit="messages",
        ge=1,
        le=100_000,
    )
    max_waiting: int = _setting(
        "WORKER_MAX_WAITING",
        200_000,
        "Messages that wait for their turn in Redis, over all streams, where the policy limits or shares "
        "anything. Each costs about 1 kB there besides its entry; beyond this they stay unread, in the "
        "order in which they came.",
        unit="messages",
        ge=100,
        le=10_000_000,
    )
    dispatch_concurrency: int = _setting(
        "WORKER_DISPATCH_CONCURRENCY",
        16,
        "Most dispatch requests on their way at once. An agent allows 100 connections per client address.",
        unit="requests",
        ge=1,
        le=90,
    )
    dispatch_pace: Literal["adaptive", "fixed"] = _setting(
        "WORKER_DISPATCH_PACE",
        "adaptive",
        "`adaptive`: as many of them as Nomad answers without slowing down, never more than "
        "`WORKER_DISPATCH_CONCURRENCY`. `fixed`: always that many.",
    )
    nomad_waiting_limit: int = _setting(
        "WORKER_NOMAD_WAITING_LIMIT",
        2_000,
        "Evaluations pending or blocked in Nomad from which on no more is read: what waits does so in Redis, "
        "in order and at no cost. From half of it on dispatches slow down. 0: not looked at.",
        unit="evaluations",
        ge=0,
        le=10_000_000,
    )
    nomad_timeout_seconds: Seconds = _setting(
        "WORKER_NOMAD_TIMEOUT_SECONDS",
        6.0,
        "Total time of one dispatch request. After a crash a new owner waits it out before it dispatches, so "
        "adoption time grows with it.",
        unit="seconds",
        ge=0.5,
        le=60,
    )
    placement_deadline_seconds: Seconds = _setting(
        "WORKER_PLACEMENT_DEADLINE_SECONDS",
        0.0,
        "A job that waits so long for a place, its first or, after it lost that, another one, is stopped: "
        "verdict `unplaced`. 0: it may wait for ever.",
        unit="seconds",
        ge=0,
    )
    sweep_seconds: Seconds = _setting(
        "WORKER_SWEEP_SECONDS",
        45.0,
        "Time between two sweeps over Nomad's list of live jobs. The sweep is the truth, events make it "
        "fast: this bounds how late an end is seen whose event was lost.",
        unit="seconds",
        ge=1,
        le=3600,
    )
    event_heartbeat_seconds: Seconds = _setting(
        "WORKER_EVENT_HEARTBEAT_SECONDS",
        30.0,
        "Time between two heartbeats of an event stream, as Nomad's servers send them. A stream that was "
        "silent for more than two of them counts as dead and is opened again.",
        unit="seconds",
        ge=5,
        le=600,
    )
    block_seconds: Seconds = _setting(
        "WORKER_BLOCK_SECONDS",
        1.0,
        "Longest wait of one read from Redis. A read is never cut short, so shutdown waits for it.",
        unit="seconds",
        ge=0.01,
        le=10,
    )

    # Dying and stopping -----------------------------------------------------------------------------

    lease_seconds: Seconds = _setting(
        "WORKER_LEASE_SECONDS",
        9.0,
        "How long a worker that falls silent keeps its messages. Shorter: sooner taken over. Longer: a "
        "longer pause is forgiven. It is renewed three times in its length.",
        unit="seconds",
        ge=3,
        le=300,
    )
    max_takeovers: int = _setting(
        "WORKER_MAX_TAKEOVERS",
        3,
        "Owners that may die on one message before it is dispatched. After that it is poison: dead-lettered, "
        "so that it cannot kill every replica in turn.",
        unit="workers",
        ge=1,
        le=100,
    )
    drain_seconds: Seconds = _setting(
        "WORKER_DRAIN_SECONDS",
        20.0,
        "Time from SIGTERM to exit. Dispatches on their way are finished, everything else is handed over; no "
        "job is stopped. The platform's grace period must be longer.",
        unit="seconds",
        ge=1,
        le=3600,
    )
    stall_seconds: Seconds = _setting(
        "WORKER_STALL_SECONDS",
        30.0,
        "A loop that has not come round for this long fails the health check, and the lease is given up.",
        unit="seconds",
        ge=5,
        le=3600,
    )

    # What is kept, and told -------------------------------------------------------------------------

    durability: Literal["none", "replica", "aof"] = _setting(
        "WORKER_DURABILITY",
        "none",
        "What an intent to dispatch or stop must survive before Nomad is asked: `replica` (one has it: "
        "WAIT), `aof` (it is on the primary's disk: WAITAOF, Redis 7.2). A final reply that is not confirmed "
        "is counted only. It narrows the window in which a failover loses what was acknowledged, and costs a "
        "round trip.",
    )
    ledger_retention_seconds: int = _setting(
        "WORKER_LEDGER_RETENTION_SECONDS",
        7 * DAY_SECONDS,
        "How long a settled message is remembered. Nomad forgets its idempotency token when it collects the "
        "job (after 4 hours by default): from then on only the ledger keeps a message from running twice.",
        unit="seconds",
        ge=3600,
        le=365 * DAY_SECONDS,
    )
    reply_maxlen: int = _setting(
        "WORKER_REPLY_MAXLEN",
        100_000,
        "Entries kept in a reply stream, approximately. It must exceed the rate of replies times the longest "
        "absence of a reader.",
        unit="entries",
        ge=1_000,
        le=1_000_000_000,
    )
    dead_retention_seconds: int = _setting(
        "WORKER_DEAD_RETENTION_SECONDS",
        0,
        "Age at which a dead letter is dropped. It is announced before, a day or a quarter of this ahead, in "
        "the log (`dead_letters.expiring`) and by `status`. 0: never; somebody has to look after them.",
        unit="seconds",
        ge=0,
        le=10 * 365 * DAY_SECONDS,
    )
    purge_finished: Flag = _setting(
        "WORKER_PURGE_FINISHED",
        default=False,
        why="Purge a dispatched job from Nomad once its final reply is settled. Nomad's token check reads "
        "all children of a job, so thousands of finished ones slow every dispatch. Needs `submit-job`.",
    )
    log_tail_bytes: int = _setting(
        "WORKER_LOG_TAIL_BYTES",
        0,
        "How much of the end of a failed task's stderr and stdout a final reply carries. Needs `read-logs`. "
        "0: none.",
        unit="bytes",
        ge=0,
        le=65_536,
    )
    ui_links: UiLinks = _setting(
        "WORKER_UI_LINKS",
        "true",
        "Links to Nomad's web interface in replies: `true` (at `NOMAD_ADDR`), `false`, or the interface's "
        "base URL where people reach it under another address.",
    )
    trace_meta: Flag = _setting(
        "WORKER_TRACE_META",
        default=False,
        why="Hand a request's trace context to its job as meta key `traceparent`. The job must allow the "
        "key, or Nomad refuses the dispatch; requests without one are not affected.",
    )
    http_addr: ListenAddress = _setting(
        "WORKER_HTTP_ADDR", Listen("", 9464), "Address of /metrics, /healthz, /readyz and /status."
    )
    status_token_file: ReadableFile = _setting(
        "WORKER_STATUS_TOKEN_FILE",
        None,
        "File with the token, 16 characters at least, that the status page asks for before it cancels, "
        "requeues or drops. Read again at every action. Unset: the page is read-only.",
    )
    log_format: Literal["json", "console"] = _setting(
        "WORKER_LOG_FORMAT", "json", "`json` for machines, `console` for people."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "WORKER_LOG_LEVEL", "info", "Least severe level logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, and what `load` is given: no `.env` file that changes a value unseen."""
        return (init_settings, env_settings)

    @field_validator("*", mode="wrap")
    @classmethod
    def _empty_is_unset(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """An empty variable counts as unset, as in Nomad's CLI: templates leave such ones behind."""
        if value == "" and info.field_name:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return handler(value)

    # Derived ----------------------------------------------------------------------------------------

    @property
    def beat_seconds(self) -> float:
        """Time between two renewals of the lease: two may fail before it is over."""
        return self.lease_seconds / 3

    @property
    def stream_names(self) -> tuple[str, ...]:
        """The request streams' short names, in the order given."""
        return tuple(stream.name for stream in self.streams)

    @property
    def allowed_namespaces(self) -> tuple[str, ...]:
        """What a request may choose, the default first; never empty."""
        return _first(self.nomad_namespace, self.namespaces) or ("default",)

    @property
    def allowed_regions(self) -> tuple[str, ...]:
        """What a request may choose, the default first; `""` is the agent's own region."""
        return _first(self.nomad_region, self.regions) or ("",)

    @property
    def ui_base_url(self) -> str:
        """Where Nomad's web interface is; empty: no links."""
        base = {"true": self.nomad_addr, "false": ""}.get(self.ui_links, self.ui_links)
        return base if base.startswith("http") else ""

    @property
    def secret_texts(self) -> frozenset[str]:
        """Secrets given in the environment, for the log's redaction. Those in files are not among them."""
        token = self.nomad_token.get_secret_value() if self.nomad_token else ""
        # From the right: a password may hold an unescaped "@", "/" or "?".
        userinfo = self.redis_url.get_secret_value().partition("://")[2].rpartition("@")[0]
        password = userinfo.partition(":")[2]
        return frozenset({token, password, unquote(password)} - {""})


def _first(default: str, others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((default, *others) if default else others))
