"""One job: how its runs go, how long they take, and what Nomad makes of it.

Knows nothing of Grafana's JSON. Jobs beyond the first fifty share the name `other`.
"""  # noqa: INP001 - scripts, not a package

from dashboard import Dashboard, Panel, Query, Row, Variable
from queries import JOB, RATE, heat, quantiles, rate, top

N = 'job=~"$job", nomad_job=~"$nomad_job"'
DONE = f"sum(increase(dispatch_worker_jobs_finished_total{{{N}}}[$__range]))"
WELL = f'sum(increase(dispatch_worker_jobs_finished_total{{{N}, result="succeeded"}}[$__range]))'

SUMMARY = Row(
    "Summary",
    [
        Panel(
            "Runs",
            "Finished in the time shown.",
            "short",
            [Query(DONE)],
            "stat",
            width=6,
            height=4,
            decimals=0,
        ),
        Panel(
            "Succeeded",
            "Share of the finished runs whose every main task ended with exit code 0, unkilled.",
            "percentunit",
            [Query(f"{WELL} / {DONE}")],
            "stat",
            width=6,
            height=4,
            runbook="DispatchWorkerJobsFailing",
            steps=((None, "red"), (0.5, "orange"), (0.95, "green")),
            decimals=1,
        ),
        Panel(
            "In flight",
            "Messages of this job in the workers' hands.",
            "short",
            [Query(f"sum(dispatch_worker_jobs_in_flight{{{N}}})")],
            "stat",
            width=6,
            height=4,
        ),
        Panel(
            "Children that Nomad keeps",
            "Dispatched jobs, finished ones included. Nomad reads all of them for every dispatch.",
            "short",
            [Query(f"sum({top('nomad_children_entries', N, 'nomad_job')})")],
            "stat",
            width=6,
            height=4,
            runbook="DispatchWorkerManyChildren",
            steps=((None, "green"), (5000, "red")),
        ),
    ],
)

RUNS = Row(
    "Runs",
    [
        Panel(
            "Runs by result",
            "Final replies of dispatched jobs. `other` is every verdict but `succeeded`.",
            "reqps",
            [Query(rate("jobs_finished_total", N, "nomad_job, result"), "{{nomad_job}} {{result}}")],
            width=12,
            runbook="DispatchWorkerJobsFailing",
            stacked=True,
        ),
        Panel(
            "In flight",
            "Messages of this job in the workers' hands.",
            "short",
            [Query(f"sum by (nomad_job) (dispatch_worker_jobs_in_flight{{{N}}})", "{{nomad_job}}")],
            width=12,
            stacked=True,
        ),
        Panel(
            "Duration",
            "From receiving a message to its final reply, the job's run included. Dots lead to traces.",
            "s",
            quantiles("request_duration_seconds", N, "nomad_job"),
            width=12,
            exemplars=True,
        ),
        Panel(
            "Duration, distribution",
            "The same, every run.",
            "s",
            heat("request_duration_seconds", N),
            "heatmap",
            width=12,
        ),
    ],
)

DISPATCHES = Row(
    "Dispatches",
    [
        Panel(
            "Dispatches by outcome",
            "What Nomad answered: a new job, the job of an earlier try, or a refusal for good.",
            "reqps",
            [Query(rate("dispatches_total", N, "nomad_job, outcome"), "{{nomad_job}} {{outcome}}")],
            width=12,
            runbook="DispatchWorkerRejectionsHigh",
            stacked=True,
        ),
        Panel(
            "Share of all runs",
            "How much of what all jobs finished was this one.",
            "percentunit",
            [
                Query(
                    f"sum(rate(dispatch_worker_jobs_finished_total{{{N}}}{RATE}))"
                    f' / sum(rate(dispatch_worker_jobs_finished_total{{job=~"$job"}}{RATE}))',
                    "share",
                )
            ],
            width=12,
        ),
    ],
)

NOMAD_JOB = Variable(
    "nomad_job",
    "Job",
    "The parameterized job. Those beyond the first fifty share the name other.",
    'label_values(dispatch_worker_jobs_finished_total{job=~"$job"}, nomad_job)',
)

ONE_JOB = Dashboard(
    "dispatch-worker-job",
    "Dispatch worker / One job",
    "How the runs of one parameterized job go.",
    [JOB, NOMAD_JOB],
    [SUMMARY, RUNS, DISPATCHES],
)
