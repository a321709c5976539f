"""Fixtures every test may use, and how long property tests may search."""

import os
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

# No deadline per example: on a shared machine it would measure the neighbours.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the only event loop the product runs on."""
    return "asyncio"


@pytest.fixture
def log_lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """All log lines of a test, of every level, whatever a worker in this process has set up before."""
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with structlog.testing.capture_logs() as lines:
            yield lines
    finally:
        structlog.configure(**before)
