"""Blocks of a job specification to a job as Nomad's HTTP API takes it: names, durations, sugar.

Knows the blocks a batch or sysbatch job uses; Nomad's defaults and rules are applied elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

from worker.dev.simulator.blockshapes import Convert, Nested, Shape, duration, integer, text, texts
from worker.dev.simulator.hcl import Block
from worker.dev.simulator.hcl_values import HclError, as_bool, as_text

Job = dict[str, Any]


def job_of(file: Block) -> Job:
    """Return the job of a file, with CamelCase keys and durations in nanoseconds.

    Only what the file says is in it.

    Raises:
        HclError: no job or several, or a block or argument that is not supported, by name and line.
    """
    for block in file.blocks:
        if block.type != "job":
            raise HclError(block.line, f'blocks of type "{block.type}" are not supported')
    if len(file.blocks) != 1:
        raise HclError(1, f"one job block is needed, found {len(file.blocks)}")
    (block,) = file.blocks
    job = _JOB.read(block)
    job.setdefault("ID", block.labels[0])
    # A task outside a group is a group of its own.
    for task in job.pop("Tasks", []):
        job.setdefault("TaskGroups", []).append({"Name": task["Name"], "Count": 1, "Tasks": [task]})
    return job


def _free_block(block: Block) -> Job:
    """A driver block: Nomad's API shows nested blocks and maps in it as lists of maps."""
    result = {name: [value] if isinstance(value, dict) else value for name, value in block.attributes.items()}
    for inner in block.blocks:
        content: Any = _free_block(inner)
        for label in reversed(inner.labels):
            content = {label: [content]}
        result.setdefault(inner.type, []).append(content)
    return result


_OPERATORS = ("version", "semver", "regexp", "set_contains", "set_contains_any", "distinct_property")
_COMPARED = {
    "attribute": ("LTarget", text),
    "operator": ("Operand", text),
    "value": ("RTarget", text),
}
_WEIGHT = {"weight": ("Weight", integer)}


def _comparison(extra: Mapping[str, tuple[str, Convert]]) -> Callable[[Block], Job]:
    shape = Shape(
        _COMPARED
        | {name: (name, text) for name in _OPERATORS}
        | {"distinct_hosts": ("distinct_hosts", as_bool)}
        | dict(extra)
    )

    def read(block: Block) -> Job:
        """Turn `version = "> 1"` into the operand "version" with the value "> 1"."""
        result = {"LTarget": "", "RTarget": "", "Operand": "="} | shape.read(block)
        for operator in _OPERATORS:
            value = result.pop(operator, None)
            if value is not None and operator == "distinct_property":
                result |= {"Operand": operator, "LTarget": value}
            elif value is not None:
                result |= {"Operand": operator, "RTarget": value}
        distinct_hosts = result.pop("distinct_hosts", None)
        if distinct_hosts is not None:
            result |= {"Operand": "distinct_hosts", "RTarget": as_text(distinct_hosts)}
        return result

    return read


def _network(block: Block) -> Job:
    """Sort the ports of a network into those with a fixed number and those without."""
    result = _NETWORK.read(block)
    ports = result.pop("Ports", [])
    reserved = [port for port in ports if port.get("Value")]
    dynamic = [port for port in ports if not port.get("Value")]
    return result | {"ReservedPorts": reserved or None, "DynamicPorts": dynamic or None}


def _task(block: Block) -> Job:
    """Tell the default identity of a task from the named ones."""
    task = _TASK.read(block)
    identities = task.pop("AllIdentities", [])
    for identity in identities:
        if identity.get("Name", "default") == "default":
            task["Identity"] = identity
        else:
            task.setdefault("Identities", []).append(identity)
    return task


_META = {"meta": "Meta"}
_CONSTRAINT = Nested("Constraints", _comparison({}), many=True)
_AFFINITY = Nested("Affinities", _comparison(_WEIGHT), many=True)

