"""The task drivers of a simulated node, by name, and the types a caller needs to use them.

Knows nothing of jobs, allocations, restarts or the task events made from what a driver reports.
"""

from collections.abc import Mapping
from types import MappingProxyType

from worker.dev.simulator.exec_driver import ExecDriver
from worker.dev.simulator.mock_driver import MockDriver
from worker.dev.simulator.tasks import Driver, RunningTask, StartFailed, TaskExit, TaskSpec

__all__ = ["DRIVERS", "Driver", "RunningTask", "StartFailed", "TaskExit", "TaskSpec"]

_processes = ExecDriver()

# A name that is missing here is a driver the node does not have.
DRIVERS: Mapping[str, Driver] = MappingProxyType(
    {"raw_exec": _processes, "exec": _processes, "mock_driver": MockDriver()}
)
