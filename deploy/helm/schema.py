"""Writes values.schema.json: what may stand in the chart's values, and nothing else.

Descriptions come from values.yaml, names and ranges of the worker's settings from its own model. What several
values must agree on is in templates/_check.tpl, which can say it in words.
"""  # noqa: INP001 - a script, no package

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.settings.model import Settings

CHART = Path(__file__).parent / "dispatch-worker"
Schema = dict[str, Any]

NOT_IN_SETTINGS = {
    "WORKER_NAME": "must be new for every process",
    "WORKER_PREFIX": "queue.prefix",
    "WORKER_STREAMS": "queue.streams",
    "WORKER_GROUP": "queue.group",
    "WORKER_NAMESPACES": "nomad.namespaces",
    "WORKER_REGIONS": "nomad.regions",
    "WORKER_ALLOW_FILE": "policy",
    "WORKER_DRAIN_SECONDS": "drainSeconds",
    "WORKER_HTTP_ADDR": "httpPort",
}
"""Settings that another value of the chart gives, or none can. All of Nomad's and Redis's are such."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
KUBERNETES_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
DURATION = r"^([0-9]+(ms|s|m|h))+$"


def text(pattern: str = "", *, empty: bool = True, **more: Any) -> Schema:
    """A string; a pattern need not allow the empty one by itself."""
    if pattern:
        more["pattern"] = f"{pattern}|^$" if empty else pattern
    elif not empty:
        more["minLength"] = 1
    return {"type": "string", **more}


def number(least: float, most: float | None = None, *, whole: bool = True, null: bool = False) -> Schema:
    """A number within bounds."""
    kind = "integer" if whole else "number"
    made: Schema = {"type": [kind, "null"] if null else kind, "minimum": least}
    return made if most is None else {**made, "maximum": most}


def choice(*values: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(values)}


def items(of: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": of, **more}


def keys(required: tuple[str, ...] = (), description: str = "", **properties: Schema) -> Schema:
    """An object of exactly these keys."""
    made: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    if description:
        made["description"] = description
    if required:
        made["required"] = list(required)
    return made


def anything(description: str = "") -> Schema:
    """An object whose keys Kubernetes knows better."""
    return {"type": "object", **({"description": description} if description else {})}


FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
SECRET = text(KUBERNETES_NAME, maxLength=253)
KEY = text(r"^[-._a-zA-Z0-9]+$", maxLength=253)
PORT = number(1, 65_535)
COUNT_OR_PERCENTAGE: Schema = {"anyOf": [number(0, null=True), text(r"^[0-9]+%$", empty=False)]}
SELECTOR = keys(
    matchLabels=TEXTS,
    matchExpressions=items(
        keys(
            ("key", "operator"),
            key=text(empty=False),
            operator=choice("In", "NotIn", "Exists", "DoesNotExist"),
            values=items(text()),
        )
    ),
)
PEERS = items(
    {
        **keys(
            podSelector=SELECTOR,
            namespaceSelector=SELECTOR,
            ipBlock=keys(("cidr",), cidr=text(empty=False), **{"except": items(text(empty=False))}),
        ),
        "minProperties": 1,
    }
)
TARGET = {"to": PEERS, "ports": items(PORT)}
TLS = {"existingSecret": SECRET, "ca": KEY, "cert": KEY, "key": KEY}
AMOUNTS = keys(
    **{
        name: {"type": ["string", "number"], "pattern": QUANTITY}
        for name in ("cpu", "memory", "ephemeral-storage")
    }
)
PROBE = {"periodSeconds": number(1), "timeoutSeconds": number(1), "failureThreshold": number(1)}
SECCOMP = keys(
    ("type",), type=choice("RuntimeDefault", "Localhost", "Unconfined"), localhostProfile=text(empty=False)
)
SELINUX = keys(level=text(), role=text(), type=text(), user=text())
USERS = {
    "runAsNonRoot": FLAG,
    "runAsUser": number(0),
    "runAsGroup": number(0),
    "seccompProfile": SECCOMP,
    "seLinuxOptions": SELINUX,
}
SCALING = keys(
    stabilizationWindowSeconds=number(0, 3600),
    selectPolicy=choice("Max", "Min", "Disabled"),
    policies=items(
        keys(
            ("type", "value", "periodSeconds"),
            type=choice("Pods", "Percent"),
            value=number(1),
            periodSeconds=number(1, 1800),
        )
    ),
    tolerance={"type": ["string", "number"]},
)

REDIS_URL = r"^rediss?(\+sentinel|\+cluster)?://[^@\s]+$"


def settings() -> Schema:
    """The worker's own settings, by environment name, as its model has them."""
    found = {}
    for field in Settings.model_fields.values():
        name = str(field.validation_alias)
        if name.startswith("WORKER_") and name not in NOT_IN_SETTINGS:
            found[name] = {**_setting(name), "description": field.description or ""}
    return keys(**dict(sorted(found.items())))


