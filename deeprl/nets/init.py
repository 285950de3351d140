"""Initial parameters of a module as a pure function of a seed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from deeprl.spec import Params


def init_params(module: nn.Module, seed: int) -> Params:
    """Fresh parameters of `module`, drawn from `seed` (0 <= seed < 2^63) by its `reset_parameters` methods.

    Children are reset before their parents, so that a module's own `reset_parameters` has the last word on how its
    layers start. `module` and torch's global generator are left as they were. Drawn on the CPU: equal on every device.

    Raises ValueError for a module that holds parameters of its own without a `reset_parameters`: all agents of a
    population would start from the same numbers.
    """
    fresh = copy.deepcopy(module)
    on_meta = any(p.is_meta for p in fresh.parameters())  # shapes alone, as in a rehearsal
    fresh = fresh.to_empty(device="cpu") if on_meta else fresh.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed every GPU as well
        for name, child in reversed(list(fresh.named_modules())):
            reset = getattr(child, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(child.parameters(recurse=False), None) is not None:
                where = name or "the network"
                raise ValueError(f"{where} ({type(child).__name__}) has parameters but no reset_parameters() method")
    return {name: parameter.detach().clone() for name, parameter in fresh.named_parameters()}
