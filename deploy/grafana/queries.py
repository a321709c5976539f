"""The forms that the dashboards' queries have in common, and the variables they are filtered by.

Gauges of what all replicas share are aggregated with max, never summed: each replica exports the same.
"""  # noqa: INP001 - scripts, not a package

from dashboard import Query, Variable

J = 'job=~"$job"'
S = f'{J}, stream=~"$stream"'
RATE = "[$__rate_interval]"


def rate(metric: str, where: str, by: str) -> str:
    """Events per second."""
    return f"sum by ({by}) (rate(dispatch_worker_{metric}{{{where}}}{RATE}))"


def top(metric: str, where: str, by: str) -> str:
    """What replicas share: any of them tells it."""
    return f"max by ({by}) (dispatch_worker_{metric}{{{where}}})"


def quantiles(metric: str, where: str, by: str = "") -> list[Query]:
    """The median, the 95th and the 99th percentile."""
    labels = f"le, {by}" if by else "le"
    series = f"sum by ({labels}) (rate(dispatch_worker_{metric}_bucket{{{where}}}{RATE}))"
    shown = f"{{{{{by}}}}} " if by else ""
    return [
        Query(f"histogram_quantile({q}, {series})", f"{shown}p{round(q * 100)}") for q in (0.5, 0.95, 0.99)
    ]


def heat(metric: str, where: str) -> list[Query]:
    """How many observations fell into each bucket."""
    return [Query(f"sum by (le) (increase(dispatch_worker_{metric}_bucket{{{where}}}{RATE}))", "{{le}}")]


JOB = Variable(
    "job",
    "Deployment",
    "The scrape job: one group of replicas.",
    "label_values(dispatch_worker_build_info, job)",
)
STREAM = Variable(
    "stream",
    "Stream",
    "Request streams by their short names.",
    'label_values(dispatch_worker_requests_received_total{job=~"$job"}, stream)',
)
