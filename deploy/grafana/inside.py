"""The overview's lower half: what the workers see of Nomad and Redis, and what they are themselves.

Knows nothing of Grafana's JSON.
"""  # noqa: INP001 - scripts, not a package

from dashboard import Panel, Query, Row
from queries import RATE, J, heat, rate, top

TOKEN_ENDS = "dispatch_worker_nomad_token_expiry_timestamp_seconds"  # noqa: S105 - a metric

NOMAD = Row(
    "Nomad",
    [
        Panel(
            "Requests by operation",
            "Requests of all workers to Nomad.",
            "reqps",
            [Query(rate("nomad_requests_total", J, "operation"), "{{operation}}")],
            stacked=True,
        ),
        Panel(
            "Requests that did not succeed",
            "By HTTP status; `error`: no answer. 500 is also how Nomad answers for an unknown job.",
            "reqps",
            [
                Query(
                    rate("nomad_requests_total", f'{J}, code!="200"', "operation, code"),
                    "{{operation}} {{code}}",
                )
            ],
            runbook="DispatchWorkerNomadFailing",
            also=("DispatchWorkerNomadDenied",),
        ),
        Panel(
            "Duration by operation, p95",
            "Of one request, from being sent to its last byte; of an event stream, to its headers.",
            "s",
            [
                Query(
                    "histogram_quantile(0.95, "
                    f"{rate('nomad_request_duration_seconds_bucket', J, 'le, operation')})",
                    "{{operation}}",
                )
            ],
            runbook="DispatchWorkerNomadFailing",
        ),
        Panel(
            "Dispatches",
            "By what Nomad answered: a new job, the job of an earlier try, or a refusal for good.",
            "reqps",
            [Query(rate("dispatches_total", J, "outcome"), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Dispatch duration, distribution",
            "Time Nomad took to answer a dispatch. It grows with the children a job has.",
            "s",
            heat("dispatch_duration_seconds", J),
            "heatmap",
            runbook="DispatchWorkerManyChildren",
        ),
        Panel(
            "Children that Nomad keeps",
            "Dispatched jobs, finished ones included. Nomad reads all of a job's for every dispatch of it.",
            "short",
            [Query(top("nomad_children_entries", J, "nomad_job"), "{{nomad_job}}")],
            runbook="DispatchWorkerManyChildren",
            to_job=True,
            steps=((None, "green"), (5000, "red")),
        ),
        Panel(
            "Dispatch pace",
            "Most dispatches on their way at once in each worker, and what holds that limit down: Nomad's "
            "latency, its errors, what it has waiting, or the children it keeps.",
            "short",
            [
                Query(f"dispatch_worker_dispatch_concurrency_limit{{{J}}}", "{{instance}}"),
                Query(
                    f'sum by (reason) (dispatch_worker_dispatch_concurrency_brake{{{J}, reason!="none"}})',
                    "workers held by {{reason}}",
                ),
            ],
            runbook="DispatchWorkerSlowDecisions",
        ),
        Panel(
            "Waiting in Nomad",
            "Evaluations pending or blocked in the namespaces served. At WORKER_NOMAD_WAITING_LIMIT nothing "
            "more is read: what waits does so in Redis.",
            "short",
            [Query(top("nomad_open_evaluations", J, "job"))],
            runbook="DispatchWorkerNomadFull",
        ),
        Panel(
            "Event streams",
            "Whether each worker's event stream is open, and the time since its last line.",
            "s",
            [
                Query(
                    f"time() - (dispatch_worker_event_stream_last_frame_timestamp_seconds{{{J}}} > 0)",
                    "{{instance}} {{nomad_namespace}} last line",
                ),
                Query(
                    f"dispatch_worker_event_stream_connected{{{J}}}",
                    "{{instance}} {{nomad_namespace}} open (1)",
                ),
            ],
            runbook="DispatchWorkerEventStreamLost",
        ),
        Panel(
            "Event lines, losses, sweeps",
            "Lines read by kind, streams lost, sweeps done, and ends that only a sweep found.",
            "reqps",
            [
                Query(rate("event_frames_total", J, "kind"), "{{kind}}"),
                Query(rate("event_stream_losses_total", J, "code"), "{{code}}"),
                Query(rate("sweeps_total", J, "job"), "sweeps"),
                Query(rate("sweep_corrections_total", J, "job"), "found by sweeps alone"),
                Query(rate("duplicate_children_stopped_total", J, "job"), "second jobs stopped"),
            ],
            runbook="DispatchWorkerEventStreamLost",
            also=("DispatchWorkerDuplicateJob",),
        ),
        Panel(
            "Gate, and the token's rest",
            "1: dispatches flow freely; 0: paused after repeated failures. The token's rest is in days; "
            "none: it does not end, or it is not known.",
            "short",
            [
                Query(f"dispatch_worker_dispatch_gate_open{{{J}}}", "{{instance}} gate"),
                Query(
                    f"(min({TOKEN_ENDS}{{{J}}} > 0) - time()) / 86400",
                    "days of the token",
                ),
            ],
            runbook="DispatchWorkerGateClosed",
            also=("DispatchWorkerTokenExpires",),
        ),
    ],
)

REDIS = Row(
    "Redis and leases",
    [
        Panel(
            "Failed calls",
            "By operation and error code.",
            "reqps",
            [Query(rate("redis_errors_total", J, "operation, kind"), "{{operation}} {{kind}}")],
            runbook="DispatchWorkerRedisErrors",
        ),
        Panel(
            "Lease left",
            "How long each worker certainly holds its lease. At 0 it dispatches nothing; others take over.",
            "s",
            [Query(f"dispatch_worker_lease_remaining_seconds{{{J}}}", "{{instance}}")],
            runbook="DispatchWorkerLeaseLost",
        ),
        Panel(
            "Fenced, reconnected",
            "Steps the ledger refused a former owner, and connections that came back after they were lost.",
            "reqps",
            [
                Query(rate("fenced_total", J, "operation"), "fenced: {{operation}}"),
                Query(rate("reconnects_total", J, "kind"), "reconnected: {{kind}}"),
            ],
            runbook="DispatchWorkerRedeliveriesHigh",
        ),
    ],
)

PROCESS = Row(
    "Processes",
    [
        Panel(
            "In flight and limit",
            "Messages each worker holds, and the most it may hold. At the limit it reads no more.",
            "short",
            [
                Query(f"sum by (instance) (dispatch_worker_jobs_in_flight{{{J}}})", "{{instance}}"),
                Query(f"dispatch_worker_jobs_in_flight_limit{{{J}}}", "{{instance}} limit"),
            ],
            runbook="DispatchWorkerAtLimit",
        ),
        Panel(
            "In flight by job",
            "Over all workers. A click leads to the job's own dashboard.",
            "short",
            [Query(f"sum by (nomad_job) (dispatch_worker_jobs_in_flight{{{J}}})", "{{nomad_job}}")],
            to_job=True,
            stacked=True,
        ),
        Panel(
            "CPU",
            "Seconds of CPU per second. One worker uses one core at most.",
            "percentunit",
            [Query(f"rate(process_cpu_seconds_total{{{J}}}{RATE})", "{{instance}}")],
            steps=((None, "green"), (0.9, "red")),
        ),
        Panel(
            "A round of the event loop",
            "How long each worker's own event loop takes to come round. It is part of every wait for others.",
            "s",
            [Query(f"dispatch_worker_event_loop_round_seconds{{{J}}}", "{{instance}}")],
        ),
        Panel(
            "Resident memory",
            "It grows with the messages in flight, not with the cluster.",
            "bytes",
            [Query(f"process_resident_memory_bytes{{{J}}}", "{{instance}}")],
        ),
        Panel(
            "Open files",
            "Share of what the process may open.",
            "percentunit",
            [Query(f"process_open_fds{{{J}}} / process_max_fds{{{J}}}", "{{instance}}")],
            steps=((None, "green"), (0.8, "red")),
        ),
        Panel(
            "Uptime and leaving",
            "Time since each worker's start; 1 while it is shutting down.",
            "s",
            [
                Query(f"time() - process_start_time_seconds{{{J}}}", "{{instance}} up"),
                Query(f"dispatch_worker_draining{{{J}}}", "{{instance}} leaving (1)"),
            ],
            runbook="DispatchWorkerRestarts",
            also=("DispatchWorkerDown", "DispatchWorkerDrainStuck"),
        ),
        Panel(
            "Actions on the status page",
            "What people cancelled, requeued and dropped there, and what was refused. The log names them.",
            "short",
            [
                Query(
                    f"sum by (action, outcome) (increase(dispatch_worker_status_actions_total{{{J}}}{RATE}))",
                    "{{action}} {{outcome}}",
                )
            ],
            width=16,
            height=6,
        ),
        Panel(
            "Is the policy in force as it stands?",
            "No: the policy file has a fault, and the last good one goes on.",
            "bool_yes_no",
            [Query(f"dispatch_worker_config_last_reload_successful{{{J}}}", "{{instance}}")],
            height=6,
            runbook="DispatchWorkerPolicyKept",
        ),
        Panel(
            "Builds",
            "What runs where. More than one version for long: a rollout is stuck.",
            "short",
            [Query(f"dispatch_worker_build_info{{{J}}}")],
            "table",
            width=24,
            height=6,
            runbook="DispatchWorkerVersionSkew",
        ),
    ],
)
