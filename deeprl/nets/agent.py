"""The networks of one agent as tensors: those that are trained, and those that stay as they are.

Fixed are the buffers of a module (a random projection, a mask, constants) and its parameters with
`requires_grad=False` (an encoder that was trained before). They are as much a part of the agent as what is trained:
drawn from its seed, stacked, saved, restored. Losses take trained parameters alone, so that gradients, moments, target
updates and weight decay never touch the others.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deeprl.core import rng
from deeprl.core.spec import EnvSpec, Params

Fixed = dict[str, Params]  # name of a network -> its fixed tensors, of those networks that have any
Remake = Callable[[int], tuple[nn.Module, ...]] | None  # own networks, built anew under a seed

_DRAWING = threading.RLock()


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within: torch's process-wide generator draws from `seed` (0 <= seed < 2^63); after it as it was before.

    One thread at a time: populations that are made in several threads start as they do alone.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed every GPU as well
        yield


def init_params(module: nn.Module, seed: int) -> Params:
    """Fresh parameters of `module`, drawn from `seed` (0 <= seed < 2^63) by its `reset_parameters` methods.

    Children are reset before their parents, so that a module's own `reset_parameters` has the last word on how its
    layers start. `module` and torch's global generator are left as they were. Drawn on the CPU: equal on every device.

    Raises ValueError for a module that holds parameters of its own without a `reset_parameters`: all agents of a
    population would start from the same numbers.
    """
    return {name: parameter.detach().clone() for name, parameter in _reset(module, seed).named_parameters()}


def _reset(module: nn.Module, seed: int) -> nn.Module:
    """A copy of `module` on the CPU with fresh parameters, as `init_params` draws them."""
    fresh = copy.deepcopy(module)
    on_meta = any(p.is_meta for p in fresh.parameters())  # shapes alone, as in a rehearsal
    fresh = fresh.to_empty(device="cpu") if on_meta else fresh.cpu()
    with drawing_from(seed):
        for name, child in reversed(list(fresh.named_modules())):
            reset = getattr(child, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(child.parameters(recurse=False), None) is not None:
                where = name or "the network"
                raise ValueError(f"{where} ({type(child).__name__}) has parameters but no reset_parameters() method")
    return fresh


class ActorCritic(NamedTuple):
    """The modules of one agent with a policy and critics; their parameters live in the `State` of its algorithm.

    What they return, `make_net` of the algorithm tells. obs_norm: what observations go through where they are
    normalised by running statistics. remake: see `init_networks`.
    """

    actor: nn.Module
    critic: nn.Module
    spec: EnvSpec
    remake: Remake = None
    obs_norm: Any = None


def init_networks(net: Any, names: Sequence[str], key: rng.Key) -> tuple[list[Params], Fixed]:
    """The tensors of a new agent: the trained ones of each of the networks `names` of a `Net`, and all fixed ones.

    Own networks (`net.remake`) start as their constructors leave them, all under the first seed that `key` gives; those
    of the library by `reset_parameters`, each under its own.
    """
    seeds = rng.bits(key, (len(names),)).tolist()
    if net.remake is None:
        modules = [_reset(getattr(net, name), seed) for name, seed in zip(names, seeds, strict=True)]
    else:
        modules = [module.cpu() for module in net.remake(seeds[0])]
    tensors = [trained_and_fixed(module) for module in modules]
    fixed = {name: held for name, (_, held) in zip(names, tensors, strict=True) if held}
    return [trained for trained, _ in tensors], fixed


def trained_and_fixed(module: nn.Module) -> tuple[Params, Params]:
    """Copies of a module's trained tensors, and of its fixed ones: buffers, and parameters without `requires_grad`."""
    trained = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    fixed = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    return trained, fixed | {name: b.detach().clone() for name, b in module.named_buffers()}


def buffers(module: nn.Module) -> Params:
    """Copies of a module's buffers, such as the statistics of a normaliser."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by name into the parameters and buffers of a module; names that it has not are passed over."""
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        if name in tensors:
            own.copy_(tensors[name])


class Bound(NamedTuple):
    """A network together with an agent's own fixed tensors."""

    module: nn.Module
    fixed: Params

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Those of the network."""
        return self.module.named_modules()


def bound(net: Any, fixed: Fixed) -> Any:
    """A `Net` whose networks are called with an agent's fixed tensors; `net` itself where there are none."""
    return net._replace(**{name: Bound(getattr(net, name), held) for name, held in fixed.items()}) if fixed else net


def functional_call(
    network: nn.Module | Bound, params: Params, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """What a network returns with these trained parameters, and the fixed ones of the agent that it is bound to.

    Any number of threads may call one network at the same time, each with its own tensors: where it runs eagerly, they
    are put into an outline of it that nobody else has in hand, and the network itself is never changed. What is no
    tensor (settings, attributes) is there as it was at the network's first calls.
    """
    module, fixed = network if isinstance(network, Bound) else (network, {})
    tensors = {**fixed, **params} if fixed else params
    if torch.compiler.is_compiling():  # a trace changes no module
        return torch.func.functional_call(module, tensors, args, kwargs)
    idle = _idle.get(module)
    if idle is None:
        idle = _idle.setdefault(module, [])
    try:
        outline = idle.pop()  # one step of the interpreter: no two threads get the same
    except IndexError:
        outline = _Outline(module)
    result = outline(tensors, args, kwargs or {})
    idle.append(outline)  # not after an exception, which may have left it half changed
    return result


class _Outline:
    """A copy of a network that shares its tensors and arrays, so that it takes next to no memory."""

    def __init__(self, module: nn.Module):
        held = [vars(child) | child._parameters | child._buffers for child in module.modules()]
        arrays = [value for values in held for value in values.values() if isinstance(value, Tensor | np.ndarray)]
        self._module = copy.deepcopy(module, {id(array): array for array in arrays})
        tied: dict[int, list[tuple[dict[str, Any], str, Tensor]]] = {}  # one tensor may have several places
        self._places: dict[str, list[tuple[dict[str, Any], str, Tensor]]] = {}
        for prefix, child in self._module.named_modules():
            for tensors in (child._parameters, child._buffers):
                for name, own in tensors.items():
                    if own is not None:
                        places = tied.setdefault(id(own), [])
                        places.append((tensors, name, own))
                        self._places[f"{prefix}.{name}" if prefix else name] = places

    def __call__(self, tensors: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the network returns with these tensors in place of its own."""
        changed = [(place, tensor) for name, tensor in tensors.items() for place in self._places.get(name, ())]
        for (held, name, _), tensor in changed:
            held[name] = tensor
        result = self._module(*args, **kwargs)
        for (held, name, own), _ in changed:  # keeps no tensor of a call alive
            held[name] = own
        return result


# Outlines that are not in use, of each network: as many as there have been calls at the same time.
_idle: weakref.WeakKeyDictionary[nn.Module, list[_Outline]] = weakref.WeakKeyDictionary()
