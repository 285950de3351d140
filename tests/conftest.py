"""Switches on the shape checker for the test run, and keeps process-wide settings the same for every test.

Tests with the marker `compiled` trace what they compile, and the graph is then run as it is: all that `deeprl` itself
does to compile is seen, and nobody waits for a C++ compiler. Those that are also marked `inductor` are compiled for
good, and so are all of them under DEEPRL_TEST_COMPILER=inductor, as in `make test-all`.

What is compiled stays in a directory of the tests' own, in which the next test run finds it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import shape_checks
import torch
from torch import Tensor

if any(name.partition(".")[0] == "deeprl" for name in sys.modules):
    raise RuntimeError("deeprl was imported before tests/conftest.py: its shapes would go unchecked")
shape_checks.install()

COMPILE_ALL = os.environ.get("DEEPRL_TEST_COMPILER", "") == "inductor"
KEPT = Path(__file__).parent.parent / ".pytest_cache" / "deeprl"
os.environ.setdefault("DEEPRL_CACHE", str(KEPT))
# Of what does not go through `deeprl`. TorchInductor would find code for AVX-512 again where that is switched off.
OTHERS = KEPT / f"inductor{os.environ.get('ATEN_CPU_CAPABILITY', '')}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(OTHERS))

torch.set_num_threads(1)
hypothesis.settings.register_profile("deeprl", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("deeprl")


# Files that take longest, begun first: no process is left with one when the other has nothing to do any more.
LONGEST = "interrupts divergence probes exact_resume env_restorable faults cuda simba_v2_updates td3_bc cli dqn_run "
LONGEST += "rng gpu_kit fused wsrl compiled population device_envs api"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest = [f"test_{name}" for name in LONGEST.split()]
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


GRAPHS: dict[str, Any] = {}  # those that are run as they are


def as_traced(graph: Any, outlines: Any, options: dict[str, Any], name: str) -> Callable[..., Sequence[Tensor]]:
    """A graph as a function of its inputs, in the place of what TorchInductor would make of it."""
    from deeprl.core.inductor import no_autocast

    def call(*inputs: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), no_autocast():
            return graph(*inputs)

    return call


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """What makes a graph fast: nothing, but in tests that ask for TorchInductor."""
    from deeprl.core import compiled

    with pytest.MonkeyPatch.context() as patch:
        if not COMPILE_ALL and request.node.get_closest_marker("inductor") is None:
            patch.setattr(compiled, "compile_graph", as_traced)
            patch.setattr(compiled, "in_background", lambda work: work())
            patch.setattr(compiled, "_built", GRAPHS)
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Whole runs that several tests need alike."""
    from run_helpers import Runs

    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Runs set the number of threads and the precision of products for the whole process: set them back."""
    yield
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
