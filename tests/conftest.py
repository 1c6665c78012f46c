"""Every test run draws the same examples, keeps no example database, and starts from the same random streams.

Without a GPU, Triton's programs run in its interpreter, which is mended first.
"""

import importlib.util
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

import engine

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if importlib.util.find_spec("triton"):
    import triton_interpreter  # noqa: F401

settings.register_profile("loam", derandomize=True, deadline=None, database=None, max_examples=12,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("loam")


@pytest.fixture(autouse=True)
def same_random_streams():
    engine.random.set_seed(0)
