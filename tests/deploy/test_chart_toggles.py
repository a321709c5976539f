"""Each value of the chart does what it says, and nothing while it is off."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.chart import Chart, Objects
from worker.core.keys import Keys

pytestmark = pytest.mark.deploy

Shows = Callable[[Objects], Any]
ON = {"enabled": True}
SEVERAL = {
    "queue": {"streams": [{"name": "high", "weight": 3}, {"name": "low"}]},
    "settings": {"WORKER_TOKEN_TEMPLATE": "{stream}:{message_id}"},
}
PEER = {"ipBlock": {"cidr": "10.0.0.0/8"}}


def kind(name: str, ending: str = "") -> Shows:
    return lambda made: any(one["metadata"]["name"].endswith(ending) for one in made.of(name))


def of_pod(field: str) -> Shows:
    return lambda made: made.pod["spec"].get(field)


def variable(name: str) -> Shows:
    return lambda made: made.environment.get(name)


def sources(made: Objects) -> list[Any]:
    files: list[Any] = made.pod["spec"]["volumes"][0]["projected"]["sources"]
    return files


def from_secret(name: str, path: str) -> Shows:
    def shows(made: Objects) -> bool:
        secrets = [one["secret"] for one in sources(made) if "secret" in one]
        return any(one["name"] == name and path in [item["path"] for item in one["items"]] for one in secrets)

    return shows


def egress(made: Objects) -> list[tuple[list[int], list[Any] | None]]:
    return [
        ([port["port"] for port in rule["ports"]], rule.get("to"))
        for rule in made.one("NetworkPolicy")["spec"]["egress"]
    ]


SWITCHES: list[tuple[str, dict[str, Any], dict[str, Any], Shows]] = [
    ("podMonitor", {}, {"podMonitor": ON}, kind("PodMonitor")),
    ("prometheusRule", {}, {"prometheusRule": ON}, kind("PrometheusRule")),
    ("dashboards", {}, {"dashboards": ON}, kind("ConfigMap", "-dashboards")),
    ("networkPolicy", {}, {"networkPolicy": ON}, kind("NetworkPolicy")),
    ("keda", {}, {"keda": ON}, kind("ScaledObject")),
    (
        "KEDA's authentication",
        {"keda": ON},
        {"keda": ON, "redis": {"password": {"existingSecret": "r"}}},
        kind("TriggerAuthentication"),
    ),
    (
        "KEDA's own user",
        {"keda": {**ON, "authenticationRef": "own"}, "redis": {"password": {"existingSecret": "r"}}},
        {"keda": ON, "redis": {"password": {"existingSecret": "r"}}},
        kind("TriggerAuthentication"),
    ),
    ("tests", {"tests": {"enabled": False}}, {}, kind("Pod", "-doctor")),
    ("serviceAccount", {"serviceAccount": {"create": False}}, {}, kind("ServiceAccount")),
    ("podDisruptionBudget", {"podDisruptionBudget": {"enabled": False}}, {}, kind("PodDisruptionBudget")),
    ("a budget for one replica", {"replicaCount": 1}, {}, kind("PodDisruptionBudget")),
    (
        "a budget for one of KEDA's replicas",
        {"keda": {**ON, "maxReplicas": 1}},
        {"keda": ON},
        kind("PodDisruptionBudget"),
    ),
    ("a token in the values", {}, {"nomad": {"token": {"value": "t"}}}, kind("Secret")),
    ("a password in the values", {}, {"redis": {"password": {"value": "p"}}}, kind("Secret")),
    (
        "a token by name",
        {"nomad": {"token": {"value": "t"}}},
        {"nomad": {"token": {"existingSecret": "mine"}}},
        from_secret("mine", "nomad/token"),
    ),
    ("the token's file", {}, {"nomad": {"token": {"existingSecret": "n"}}}, variable("NOMAD_TOKEN_FILE")),
    ("the password's file", {}, {"redis": {"password": {"value": "p"}}}, variable("REDIS_PASSWORD_FILE")),
    ("a policy", {}, {"policy": "[streams]"}, variable("WORKER_ALLOW_FILE")),
    ("traces", {}, {"otlp": {"endpoint": "http://c:4318"}}, variable("OTEL_EXPORTER_OTLP_ENDPOINT")),
    (
        "Nomad's CA",
        {},
        {"nomad": {"address": "https://n", "tls": {"existingSecret": "t"}}},
        from_secret("t", "nomad/ca.crt"),
    ),
    (
        "a certificate for Redis",
        {},
        {
            "redis": {
                "url": "rediss://r",
                "tls": {"existingSecret": "t", "cert": "tls.crt", "key": "tls.key"},
            }
        },
        from_secret("t", "redis/tls.key"),
    ),
    ("priorityClassName", {}, {"priorityClassName": "high"}, of_pod("priorityClassName")),
    ("nodeSelector", {}, {"nodeSelector": {"disk": "ssd"}}, of_pod("nodeSelector")),
    ("tolerations", {}, {"tolerations": [{"operator": "Exists"}]}, of_pod("tolerations")),
    ("affinity", {}, {"affinity": {"nodeAffinity": {}}}, of_pod("affinity")),
    ("pull secrets", {}, {"image": {"pullSecrets": ["p"]}}, of_pod("imagePullSecrets")),
    ("spread", {"topologySpreadConstraints": []}, {}, of_pod("topologySpreadConstraints")),
    (
        "more variables",
        {},
        {"extraEnv": [{"name": "A", "value": "1"}]},
        lambda made: {"name": "A", "value": "1"} in made.container.get("env", []),
    ),
    (
        "more sources of variables",
        {},
        {"extraEnvFrom": [{"secretRef": {"name": "more"}}]},
        lambda made: {"secretRef": {"name": "more"}} in made.container["envFrom"],
    ),
    (
        "more volumes",
        {},
        {"extraVolumes": [{"name": "more", "emptyDir": {}}]},
        lambda made: {"name": "more", "emptyDir": {}} in made.pod["spec"]["volumes"],
    ),
    (
        "more mounts",
        {},
        {"extraVolumeMounts": [{"name": "more", "mountPath": "/more"}]},
        lambda made: {"name": "more", "mountPath": "/more"} in made.container["volumeMounts"],
    ),
    (
        "more objects",
        {},
        {
            "extraObjects": [
                {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "{{ .Release.Name }}"}}
            ]
        },
        kind("Service", "rel"),
    ),
    (
        "labels on everything",
        {},
        {"commonLabels": {"team": "a"}, "podMonitor": ON, "keda": ON, "networkPolicy": ON, "dashboards": ON},
        lambda made: all(one["metadata"]["labels"].get("team") == "a" for one in made.all),
    ),
    ("labels on Pods", {}, {"podLabels": {"a": "b"}}, lambda made: "a" in made.pod["metadata"]["labels"]),
    (
        "annotations on Pods",
        {},
        {"podAnnotations": {"a": "b"}},
        lambda made: "a" in made.pod["metadata"]["annotations"],
    ),
]


@pytest.mark.parametrize(
    ("off", "on", "shows"), [pytest.param(off, on, shows, id=name) for name, off, on, shows in SWITCHES]
)
def test_what_is_switched_on_is_there_and_what_is_off_is_not(
    chart: Chart, off: dict[str, Any], on: dict[str, Any], shows: Shows
) -> None:
    assert shows(chart.render(on))
    assert not shows(chart.render(off))


def test_the_grace_period_is_the_drain_and_a_margin(chart: Chart) -> None:
    def grace(**values: Any) -> int:
        seconds: int = chart.render(values).pod["spec"]["terminationGracePeriodSeconds"]
        return seconds

    assert grace() == 20 + 10
    assert grace(drainSeconds=90) == 100
    assert grace(drainSeconds=20.2, terminationGraceMarginSeconds=5) == 26
    assert grace(terminationGracePeriodSeconds=300) == 300


def test_pods_are_replaced_when_their_configuration_changes_and_only_then(chart: Chart) -> None:
    def annotations(**values: Any) -> Any:
        return chart.render(values).pod["metadata"]["annotations"]

    before = annotations()

    assert annotations(settings={"WORKER_LOG_LEVEL": "debug"}) != before
    with_policy = annotations(policy="[streams]")
    assert with_policy != before
    # The workers see it by themselves; a faulty one they refuse, where a new Pod would not start.
    assert annotations(policy="version = 1") == with_policy
    assert annotations(replicaCount=7, podMonitor=ON) == before
    token = {"nomad": {"token": {"value": "one"}}}
    assert annotations(**token) != annotations(nomad={"token": {"value": "two"}})


def test_a_secret_in_the_values_is_in_the_secret_and_nowhere_else(chart: Chart) -> None:
    made = chart.render(
        {"nomad": {"token": {"value": "planted-token"}}, "redis": {"password": {"value": "planted-password"}}}
    )

    assert "planted" not in made.text
    assert set(made.one("Secret")["data"]) == {"nomad-token", "redis-password"}


def test_each_stream_scales_by_what_waits_and_by_what_is_not_settled(chart: Chart) -> None:
    made = chart.render({**SEVERAL, "keda": ON, "redis": {"url": "redis://redis:6379/4"}})

    triggers = made.one("ScaledObject")["spec"]["triggers"]

    keys = Keys("{dispatch}")
    for stream in ("high", "low"):
        own = [one["metadata"] for one in triggers if one["metadata"]["stream"] == keys.stream(stream)]
        assert sorted(sorted({"lagCount", "pendingEntriesCount"} & set(one)) for one in own) == [
            ["lagCount"],
            ["pendingEntriesCount"],
        ]
    assert len({one["name"] for one in triggers}) == len(triggers) == 4
    assert {one["metadata"]["consumerGroup"] for one in triggers} == {"workers"}
    assert {one["metadata"]["databaseIndex"] for one in triggers} == {"4"}
    assert "replicas" not in made.one("Deployment")["spec"]


@pytest.mark.parametrize(
    ("url", "kind_", "address", "more"),
    [
        ("redis://r:6380/2", "redis-streams", {"address": "r:6380"}, {"databaseIndex": "2"}),
        ("rediss://r", "redis-streams", {"address": "r:6379"}, {"enableTLS": "true"}),
        (
            "redis+sentinel://a,b:26380/main/3",
            "redis-sentinel-streams",
            {"addresses": "a:26379,b:26380"},
            {"sentinelMaster": "main", "databaseIndex": "3"},
        ),
        ("redis+cluster://a:7000,b:7001", "redis-cluster-streams", {"addresses": "a:7000,b:7001"}, {}),
    ],
)
def test_keda_is_told_the_same_redis(
    chart: Chart, url: str, kind_: str, address: dict[str, str], more: dict[str, str]
) -> None:
    made = chart.render({"redis": {"url": url}, "keda": ON})

    for trigger in made.one("ScaledObject")["spec"]["triggers"]:
        assert trigger["type"] == kind_
        assert {**address, **more}.items() <= trigger["metadata"].items()


def test_the_network_policy_opens_dns_redis_and_nomad_only(chart: Chart) -> None:
    made = chart.render(
        {"networkPolicy": ON, "nomad": {"address": "https://n"}, "redis": {"url": "redis://r:6390"}}
    )

    dns, redis, nomad = egress(made)

    assert (dns[0], redis[0], nomad[0]) == ([53, 53], [6390], [443])
    assert made.one("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = made.one("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [9464]


def test_the_network_policy_opens_the_collector_where_there_is_one(chart: Chart) -> None:
    made = chart.render(
        {
            "otlp": {"endpoint": "http://collector:4318"},
            "networkPolicy": {
                **ON,
                "otlp": {"to": [PEER]},
                "redis": {"ports": [26379, 6379]},
                "metricsFrom": [PEER],
                "extraEgress": [{"to": [PEER], "ports": [{"port": 8200}]}],
            },
        }
    )

    assert ([4318], [PEER]) in egress(made)
    assert ([26379, 6379], None) in egress(made)
    assert ([8200], [PEER]) in egress(made)
    assert made.one("NetworkPolicy")["spec"]["ingress"][0]["from"] == [PEER]


def test_names_and_labels_select_the_workers_and_not_the_test(chart: Chart) -> None:
    made = chart.render({"podMonitor": ON})

    workers = made.one("Deployment")["spec"]["selector"]["matchLabels"]

    assert workers.items() <= made.pod["metadata"]["labels"].items()
    assert made.one("PodMonitor")["spec"]["selector"]["matchLabels"] == workers
    assert made.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == workers
    assert not workers.items() <= made.one("Pod")["metadata"]["labels"].items()
    for spread in made.pod["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == workers


def test_the_pod_has_no_rights(chart: Chart) -> None:
    made = chart.render({"nomad": {"token": {"value": "t"}}})

    for pod in (made.pod["spec"], made.one("Pod")["spec"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert made.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_probes_ask_what_each_is_for(chart: Chart) -> None:
    container = chart.render({"livenessProbe": {"periodSeconds": 33}}).container

    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }

    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert container["livenessProbe"]["periodSeconds"] == 33
    assert container["ports"] == [{"name": "http", "containerPort": 9464}]


def test_a_digest_wins_over_a_tag(chart: Chart) -> None:
    digest = "sha256:" + "a" * 64

    assert chart.render({"image": {"tag": "1", "digest": digest}}).container["image"].endswith(f"@{digest}")
    assert chart.render({"image": {"tag": "1.2"}}).container["image"] == "nomad-dispatch-worker:1.2"


def test_the_test_runs_doctor_for_the_jobs_named(chart: Chart) -> None:
    (container,) = chart.render({"tests": {"jobs": ["render"]}}).one("Pod")["spec"]["containers"]

    assert container["args"] == ["doctor", "render"]
    assert container["envFrom"][0] == {"configMapRef": {"name": "rel-dispatch-worker"}}
