"""Fills a partial job with Nomad's defaults and refuses what Nomad would refuse to register.

Knows nothing of files, namespaces, nodes or the jobs already there.
"""

from collections.abc import Mapping
from typing import Any

from worker.dev.simulator.jobrules import InvalidJob, mistakes_in, multierror
from worker.dev.simulator.jobshape import shape_mistake

Job = dict[str, Any]

_SECOND = 1_000_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE

_BATCH = frozenset({"batch", "sysbatch"})

_NO_ID = "Job ID hasn't been provided"

_JOB: Job = {
    "Affinities": None,
    "AllAtOnce": False,
    "Constraints": None,
    "ConsulNamespace": "",
    "DispatchIdempotencyToken": "",
    "Dispatched": False,
    "Meta": None,
    "Multiregion": None,
    "Namespace": "default",
    "NodePool": "default",
    "NomadTokenID": "",
    "ParameterizedJob": None,
    "ParentID": "",
    "Payload": None,
    "Periodic": None,
    "Region": "global",
    "Spreads": None,
    "Stable": False,
    "Status": "",
    "StatusDescription": "",
    "Stop": False,
    "Type": "service",
    "UI": None,
    "VaultNamespace": "",
    "Version": 0,
    "VersionTag": None,
}
_UPDATE: Job = {
    "AutoPromote": False,
    "AutoRevert": False,
    "Canary": 0,
    "HealthCheck": "",
    "HealthyDeadline": 0,
    "MaxParallel": 0,
    "MinHealthyTime": 0,
    "ProgressDeadline": 0,
    "Stagger": 0,
}
_PARAMETERIZED: Job = {"MetaOptional": None, "MetaRequired": None, "Payload": "optional"}
_GROUP: Job = {
    "Affinities": None,
    "Constraints": None,
    "Consul": None,
    "Count": 1,
    "Disconnect": None,
    "MaxClientDisconnect": None,
    "MaxRunDuration": None,
    "Meta": None,
    "Migrate": None,
    "Name": "",
    "Networks": None,
    "PreventRescheduleOnLost": False,
    "ReschedulePolicy": None,
    "Scaling": None,
    "Services": None,
    "ShutdownDelay": None,
    "Spreads": None,
    "StopAfterClientDisconnect": None,
    "Update": None,
    "Volumes": None,
}
_EPHEMERAL_DISK: Job = {"Migrate": False, "SizeMB": 300, "Sticky": False}
_DISCONNECT: Job = {"LostAfter": None, "Reconcile": "best_score", "Replace": True, "StopOnClientAfter": None}
_RESTART_BATCH: Job = {
    "Attempts": 3,
    "Delay": 15 * _SECOND,
    "Interval": 24 * _HOUR,
    "Mode": "fail",
    "RenderTemplates": False,
}
_RESTART_SERVICE: Job = _RESTART_BATCH | {"Attempts": 2, "Interval": 30 * _MINUTE}
_RESCHEDULE_BATCH: Job = {
    "Attempts": 1,
    "Delay": 5 * _SECOND,
    "DelayFunction": "constant",
    "Interval": 24 * _HOUR,
    "MaxDelay": 0,
    "Unlimited": False,
}
_RESCHEDULE_SERVICE: Job = {
    "Attempts": 0,
    "Delay": 30 * _SECOND,
    "DelayFunction": "exponential",
    "Interval": 0,
    "MaxDelay": _HOUR,
    "Unlimited": True,
}
_TASK: Job = {
    "Actions": None,
    "Affinities": None,
    "Artifacts": None,
    "CSIPluginConfig": None,
    "Config": None,
    "Constraints": None,
    "Consul": None,
    "DispatchPayload": None,
    "Driver": "",
    "Env": None,
    "Identities": None,
    "KillSignal": "",
    "KillTimeout": 5 * _SECOND,
    "Kind": "",
    "Leader": False,
    "Lifecycle": None,
    "Meta": None,
    "Name": "",
    "ScalingPolicies": None,
    "Schedule": None,
    "Secrets": None,
    "Services": None,
    "ShutdownDelay": 0,
    "Templates": None,
    "User": "",
    "Vault": None,
    "VolumeMounts": None,
}
_RESOURCES: Job = {
    "CPU": 100,
    "Cores": 0,
    "Devices": None,
    "DiskMB": 0,
    "IOPS": 0,
    "MemoryMB": 300,
    "MemoryMaxMB": 0,
    "NUMA": None,
    "Networks": None,
    "SecretsMB": 0,
}
_LOGS: Job = {"Disabled": False, "MaxFileSizeMB": 10, "MaxFiles": 10}
_IDENTITY: Job = {
    "Audience": None,
    "ChangeMode": "",
    "ChangeSignal": "",
    "Env": False,
    "ExtraClaims": None,
    "File": False,
    "Filepath": "",
    "Name": "",
    "ServiceName": "",
    "TTL": 0,
}
_DEFAULT_IDENTITY: Job = _IDENTITY | {"Audience": ["nomadproject.io"], "Name": "default"}
_TEMPLATE: Job = {
    "ChangeMode": "restart",
    "ChangeScript": None,
    "ChangeSignal": "",
    "DestPath": "",
    "EmbeddedTmpl": "",
    "Envvars": False,
    "ErrMissingKey": False,
    "Gid": None,
    "LeftDelim": "{{",
    "Once": False,
    "Perms": "0644",
    "RightDelim": "}}",
    "SourcePath": "",
    "Splay": 5 * _SECOND,
    "Uid": None,
    "VaultGrace": 0,
    "Wait": None,
}
_ARTIFACT: Job = {
    "Chown": False,
    "GetterHeaders": None,
    "GetterInsecure": False,
    "GetterMode": "any",
    "GetterOptions": None,
    "GetterSource": "",
    "RelativeDest": "local/",
}
_LIFECYCLE: Job = {"Hook": "", "Sidecar": False}
_COMPARISON: Job = {"LTarget": "", "Operand": "", "RTarget": ""}
_AFFINITY: Job = _COMPARISON | {"Weight": 50}


