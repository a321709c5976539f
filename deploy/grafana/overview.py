"""The overview: what someone on call looks at first, from the top down.

Knows nothing of Grafana's JSON.
"""  # noqa: INP001 - scripts, not a package

from dashboard import Dashboard, Panel, Query, Row
from inside import NOMAD, PROCESS, REDIS
from queries import JOB, STREAM, J, S, heat, quantiles, rate, top

BAD_ABOVE_ZERO = ((None, "green"), (1, "red"))
IN_TIME = (
    f'sum(increase(dispatch_worker_time_to_decision_seconds_bucket{{{S}, le="30.0"}}[$__range]))'
    f" / sum(increase(dispatch_worker_time_to_decision_seconds_count{{{S}}}[$__range]))"
)

HEALTH = Row(
    "Health",
    [
        Panel(
            "Workers alive",
            "Replicas whose lease in Redis is not over. Those that Prometheus sees may be fewer or more.",
            "short",
            [Query(f"max({top('workers_alive', J, 'job')})")],
            "stat",
            width=3,
            height=4,
            runbook="DispatchWorkerAbsent",
            steps=((None, "red"), (1, "green")),
        ),
        Panel(
            "Decided within 30 s",
            "Share of the requests that Nomad accepted, or that were answered, within 30 s of falling due, "
            "over the time shown. The objective is 99.5 %.",
            "percentunit",
            [Query(IN_TIME)],
            "stat",
            width=4,
            height=4,
            runbook="DispatchWorkerSlowDecisions",
            steps=((None, "red"), (0.995, "green")),
            decimals=2,
        ),
        Panel(
            "Error budget left",
            "What is left of the 0.5 % that may be late, over the time shown. The objective: 30 days.",
            "percentunit",
            [Query(f"1 - (1 - {IN_TIME}) / 0.005")],
            "stat",
            width=4,
            height=4,
            runbook="DispatchWorkerSlowDecisions",
            steps=((None, "red"), (0, "orange"), (0.25, "green")),
            decimals=1,
        ),
        Panel(
            "Waiting",
            "Entries that no worker was given yet, over all streams chosen. No value: Redis cannot tell.",
            "short",
            [Query(f"sum({top('stream_lag_entries', S, 'job, stream')})")],
            "stat",
            width=3,
            height=4,
            runbook="DispatchWorkerBacklogSlow",
        ),
        Panel(
            "Oldest undecided",
            "How long the longest waiting message in a worker's hands has been due without a decision.",
            "s",
            [Query(f"max({top('undecided_oldest_age_seconds', J, 'job')})")],
            "stat",
            width=3,
            height=4,
            runbook="DispatchWorkerUndecidedOld",
            steps=((None, "green"), (30, "orange"), (120, "red")),
        ),
        Panel(
            "Dead letters waiting",
            "Entries of the dead-letter stream. A person must look at each.",
            "short",
            [Query(f"max({top('dead_letter_entries', J, 'job')})")],
            "stat",
            width=3,
            height=4,
            runbook="DispatchWorkerDeadLetters",
            steps=BAD_ABOVE_ZERO,
        ),
        Panel(
            "Alerts",
            "Alerts of the dispatch worker that fire now.",
            "short",
            [Query('count(ALERTS{alertname=~"DispatchWorker.*", alertstate="firing"}) or vector(0)')],
            "stat",
            width=4,
            height=4,
            steps=BAD_ABOVE_ZERO,
        ),
    ],
)

