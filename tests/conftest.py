"""Every test run draws the same examples, keeps no example database, and starts from the same random streams."""

import pytest
from hypothesis import HealthCheck, settings

import engine

settings.register_profile("loam", derandomize=True, deadline=None, database=None, max_examples=12,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("loam")


@pytest.fixture(autouse=True)
def same_random_streams():
    engine.random.set_seed(0)