def canonical_job(job: Mapping[str, Any]) -> Job:
    """Return the job as Nomad stores it at registration, without what only a server can know.

    Args:
        job: API-shaped (CamelCase keys, durations in nanoseconds), as partial as Nomad allows; it is
            not changed. Unknown keys are kept. None means "not given".

    Returns:
        Every field of a stored job but CreateIndex, ModifyIndex, JobModifyIndex and SubmitTime;
        Status is "" unless given. A canonical job comes back unchanged. The constraints that Nomad
        adds for kill signals, identities and services are not added.

    Raises:
        InvalidJob: with the text of Nomad's answer to the registration.
    """
    if mistake := shape_mistake(job):
        raise InvalidJob(mistake, status=400)
    result = _filled(_JOB, job)
    if "ID" not in result:
        raise InvalidJob(_NO_ID, status=400)
    result["Name"] = result.get("Name", result["ID"])
    result["Datacenters"] = result.get("Datacenters") or ["*"]
    result["Priority"] = result.get("Priority") or 50
    result["Update"] = _filled(_UPDATE, result.get("Update"))
    if result["ParameterizedJob"] is not None:
        given = result["ParameterizedJob"]
        result["ParameterizedJob"] = _filled(
            _PARAMETERIZED, {**given, "Payload": given.get("Payload") or None}
        )
    result["Constraints"] = _each(_COMPARISON, result["Constraints"])
    result["Affinities"] = _each(_AFFINITY, result["Affinities"])
    reschedule = result.pop("Reschedule", None)
    result["TaskGroups"] = [
        _group(group, result["Type"], reschedule) for group in result.get("TaskGroups") or []
    ]
    mistakes = mistakes_in(result)
    if mistakes:
        raise InvalidJob(multierror(mistakes))
    return result


def _group(group: Mapping[str, Any], job_type: str, job_reschedule: Mapping[str, Any] | None) -> Job:
    batch = job_type in _BATCH
    result = _filled(_GROUP, group)
    result["EphemeralDisk"] = _filled(_EPHEMERAL_DISK, group.get("EphemeralDisk"))
    result["RestartPolicy"] = _filled(
        _RESTART_BATCH if batch else _RESTART_SERVICE, group.get("RestartPolicy")
    )
    if job_type in {"batch", "service"}:
        defaults = _RESCHEDULE_BATCH if batch else _RESCHEDULE_SERVICE
        from_job = _filled(defaults, job_reschedule)
        result["ReschedulePolicy"] = _filled(from_job, group.get("ReschedulePolicy"))
    if result["Disconnect"] is not None:
        result["Disconnect"] = _filled(_DISCONNECT, result["Disconnect"])
    result["Constraints"] = _each(_COMPARISON, result["Constraints"])
    result["Affinities"] = _each(_AFFINITY, result["Affinities"])
    result["Tasks"] = [_task(task, result["RestartPolicy"]) for task in group.get("Tasks") or []]
    return result


def _task(task: Mapping[str, Any], group_restart: Job) -> Job:
    result = _filled(_TASK, task)
    resources = task.get("Resources") or {}
    # A task that reserves whole cores reserves no CPU shares.
    by_cores = {"CPU": 0} if resources.get("Cores") else {}
    result["Resources"] = _filled(_RESOURCES | by_cores, resources)
    result["LogConfig"] = _filled(_LOGS, task.get("LogConfig"))
    result["RestartPolicy"] = _filled(group_restart, task.get("RestartPolicy"))
    identity = {
        name: value for name, value in (task.get("Identity") or {}).items() if value not in ("", None)
    }
    result["Identity"] = _filled(_DEFAULT_IDENTITY, identity)
    result["Identities"] = _each(_IDENTITY, result["Identities"])
    result["Templates"] = _each(_TEMPLATE, result["Templates"])
    result["Artifacts"] = _each(_ARTIFACT, result["Artifacts"])
    result["Constraints"] = _each(_COMPARISON, result["Constraints"])
    result["Affinities"] = _each(_AFFINITY, result["Affinities"])
    if result["Lifecycle"] is not None:
        result["Lifecycle"] = _filled(_LIFECYCLE, result["Lifecycle"])
    return result


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any] | None) -> Job:
    return {**defaults, **{name: value for name, value in (given or {}).items() if value is not None}}


def _each(defaults: Mapping[str, Any], items: list[Mapping[str, Any]] | None) -> list[Job] | None:
    return [_filled(defaults, item) for item in items] if items else None