_MODEL = Settings.model_json_schema()["properties"]


def _setting(name: str) -> Schema:
    told = _MODEL[name]
    kept = {
        key: value
        for key, value in told.items()
        if key in ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    }
    if name == "WORKER_UI_LINKS":
        return {"type": ["string", "boolean"]}
    if isinstance(told.get("default"), bool):
        return {"type": "boolean"}
    return kept if kept.get("type") in ("integer", "number", "string") else {"type": "string"}


def values() -> Schema:
    """All of it."""
    return keys(
        **{"global": anything("Helm hands it to every subchart; not used.")},
        replicaCount=number(0),
        image=keys(
            description="The image, built from the repository's Dockerfile.",
            repository=text(r"^[a-z0-9]+([._:/-]+[a-z0-9]+)*$", empty=False),
            tag=text(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"),
            digest=text(r"^sha256:[0-9a-f]{64}$"),
            pullPolicy=choice("Always", "IfNotPresent", "Never"),
            pullSecrets=items(text(KUBERNETES_NAME, empty=False)),
        ),
        nameOverride=text(KUBERNETES_NAME, maxLength=52),
        fullnameOverride=text(KUBERNETES_NAME, maxLength=52),
        nomad=keys(
            description="Where Nomad is, and what the worker is to it.",
            address=text(r"^https?://[^/@\s]+/?$"),
            token=keys(
                description="The ACL token, one way or the other.",
                existingSecret=SECRET,
                key=KEY,
                value=text(),
            ),
            region=text(NAME),
            regions=items(text(NAME, empty=False), uniqueItems=True),
            namespace=text(NAME),
            namespaces=items(text(NAME, empty=False), uniqueItems=True),
            tls=keys(
                description="How Nomad's certificate is checked.", **TLS, serverName=text(), skipVerify=FLAG
            ),
        ),
        redis=keys(
            description="Where Redis is, and what the worker is to it.",
            url=text(REDIS_URL),
            urlSecret=keys(description="The URL from a Secret.", name=SECRET, key=KEY),
            username=text(r"^[^\s:@]+$"),
            password=keys(
                description="The password, one way or the other.",
                existingSecret=SECRET,
                key=KEY,
                value=text(),
            ),
            tls=keys(description="How Redis's certificate is checked.", **TLS),
        ),
        queue=keys(
            description="What is read.",
            prefix=text(r"^[^\s:]+$", empty=False, maxLength=64),
            group=text(NAME, empty=False),
            streams=items(
                keys(
                    ("name",),
                    name=text(NAME, empty=False, description="Short name; the key is `<prefix>:<name>`."),
                    weight={**number(1, 100), "description": "Share of the reads. Default: 1."},
                ),
                minItems=1,
            ),
        ),
        policy=text(),
        settings=settings(),
        drainSeconds=number(1, 3600, whole=False),
        terminationGraceMarginSeconds=number(1, 600, whole=False),
        terminationGracePeriodSeconds=number(1, null=True),
        httpPort=number(1024, 65_535),
        resources=keys(requests=AMOUNTS, limits=AMOUNTS),
        startupProbe=keys(description="While it starts.", **PROBE),
        livenessProbe=keys(description="Whether its loops still come round.", **PROBE),
        readinessProbe=keys(description="Whether it can take work.", **PROBE, successThreshold=number(1)),
        updateStrategy=keys(
            type=choice("RollingUpdate", "Recreate"),
            rollingUpdate={
                **keys(maxSurge=COUNT_OR_PERCENTAGE, maxUnavailable=COUNT_OR_PERCENTAGE),
                "type": ["object", "null"],
            },
        ),
        revisionHistoryLimit=number(0),
        minReadySeconds=number(0),
        podDisruptionBudget=keys(
            description="Against evictions of too many replicas at once.",
            enabled=FLAG,
            maxUnavailable=COUNT_OR_PERCENTAGE,
            minAvailable=COUNT_OR_PERCENTAGE,
        ),
        topologySpreadConstraints=items(
            keys(
                ("maxSkew", "topologyKey", "whenUnsatisfiable"),
                maxSkew=number(1),
                minDomains=number(1),
                topologyKey=text(empty=False),
                whenUnsatisfiable=choice("DoNotSchedule", "ScheduleAnyway"),
                labelSelector=SELECTOR,
                matchLabelKeys=items(text(empty=False)),
                nodeAffinityPolicy=choice("Honor", "Ignore"),
                nodeTaintsPolicy=choice("Honor", "Ignore"),
            )
        ),
        affinity=keys(nodeAffinity=anything(), podAffinity=anything(), podAntiAffinity=anything()),
        nodeSelector=TEXTS,
        tolerations=items(
            keys(
                key=text(),
                operator=choice("Equal", "Exists"),
                value=text(),
                effect=choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
                tolerationSeconds=number(0),
            )
        ),
        priorityClassName=text(KUBERNETES_NAME),
        serviceAccount=keys(
            description="Whom the Pods run as in Kubernetes.",
            create=FLAG,
            name=text(KUBERNETES_NAME),
            annotations=TEXTS,
        ),
        commonLabels=TEXTS,
        podLabels=TEXTS,
        podAnnotations=TEXTS,
        podSecurityContext=keys(
            **USERS,
            fsGroup=number(0),
            fsGroupChangePolicy=choice("OnRootMismatch", "Always"),
            supplementalGroups=items(number(0)),
            supplementalGroupsPolicy=choice("Merge", "Strict"),
        ),
        securityContext=keys(
            **USERS,
            allowPrivilegeEscalation=FLAG,
            privileged=FLAG,
            readOnlyRootFilesystem=FLAG,
            capabilities=keys(add=items(text(empty=False)), drop=items(text(empty=False))),
            appArmorProfile=anything(),
        ),
        networkPolicy=keys(
            description="Who may talk to whom.",
            enabled=FLAG,
            metricsFrom=PEERS,
            dns=keys(description="Names.", to=PEERS),
            redis=keys(description="Redis.", **TARGET),
            nomad=keys(description="Nomad.", **TARGET),
            otlp=keys(description="Traces.", **TARGET),
            extraEgress=items(keys(to=PEERS, ports=items(anything()))),
        ),
        otlp=keys(description="Traces.", endpoint=text(r"^https?://[^@\s]+$")),
        podMonitor=keys(
            description="Scraping by the Prometheus Operator.",
            enabled=FLAG,
            labels=TEXTS,
            interval=text(DURATION, empty=False),
            scrapeTimeout=text(DURATION, empty=False),
            metricRelabelings=items(
                keys(
                    sourceLabels=items(text(empty=False)),
                    separator=text(),
                    targetLabel=text(),
                    regex=text(),
                    modulus=number(0),
                    replacement=text(),
                    action=text(r"^[A-Za-z]+$", empty=False),
                )
            ),
        ),
        prometheusRule=keys(
            description="Recording rules and alerts.",
            enabled=FLAG,
            labels=TEXTS,
            alertLabels=TEXTS,
            disabled=items(text(r"^DispatchWorker[A-Za-z]+$", empty=False), uniqueItems=True),
        ),
        dashboards=keys(description="Grafana.", enabled=FLAG, labels=TEXTS, annotations=TEXTS),
        runbookUrl=text(r"^https?://\S+$"),
        keda=keys(
            description="How many replicas.",
            enabled=FLAG,
            minReplicas=number(0),
            maxReplicas=number(1),
            lagPerReplica=number(1),
            pendingPerReplica=number(1),
            pollingInterval=number(1),
            cooldownPeriod=number(0),
            address=text(r"^[^\s,@]+:[0-9]+(,[^\s,@]+:[0-9]+)*$"),
            kind=text(r"^(standalone|sentinel|cluster)$"),
            sentinelMaster=text(),
            database=number(0, null=True),
            authenticationRef=text(KUBERNETES_NAME),
            fallback=keys(
                failureThreshold=number(1),
                replicas=number(0),
                behavior=choice(
                    "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"
                ),
            ),
            behavior=keys(scaleUp=SCALING, scaleDown=SCALING),
            annotations=TEXTS,
        ),
        extraEnv=items(
            {
                **keys(
                    ("name",),
                    name=text(r"^[A-Za-z_][A-Za-z0-9_]*$", empty=False),
                    value=text(),
                    valueFrom=anything(),
                ),
                "not": {"required": ["value", "valueFrom"]},
            }
        ),
        extraEnvFrom=items(
            keys(
                prefix=text(),
                configMapRef=keys(name=SECRET, optional=FLAG),
                secretRef=keys(name=SECRET, optional=FLAG),
            )
        ),
        extraVolumes=items({**anything(), "required": ["name"]}),
        extraVolumeMounts=items(
            keys(
                ("name", "mountPath"),
                name=text(empty=False),
                mountPath=text(r"^/", empty=False),
                subPath=text(),
                subPathExpr=text(),
                readOnly=FLAG,
                recursiveReadOnly=text(),
                mountPropagation=text(),
            )
        ),
        extraObjects=items({"anyOf": [anything(), text(empty=False)]}),
        tests=keys(description="`helm test`.", enabled=FLAG, jobs=items(text(r"^[^\s-]\S*$", empty=False))),
    )


def comments(lines: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each value that has a `# -- ` comment, and the comment."""
    path: list[tuple[int, str]] = []
    told: list[str] = []
    for line in lines:
        if comment := re.match(r"\s*# (.*)", line):
            if comment[1].startswith("-- "):
                # "(int) " is for helm-docs.
                told = [re.sub(r"^-- (\(\w+\) )?", "", comment[1])]
            elif told and not comment[1].startswith("@"):
                told.append(comment[1])
        elif key := re.match(r"( *)([A-Za-z][A-Za-z-]*):", line):
            path = [(depth, name) for depth, name in path if depth < len(key[1])]
            path.append((len(key[1]), key[2]))
            if told:
                yield tuple(name for _, name in path), " ".join(told)
            told = []


def described(schema: Schema, lines: list[str]) -> Schema:
    """The schema with those comments as descriptions."""
    for path, comment in comments(lines):
        place = schema
        for name in path:
            place = place["properties"][name]
        # Pieces are shared between places, their descriptions are not.
        above = schema
        for name in path[:-1]:
            above = above["properties"][name]
        above["properties"][path[-1]] = {"description": comment, **place}
    return schema


def main(target: Path) -> None:
    """Write the file."""
    own = json.loads(json.dumps(values()))
    lines = (CHART / "values.yaml").read_text().splitlines()
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart dispatch-worker",
    }
    target.write_text(json.dumps({**head, **described(own, lines)}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CHART / "values.schema.json")
