"""Test configuration: hypothesis profiles, golden files, one thread for reproducible speed."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.golden import Golden

torch.set_num_threads(1)

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile("fast", max_examples=20, deadline=None, suppress_health_check=_CHECKS)
settings.register_profile("default", max_examples=100, deadline=None, suppress_health_check=_CHECKS)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=_CHECKS
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files instead of comparing"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares text with a file of tests/golden."""
    return Golden(update=bool(request.config.getoption("--update-golden")))
