"""Networks of a run: the paper's, or the user's own; and what every network must keep to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deeprl.errors import DeeprlError
from deeprl.make_env import load_object
from deeprl.spec import EnvSpec


def make_modules(
    default: Callable[..., Any], spec: EnvSpec, config: Any, custom: Callable[..., Any] | None, count: int
) -> tuple[nn.Module, ...]:
    """What `custom`, else the function that `config.net` names, else `default` returns for (spec, config), as a tuple.

    Raises DeeprlError for anything but `count` modules, for sizes that a network refuses (ValueError), and for modules
    that keep state or draw random numbers of their own: they would not be pure functions of their parameters.
    """
    make = custom or (load_object(config.net, "net") if config.net else default)
    try:
        made = make(spec, config)
    except ValueError as error:
        raise DeeprlError(f"net: {error}") from error
    modules = made if isinstance(made, tuple) else (made,)
    if len(modules) != count:
        raise DeeprlError(f"net: {count} modules are needed, not {len(modules)}")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise DeeprlError(f"net: expected torch modules, not {type(module).__name__}")
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
                raise DeeprlError(
                    f"net: {type(layer).__name__} keeps state or draws numbers of its own; it is not supported"
                )
    return modules


def check_critic(critic: nn.Module, spec: EnvSpec) -> None:
    """Raise DeeprlError unless critic(obs [B, O], action [B, A]) returns values [E, B]."""
    with torch.no_grad():
        qs = tuple(critic(torch.zeros(3, *spec.obs_shape), torch.zeros(3, spec.action_dim)).shape)
    if len(qs) != 2 or qs[1] != 3:
        raise DeeprlError(f"net: the critic must return values [critics, batch], such as (2, 3), not {qs}")
