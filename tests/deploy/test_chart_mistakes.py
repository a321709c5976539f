"""Values that must not pass: the schema refuses one that is wrong, the chart those that clash."""

from typing import Any

import pytest

from tests.deploy.chart import Chart

pytestmark = pytest.mark.deploy

MISPLACED: list[tuple[str, dict[str, Any], str]] = [
    ("a typo in a key", {"replicaCounts": 3}, "additional properties 'replicaCounts' not allowed"),
    (
        "a typo further down",
        {"nomad": {"adress": "http://n:4646"}},
        "additional properties 'adress' not allowed",
    ),
    ("a text for a number", {"replicaCount": "three"}, "/replicaCount"),
    ("a number for a text", {"image": {"tag": 1.1}}, "/image/tag"),
    ("an unknown setting", {"settings": {"WORKER_MAX_INFLIGHT": 5}}, "'WORKER_MAX_INFLIGHT' not allowed"),
    ("a setting out of range", {"settings": {"WORKER_MAX_IN_FLIGHT": 0}}, "/settings/WORKER_MAX_IN_FLIGHT"),
    ("a setting that another value gives", {"settings": {"WORKER_DRAIN_SECONDS": 5}}, "WORKER_DRAIN_SECONDS"),
    ("a token among the settings", {"settings": {"NOMAD_TOKEN": "secret"}}, "'NOMAD_TOKEN' not allowed"),
    ("a word that is no level", {"settings": {"WORKER_LOG_LEVEL": "loud"}}, "/settings/WORKER_LOG_LEVEL"),
    ("a password in the URL", {"redis": {"url": "redis://u:p@redis:6379"}}, "/redis/url"),
    ("a Redis URL that is none", {"redis": {"url": "http://redis"}}, "/redis/url"),
    ("a path after Nomad's address", {"nomad": {"address": "https://nomad/v1"}}, "/nomad/address"),
    ("a tag for a digest", {"image": {"digest": "latest"}}, "/image/digest"),
    ("no stream at all", {"queue": {"streams": []}}, "/queue/streams"),
    ("a stream without a name", {"queue": {"streams": [{"weight": 1}]}}, "missing property 'name'"),
    ("a privileged port", {"httpPort": 80}, "/httpPort"),
    ("a probe that Kubernetes has not", {"livenessProbe": {"exec": {}}}, "'exec' not allowed"),
    ("a misspelt security context", {"securityContext": {"readonlyRootFilesystem": True}}, "not allowed"),
    ("a peer of no kind", {"networkPolicy": {"redis": {"to": [{}]}}}, "/networkPolicy/redis/to/0"),
    ("a scrape interval without unit", {"podMonitor": {"interval": "15"}}, "/podMonitor/interval"),
    (
        "an alert that is not ours",
        {"prometheusRule": {"disabled": ["Watchdog"]}},
        "/prometheusRule/disabled/0",
    ),
    ("no replica at most", {"keda": {"maxReplicas": 0}}, "/keda/maxReplicas"),
    ("a variable given twice", {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {}}]}, "/extraEnv/0"),
    ("an option as a job of the test", {"tests": {"jobs": ["--help"]}}, "/tests/jobs/0"),
]

CLASHING: list[tuple[str, dict[str, Any], str]] = [
    (
        "a token both ways",
        {"nomad": {"token": {"existingSecret": "a", "value": "b"}}},
        "nomad.token.existingSecret and nomad.token.value are both set",
    ),
    (
        "a password both ways",
        {"redis": {"password": {"existingSecret": "a", "value": "b"}}},
        "redis.password.existingSecret and redis.password.value are both set",
    ),
    ("no address", {"nomad": {"address": ""}}, "nomad.address is not set"),
    ("no Redis", {"redis": {"url": ""}}, "redis.url is not set"),
    (
        "two Redis URLs",
        {"redis": {"urlSecret": {"name": "a"}}},
        "redis.url and redis.urlSecret.name are both",
    ),
    (
        "a grace period below the drain",
        {"drainSeconds": 60, "terminationGracePeriodSeconds": 30},
        "terminationGracePeriodSeconds (30) is not longer than drainSeconds (60)",
    ),
    ("a drain below a dispatch", {"drainSeconds": 7}, "drainSeconds (7) is not longer than a dispatch"),
    (
        "streams that share tokens",
        {"queue": {"streams": [{"name": "a"}, {"name": "b"}]}},
        "lacks {stream}",
    ),
    (
        "a stream named twice",
        {
            "queue": {"streams": [{"name": "a"}, {"name": "a"}]},
            "settings": {"WORKER_TOKEN_TEMPLATE": "{stream}:{message_id}"},
        },
        "names a twice",
    ),
    (
        "no hash tag on a cluster",
        {"redis": {"url": "redis+cluster://r:6379"}, "queue": {"prefix": "dispatch"}},
        "exactly one hash tag",
    ),
    ("TLS to Redis in the clear", {"redis": {"tls": {"existingSecret": "a"}}}, "asks for no TLS"),
    ("TLS to Nomad in the clear", {"nomad": {"tls": {"existingSecret": "a"}}}, "nomad.address is not https"),
    (
        "a certificate without its key",
        {"nomad": {"address": "https://n", "tls": {"existingSecret": "a", "cert": "tls.crt"}}},
        "nomad.tls.cert and nomad.tls.key belong together",
    ),
    (
        "fewer replicas at most than at least",
        {"keda": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}},
        "keda.minReplicas is above keda.maxReplicas",
    ),
    (
        "replicas that are full before one is added",
        {"keda": {"enabled": True}, "settings": {"WORKER_MAX_IN_FLIGHT": 100}},
        "keda.pendingPerReplica (400) is not below WORKER_MAX_IN_FLIGHT (100)",
    ),
    (
        "KEDA left without an address",
        {"redis": {"url": "", "urlSecret": {"name": "a"}}, "keda": {"enabled": True}},
        "keda.address is not set",
    ),
    (
        "a variable behind the chart's back",
        {"extraEnv": [{"name": "WORKER_DRAIN_SECONDS", "value": "600"}]},
        "extraEnv sets WORKER_DRAIN_SECONDS",
    ),
    (
        "a rolling update of what is recreated",
        {"updateStrategy": {"type": "Recreate"}},
        "Set updateStrategy.rollingUpdate to null",
    ),
]


@pytest.mark.parametrize(
    ("over", "told"), [pytest.param(over, told, id=name) for name, over, told in MISPLACED]
)
def test_the_schema_refuses(chart: Chart, over: dict[str, Any], told: str) -> None:
    refusal = chart.refusal(over)

    assert "values don't meet the specifications of the schema" in refusal
    assert told in refusal


@pytest.mark.parametrize(
    ("over", "told"), [pytest.param(over, told, id=name) for name, over, told in CLASHING]
)
def test_the_chart_says_what_does_not_fit(chart: Chart, over: dict[str, Any], told: str) -> None:
    assert told in chart.refusal(over)


def test_everything_that_does_not_fit_is_told_at_once(chart: Chart) -> None:
    refusal = chart.refusal({"nomad": {"address": ""}, "redis": {"url": ""}, "drainSeconds": 5})

    assert refusal.count("\n- ") == 3
