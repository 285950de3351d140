"""Networks of a run: the paper's, or the user's own; and what every network must keep to."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deeprl.errors import DeeprlError
from deeprl.objects import load_object
from deeprl.spec import EnvSpec


def name_of(make: Callable[..., Any]) -> str:
    """`module:name` of a function, of what a `functools.partial` calls, or of the class of another callable object."""
    make = getattr(make, "func", make)
    named = make if hasattr(make, "__qualname__") else type(make)
    return f"{named.__module__}:{named.__qualname__}"


def make_modules(
    default: Callable[..., Any], spec: EnvSpec, config: Any, custom: Callable[..., Any] | None, wanted: str
) -> tuple[nn.Module, ...]:
    """What `custom`, else the function that `config.net` names, else `default` returns for (spec, config), as a tuple.

    wanted: what the modules are, such as "actor, critic". Raises DeeprlError for any other number of modules, for sizes
    that a network refuses (ValueError), and for layers that keep statistics or draw random numbers: they would not be
    pure functions of their parameters.
    """
    make = custom or (load_object(config.net, "net") if config.net else default)
    try:
        inspect.signature(make).bind(spec, config)
        made = make(spec, config)
    except (TypeError, ValueError) as error:
        raise DeeprlError(f"net: {error}") from error
    # A copy: the run moves it to its device, and a rehearsal (`memory.rehearse`) to one without memory.
    modules = copy.deepcopy(made if isinstance(made, tuple) else (made,))
    if len(modules) != len(wanted.split(", ")):
        raise DeeprlError(f"net: must return {wanted} as torch modules, not {len(modules)} of them")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise DeeprlError(f"net: must return {wanted} as torch modules, not {type(module).__name__}")
        for layer in module.modules():
            random = isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU)
            if random or getattr(layer, "track_running_stats", False):
                raise DeeprlError(
                    f"net: {type(layer).__name__} keeps state or draws numbers of its own; it is not supported"
                )
    return modules


def output_shape(module: nn.Module, *inputs: Any) -> Any:
    """The shape of what a module returns for these inputs; a list of shapes, or a type's name, if it is no tensor.

    Raises DeeprlError if it cannot take them.
    """
    try:
        with torch.no_grad():
            output = module(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        reason = str(error).partition("\n")[0]
        raise DeeprlError(f"net: {type(module).__name__} cannot take {shapes}: {reason}") from error
    if isinstance(output, tuple) and all(isinstance(x, Tensor) for x in output):
        return [tuple(x.shape) for x in output]
    return tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def check_critic(critic: nn.Module, spec: EnvSpec, bins: int = 0) -> None:
    """Raise DeeprlError unless critic(obs [B, O], action [B, A]) returns values [E, B]; with bins, logits [E, B, K]."""
    found = output_shape(critic, torch.zeros(3, *spec.obs_shape), torch.zeros(3, spec.action_dim))
    batch = (3, bins) if bins else (3,)
    if not isinstance(found, tuple) or found[1:] != batch:
        what = "logits [critics, batch, bins]" if bins else "values [critics, batch]"
        raise DeeprlError(f"net: the critic must return {what}, such as {(2, *batch)}, not {found}")
