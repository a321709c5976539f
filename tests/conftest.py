"""Fixtures every test may use, and how long property tests may search."""

import os

import pytest
from hypothesis import HealthCheck, settings

# No deadline per example: on a shared machine it would measure the neighbours.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the only event loop the product runs on."""
    return "asyncio"
