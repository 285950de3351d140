"""Switches on the shape checker for the test run, and keeps process-wide settings the same for every test.

The checker wraps functions in a way that `torch.compile(fullgraph=True)` cannot trace. Compiled tests carry the
marker `compiled` and run in a process of their own without it:

    python -m pytest -m "not compiled"
    DEEPRL_SHAPE_CHECKS=0 python -m pytest -m compiled
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

SHAPE_CHECKS = os.environ.get("DEEPRL_SHAPE_CHECKS") != "0"

if SHAPE_CHECKS:
    from jaxtyping import install_import_hook

    if any(name.partition(".")[0] == "deeprl" for name in sys.modules):
        raise RuntimeError("deeprl was imported before tests/conftest.py: its shapes would go unchecked")
    install_import_hook("deeprl", "beartype.beartype")

torch.set_num_threads(1)
hypothesis.settings.register_profile("deeprl", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("deeprl")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if SHAPE_CHECKS and item.get_closest_marker("compiled"):
        pytest.fail("run compiled tests with: DEEPRL_SHAPE_CHECKS=0 python -m pytest -m compiled", pytrace=False)


@pytest.fixture(autouse=True)
def process_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs set the number of threads and the precision of products for the whole process: set them back."""
    yield
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    if request.node.get_closest_marker("compiled"):
        torch.compiler.reset()
