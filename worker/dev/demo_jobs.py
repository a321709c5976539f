"""The jobs that come with the dev mode, as packaged data.

Knows nothing of what the demo does with them.
"""

import json
from importlib.resources import files
from typing import Any

from worker.dev.simulator.jobfile import canonical_job


def demo_jobs() -> list[dict[str, Any]]:
    """Return the demo jobs, ready to be registered, in the order of their names.

    - demo-encode: needs a payload and the meta key `tenant`.
    - demo-flaky: fails `failures` times (meta, default 1) before it succeeds; two restarts at most,
      so that 3 is too many. Takes no payload.
    - demo-render: sleeps `seconds`, greets `who`, ends with the exit code `code` (all meta, all
      optional); payload optional.
    """
    resources = sorted((files("worker.dev") / "jobs").iterdir(), key=lambda resource: resource.name)
    return [
        canonical_job(json.loads(resource.read_text(encoding="utf-8"))["Job"])
        for resource in resources
        if resource.name.endswith(".json")
    ]
