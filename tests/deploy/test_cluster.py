"""A real Kubernetes API takes every set of values, its change, its way back and its end, without one warning.

What runs Pods is not there: nothing is shown of their start, of the test hook, of evictions or of scaling.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import NAMESPACE, RELEASE, SETS, Chart, loaded, merged
from tests.deploy.cluster import Cluster, cluster

pytestmark = pytest.mark.kube

CHANGE: dict[str, Any] = {
    "drainSeconds": 50,
    "settings": {"WORKER_LOG_LEVEL": "warning"},
    "podMonitor": {"enabled": True},
    "policy": '[streams."*"]\njobs = ["render"]\n',
}
KINDS = {
    "ConfigMap": "api/v1/{}/configmaps",
    "Secret": "api/v1/{}/secrets",
    "ServiceAccount": "api/v1/{}/serviceaccounts",
    "Deployment": "apis/apps/v1/{}/deployments",
    "PodDisruptionBudget": "apis/policy/v1/{}/poddisruptionbudgets",
    "NetworkPolicy": "apis/networking.k8s.io/v1/{}/networkpolicies",
    "PodMonitor": "apis/monitoring.coreos.com/v1/{}/podmonitors",
    "PrometheusRule": "apis/monitoring.coreos.com/v1/{}/prometheusrules",
    "ScaledObject": "apis/keda.sh/v1alpha1/{}/scaledobjects",
    "TriggerAuthentication": "apis/keda.sh/v1alpha1/{}/triggerauthentications",
}


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("kubernetes")) as made:
        priority = {"metadata": {"name": "platform"}, "value": 1000}
        assert made.create("/apis/scheduling.k8s.io/v1/priorityclasses", priority).is_success
        yield made


def listed(kubernetes: Cluster, namespace: str, kind: str) -> list[str]:
    found = kubernetes.names("/" + KINDS[kind].format(f"namespaces/{namespace}"))
    return [name for name in found if not name.startswith("sh.helm.release")]


def pod(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    """A Pod of that template, to be judged by the API server."""
    template = deepcopy(manifest["spec"]["template"])
    template["metadata"] |= {"name": "one", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.name.removesuffix("-values.yaml"))
def test_a_set_is_installed_changed_rolled_back_and_removed(
    kubernetes: Cluster, chart: Chart, values: Path
) -> None:
    namespace = kubernetes.namespace(f"{NAMESPACE}-{values.name.removesuffix('-values.yaml')}")
    before = {kind: listed(kubernetes, namespace, kind) for kind in KINDS}
    changed = json.dumps(merged(loaded(values), CHANGE))

    def helm(*arguments: str | Path, given: str = "") -> str:
        ended = kubernetes.helm(*arguments, "--namespace", namespace, given=given)
        # A warning of the API server comes on stderr.
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    def deployed() -> list[Any]:
        return [one for one in yaml.safe_load_all(helm("get", "manifest", RELEASE)) if one]

    def deployment() -> Any:
        (found,) = [one for one in deployed() if one["kind"] == "Deployment"]
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{found['metadata']['name']}"
        return kubernetes.http.get(path).json()

    helm("install", RELEASE, chart.package, "--values", values)
    first = deployment()
    for kind in {one["kind"] for one in deployed()}:
        names = [one["metadata"]["name"] for one in deployed() if one["kind"] == kind]
        assert sorted(names) == sorted(set(listed(kubernetes, namespace, kind)) - set(before[kind])), kind
    for made in (pod(first, namespace), *hooks(helm("get", "hooks", RELEASE))):
        answer = kubernetes.create(f"/api/v1/namespaces/{namespace}/pods", made, dry_run=True)
        assert (answer.status_code, answer.headers.get("Warning")) == (201, None), answer.text

    helm("upgrade", RELEASE, chart.package, "--values", "-", given=changed)
    second = deployment()
    assert second["spec"]["template"] != first["spec"]["template"]
    assert len(listed(kubernetes, namespace, "PodMonitor")) == 1

    helm("rollback", RELEASE, "1")
    assert deployment()["spec"] == first["spec"]
    history = json.loads(helm("history", RELEASE, "--output", "json"))
    assert [one["status"] for one in history] == ["superseded", "superseded", "deployed"]

    helm("uninstall", RELEASE)
    assert {kind: listed(kubernetes, namespace, kind) for kind in KINDS} == before


def hooks(text: str) -> list[Any]:
    return [one for one in yaml.safe_load_all(text) if one]


def test_a_pod_that_may_more_is_refused(kubernetes: Cluster, chart: Chart) -> None:
    """The check bites: without it the test above would say nothing."""
    namespace = kubernetes.namespace("bites")
    made = chart.render({"securityContext": {"allowPrivilegeEscalation": True}})
    loose = pod(made.one("Deployment"), namespace)
    loose["spec"].pop("serviceAccountName")

    answer = kubernetes.create(f"/api/v1/namespaces/{namespace}/pods", loose, dry_run=True)
    installed = kubernetes.helm(
        *("install", RELEASE, chart.package, "--namespace", namespace),
        *("--values", SETS[0].parent / "min-values.yaml", "--set", "securityContext.runAsUser=0"),
        *("--set", "securityContext.allowPrivilegeEscalation=true"),
    )

    assert answer.status_code == 403
    assert "allowPrivilegeEscalation" in answer.text
    assert "would violate PodSecurity" in installed.stderr


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("PodMonitor", lambda made: made["spec"]["podMetricsEndpoints"][0].update(interval="often")),
        ("PrometheusRule", lambda made: made["spec"]["groups"][0]["rules"][0].pop("expr")),
        ("ScaledObject", lambda made: made["spec"]["triggers"][0].update(metadataX={})),
        ("Deployment", lambda made: made["spec"]["template"]["spec"].update(grace=1)),
    ],
)
def test_a_fault_in_an_object_is_refused(kubernetes: Cluster, chart: Chart, kind: str, fault: Any) -> None:
    objects = chart.exactly(loaded(SETS[0].parent / "everything-values.yaml"))
    sound = objects.one(kind)
    faulty = deepcopy(sound)
    fault(faulty)
    for made in (sound, faulty):
        made["metadata"]["namespace"] = "default"
    path = "/" + KINDS[kind].format("namespaces/default")

    assert kubernetes.create(path, sound, dry_run=True).status_code == 201
    refused = kubernetes.create(path, faulty, dry_run=True)
    assert refused.status_code in {400, 422}, refused.text