REQUESTS = Row(
    "Requests: rate, errors, duration",
    [
        Panel(
            "Received",
            "Entries read for the first time.",
            "reqps",
            [Query(rate("requests_received_total", S, "stream"), "{{stream}}")],
            runbook="DispatchWorkerBacklogStuck",
        ),
        Panel(
            "Results by outcome",
            "Final replies by verdict.",
            "reqps",
            [Query(rate("results_published_total", S, "outcome"), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Rejected by reason",
            "Requests that were never dispatched, because they could not be or must not be.",
            "reqps",
            [Query(rate("requests_rejected_total", S, "reason"), "{{reason}}")],
            runbook="DispatchWorkerRejectionsHigh",
            stacked=True,
        ),
        Panel(
            "Time to decision",
            "From falling due until Nomad has the job, or the request is answered without one.",
            "s",
            quantiles("time_to_decision_seconds", S),
            runbook="DispatchWorkerSlowDecisions",
        ),
        Panel(
            "Time to decision, distribution",
            "The same, every request.",
            "s",
            heat("time_to_decision_seconds", S),
            "heatmap",
        ),
        Panel(
            "Jobs finished",
            "Dispatched jobs whose final reply was published, by job. A click leads to its dashboard.",
            "reqps",
            [Query(rate("jobs_finished_total", J, "nomad_job, result"), "{{nomad_job}} {{result}}")],
            runbook="DispatchWorkerJobsFailing",
            to_job=True,
            stacked=True,
        ),
    ],
)

STREAMS = Row(
    "Streams",
    [
        Panel(
            "Waiting and in hand",
            "Entries no worker was given yet, and entries given, not yet settled (those held back in Redis "
            "included). A gap: Redis cannot tell.",
            "short",
            [
                Query(top("stream_lag_entries", S, "job, stream"), "{{stream}} waiting"),
                Query(top("stream_pending_entries", S, "job, stream"), "{{stream}} in hand"),
            ],
            runbook="DispatchWorkerBacklogSlow",
        ),
        Panel(
            "Held back",
            "Of the entries in hand, those that wait in Redis: for their turn, because of a cap, a rate or a "
            "fair share, or for their time.",
            "short",
            [
                Query(top("stream_queued_entries", S, "job, stream"), "{{stream}} for its turn"),
                Query(top("stream_delayed_entries", S, "job, stream"), "{{stream}} for its time"),
            ],
            runbook="DispatchWorkerQueueStuck",
            stacked=True,
        ),
        Panel(
            "Oldest held back",
            "How long the oldest entry has waited for its turn.",
            "s",
            [Query(top("stream_oldest_queued_age_seconds", S, "job, stream"), "{{stream}}")],
            runbook="DispatchWorkerQueueOld",
            steps=((None, "green"), (3600, "red")),
        ),
        Panel(
            "Slots of the caps",
            "How many jobs in flight take one, by what the cap holds for. The limits are in the policy file.",
            "short",
            [Query(top("cap_slots_taken", J, "job, scope"), "{{scope}}")],
            runbook="DispatchWorkerQueueOld",
        ),
        Panel(
            "Oldest in hand",
            "Age of the oldest entry that is given and not settled: as long as the longest job runs.",
            "s",
            [Query(top("stream_oldest_pending_age_seconds", S, "job, stream"), "{{stream}}")],
        ),
        Panel(
            "Queue wait",
            "From Redis giving an entry its ID to its first reading.",
            "s",
            quantiles("queue_wait_seconds", S),
            runbook="DispatchWorkerBacklogSlow",
        ),
        Panel(
            "Queue wait, distribution",
            "The same, every request.",
            "s",
            heat("queue_wait_seconds", S),
            "heatmap",
        ),
        Panel(
            "Since the last answered read",
            "Of the replica that read last. It grows while all are full or dispatching is paused.",
            "s",
            [
                Query(
                    f"time() - {top('last_successful_poll_timestamp_seconds', S, 'job, stream')}",
                    "{{stream}}",
                )
            ],
            runbook="DispatchWorkerPollStale",
            steps=((None, "green"), (120, "red")),
        ),
        Panel(
            "Is the lag known?",
            "0: Redis cannot tell how many entries wait, and alerts on the backlog are blind.",
            "bool_yes_no",
            [Query(top("stream_lag_known", S, "job, stream"), "{{stream}}")],
            runbook="DispatchWorkerLagUnknown",
        ),
        Panel(
            "Redelivered and taken over",
            "Entries that came again: their first reading was lost, or their worker died.",
            "reqps",
            [
                Query(rate("redeliveries_total", S, "stream, reason"), "{{stream}} {{reason}}"),
                Query(rate("takeovers_total", J, "job"), "{{job}} taken over"),
            ],
            runbook="DispatchWorkerRedeliveriesHigh",
        ),
        Panel(
            "Dead letters by reason",
            "Messages written to the dead-letter stream.",
            "reqps",
            [Query(rate("dead_letters_total", S, "stream, reason"), "{{stream}} {{reason}}")],
            runbook="DispatchWorkerDeadLetters",
            stacked=True,
        ),
        Panel(
            "Dead letters expire",
            "1: the oldest dead letters are about to be dropped for their age.",
            "short",
            [Query(f"max by (job) (dispatch_worker_dead_letters_expire{{{J}}})", "{{job}}")],
            runbook="DispatchWorkerDeadLettersExpire",
        ),
        Panel(
            "Tried again, let go",
            "Steps that failed and are tried again, messages dropped to another worker, by error code; and "
            "runs that the policy has repeated, by how they ended.",
            "reqps",
            [
                Query(rate("step_retries_total", J, "code"), "again: {{code}}"),
                Query(rate("messages_let_go_total", J, "code"), "let go: {{code}}"),
                Query(rate("runs_repeated_total", J, "outcome"), "run again: {{outcome}}"),
            ],
            runbook="DispatchWorkerRedeliveriesHigh",
        ),
    ],
)

OVERVIEW = Dashboard(
    "dispatch-worker-overview",
    "Dispatch worker / Overview",
    "Requests from Redis streams on their way to Nomad and back. Start at the top: health, then requests, "
    "then the part that is to blame.",
    [JOB, STREAM],
    [HEALTH, REQUESTS, STREAMS, NOMAD, REDIS, PROCESS],
)
