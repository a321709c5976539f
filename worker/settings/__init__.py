"""The worker's settings: read from the environment once, checked all at once, then never changed.

Knows every variable's name, unit, default and reason; nothing of what is built from them.
"""

from worker.settings.load import load
from worker.settings.model import Settings
from worker.settings.reference import Row, markdown, reference
from worker.settings.values import Listen, WeightedStream

__all__ = ["Listen", "Row", "Settings", "WeightedStream", "load", "markdown", "reference"]
