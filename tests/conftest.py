"""Test configuration: hypothesis profiles and one thread for reproducible speed."""

import os

import torch
from hypothesis import HealthCheck, settings

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