_RESTART = Shape(
    {
        "attempts": ("Attempts", integer),
        "interval": ("Interval", duration),
        "delay": ("Delay", duration),
        "mode": ("Mode", text),
        "render_templates": ("RenderTemplates", as_bool),
    }
)
_RESCHEDULE = Shape(
    {
        "attempts": ("Attempts", integer),
        "interval": ("Interval", duration),
        "delay": ("Delay", duration),
        "delay_function": ("DelayFunction", text),
        "max_delay": ("MaxDelay", duration),
        "unlimited": ("Unlimited", as_bool),
    }
)
_SPREAD = Shape(
    {"attribute": ("Attribute", text), **_WEIGHT},
    {
        "target": Nested(
            "SpreadTarget", Shape({"percent": ("Percent", integer)}, label="Value").read, many=True
        )
    },
)
_DISCONNECT = Shape(
    {
        "lost_after": ("LostAfter", duration),
        "stop_on_client_after": ("StopOnClientAfter", duration),
        "replace": ("Replace", as_bool),
        "reconcile": ("Reconcile", text),
    }
)
_EPHEMERAL_DISK = Shape(
    {"size": ("SizeMB", integer), "migrate": ("Migrate", as_bool), "sticky": ("Sticky", as_bool)}
)
_PORT = Shape(
    {"static": ("Value", integer), "to": ("To", integer), "host_network": ("HostNetwork", text)},
    label="Label",
)
_NETWORK = Shape(
    {"mode": ("Mode", text), "hostname": ("Hostname", text), "mbits": ("MBits", integer)},
    {"port": Nested("Ports", _PORT.read, many=True)},
)
_CHECK = Shape(
    {
        "name": ("Name", text),
        "type": ("Type", text),
        "path": ("Path", text),
        "port": ("PortLabel", text),
        "protocol": ("Protocol", text),
        "method": ("Method", text),
        "command": ("Command", text),
        "args": ("Args", texts),
        "interval": ("Interval", duration),
        "timeout": ("Timeout", duration),
        "address_mode": ("AddressMode", text),
    }
)
_SERVICE = Shape(
    {
        "name": ("Name", text),
        "port": ("PortLabel", text),
        "provider": ("Provider", text),
        "tags": ("Tags", texts),
        "address": ("Address", text),
        "address_mode": ("AddressMode", text),
        "task": ("TaskName", text),
    },
    {"check": Nested("Checks", _CHECK.read, many=True)},
    _META,
)
_TEMPLATE = Shape(
    {
        "source": ("SourcePath", text),
        "destination": ("DestPath", text),
        "data": ("EmbeddedTmpl", text),
        "change_mode": ("ChangeMode", text),
        "change_signal": ("ChangeSignal", text),
        "once": ("Once", as_bool),
        "splay": ("Splay", duration),
        "perms": ("Perms", text),
        "uid": ("Uid", integer),
        "gid": ("Gid", integer),
        "left_delimiter": ("LeftDelim", text),
        "right_delimiter": ("RightDelim", text),
        "env": ("Envvars", as_bool),
        "error_on_missing_key": ("ErrMissingKey", as_bool),
    },
    {"wait": Nested("Wait", Shape({"min": ("Min", duration), "max": ("Max", duration)}).read)},
)
_ARTIFACT = Shape(
    {
        "source": ("GetterSource", text),
        "destination": ("RelativeDest", text),
        "mode": ("GetterMode", text),
        "insecure": ("GetterInsecure", as_bool),
        "chown": ("Chown", as_bool),
    },
    maps={"options": "GetterOptions", "headers": "GetterHeaders"},
)
_LIFECYCLE = Shape({"hook": ("Hook", text), "sidecar": ("Sidecar", as_bool)})
_LOGS = Shape(
    {
        "max_files": ("MaxFiles", integer),
        "max_file_size": ("MaxFileSizeMB", integer),
        "disabled": ("Disabled", as_bool),
    }
)
_IDENTITY = Shape(
    {
        "name": ("Name", text),
        "aud": ("Audience", texts),
        "env": ("Env", as_bool),
        "file": ("File", as_bool),
        "filepath": ("Filepath", text),
        "ttl": ("TTL", duration),
        "change_mode": ("ChangeMode", text),
        "change_signal": ("ChangeSignal", text),
    }
)
_RESOURCES = Shape(
    {
        "cpu": ("CPU", integer),
        "cores": ("Cores", integer),
        "memory": ("MemoryMB", integer),
        "memory_max": ("MemoryMaxMB", integer),
        "disk": ("DiskMB", integer),
    }
)
_TASK = Shape(
    {
        "driver": ("Driver", text),
        "user": ("User", text),
        "leader": ("Leader", as_bool),
        "kill_timeout": ("KillTimeout", duration),
        "kill_signal": ("KillSignal", text),
        "shutdown_delay": ("ShutdownDelay", duration),
    },
    {
        "config": Nested("Config", _free_block),
        "dispatch_payload": Nested("DispatchPayload", Shape({"file": ("File", text)}).read),
        "lifecycle": Nested("Lifecycle", _LIFECYCLE.read),
        "logs": Nested("LogConfig", _LOGS.read),
        "resources": Nested("Resources", _RESOURCES.read),
        "restart": Nested("RestartPolicy", _RESTART.read),
        "template": Nested("Templates", _TEMPLATE.read, many=True),
        "artifact": Nested("Artifacts", _ARTIFACT.read, many=True),
        "identity": Nested("AllIdentities", _IDENTITY.read, many=True),
        "service": Nested("Services", _SERVICE.read, many=True),
        "constraint": _CONSTRAINT,
        "affinity": _AFFINITY,
    },
    _META | {"env": "Env"},
    label="Name",
)
_TASKS = Nested("Tasks", _task, many=True)
_GROUP = Shape(
    {
        "count": ("Count", integer),
        "max_run_duration": ("MaxRunDuration", duration),
        "shutdown_delay": ("ShutdownDelay", duration),
    },
    {
        "task": _TASKS,
        "restart": Nested("RestartPolicy", _RESTART.read),
        "reschedule": Nested("ReschedulePolicy", _RESCHEDULE.read),
        "disconnect": Nested("Disconnect", _DISCONNECT.read),
        "ephemeral_disk": Nested("EphemeralDisk", _EPHEMERAL_DISK.read),
        "network": Nested("Networks", _network, many=True),
        "service": Nested("Services", _SERVICE.read, many=True),
        "spread": Nested("Spreads", _SPREAD.read, many=True),
        "constraint": _CONSTRAINT,
        "affinity": _AFFINITY,
    },
    _META,
    label="Name",
)
_PARAMETERIZED = Shape(
    {
        "payload": ("Payload", text),
        "meta_required": ("MetaRequired", texts),
        "meta_optional": ("MetaOptional", texts),
    }
)
_JOB = Shape(
    {
        "id": ("ID", text),
        "name": ("Name", text),
        "type": ("Type", text),
        "priority": ("Priority", integer),
        "datacenters": ("Datacenters", texts),
        "namespace": ("Namespace", text),
        "region": ("Region", text),
        "node_pool": ("NodePool", text),
        "all_at_once": ("AllAtOnce", as_bool),
    },
    {
        "group": Nested("TaskGroups", _GROUP.read, many=True),
        "task": _TASKS,
        "parameterized": Nested("ParameterizedJob", _PARAMETERIZED.read),
        "reschedule": Nested("Reschedule", _RESCHEDULE.read),
        "spread": Nested("Spreads", _SPREAD.read, many=True),
        "constraint": _CONSTRAINT,
        "affinity": _AFFINITY,
    },
    _META,
    label="Name",
)
