"""Networks of a run: the paper's, or the user's own; and what every network must keep to."""

from __future__ import annotations

import copy
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deeprl import nets
from deeprl.core.compiled import trace
from deeprl.core.objects import load_object
from deeprl.core.population import Execution
from deeprl.core.spec import EnvSpec, Params
from deeprl.core.tree import tree_leaves, tree_map
from deeprl.envs.spaces import require
from deeprl.errors import DeeprlError, first_line
from deeprl.nets.agent import drawing_from
from deeprl.run.fingerprint import fingerprint

# Networks of a `Net`: of (obs), or of (obs, action), where it does not say itself what they are tried with (`trial`).
_INPUTS = {"actor": 1, "critic": 2, "value": 1, "q": 1, "model": 2}
_HELD = {"q": ("params", "target", "moments")}  # names in `State`, where they are not such as actor, target_actor, ...


MakeNet = Callable[[EnvSpec, Any], Any]  # (spec, config) -> the modules that `make_net` of an algorithm returns
Policies = Literal["tanh_normal", "normal", "deterministic"]


def name_of(make: Callable[..., Any]) -> str:
    """`module:name` of a function, of what a `functools.partial` calls, or of the class of another callable object."""
    make = getattr(make, "func", make)
    named = make if hasattr(make, "__qualname__") else type(make)
    return f"{named.__module__}:{named.__qualname__}"


# --- making them ---


def make_modules(
    default: Callable[..., Any], spec: EnvSpec, config: Any, custom: Callable[..., Any] | None, wanted: str
) -> tuple[tuple[nn.Module, ...], nets.Remake]:
    """What `custom`, else the function that `config.net` names, else `default` returns for (spec, config), as a tuple.

    And how own networks are built anew for each agent, from its seed; None for those of `default`.

    wanted: what the modules are, such as "actor, critic". Raises DeeprlError for any other number of modules, for sizes
    that a network refuses (ValueError), for layers that keep statistics or draw random numbers, for parameters that
    have no sizes yet, and for modules that share a tensor: each has an optimizer of its own.
    """
    own = custom or (load_object(config.net, "net") if config.net else None)
    remake = functools.partial(_built, own or default, spec, config, wanted)
    # A copy: the run moves it to its device, and a rehearsal (`memory.rehearse`) to one without memory.
    modules = copy.deepcopy(remake(0))
    _check_apart(modules, wanted.split(", "))
    return modules, remake if own else None


def build_networks(
    algorithm: str,
    make_net: Callable[..., Any],
    spec: EnvSpec,
    config: Any,
    custom: Callable[..., Any] | None,
    device: str,
    *,
    actor: Policies,
    critic: int | None = None,
    value: bool = False,
) -> tuple[Any, nets.Remake]:
    """The networks of a run that acts in [-1, 1]^A, on its device, and how they are built anew (`make_modules`).

    actor(obs [B, O]) returns, by its kind: `tanh_normal` (mean, log_std) [B, A] before the tanh; `normal` (mean [B, A]
    in [-1, 1], log_std [A]); `deterministic` actions [B, A] in [-1, 1]. critic, None where there is none:
    critic(obs, action) returns values [E, B], or logits [E, B, bins] of so many bins. value: there is a third network,
    value(obs), which returns [B, 1]. Raises DeeprlError for an environment of another kind, and for networks that do
    not keep to this.
    """
    require(algorithm, spec, "continuous")
    wanted = ["actor", *(["critic"] if critic is not None else []), *(["value"] if value else [])]
    modules, remake = make_modules(make_net, spec, config, custom, ", ".join(wanted))
    obs, rows = torch.zeros(3, *spec.obs_shape), (3, spec.action_dim)
    what, expected = {
        "tanh_normal": (f"mean and log_std of {rows} each", [rows] * 2),
        "normal": (f"mean {rows} and log_std {rows[1:]}", [rows, rows[1:]]),
        "deterministic": (f"actions {rows}", rows),
    }[actor]
    whose = getattr(config, "policy", getattr(config, "actor", ""))  # the setting that chooses between kinds
    of = f" of {whose}" if whose else ""
    if (found := output_shape(modules[0], obs)) != expected:
        raise DeeprlError(f"net: the actor{of} must return {what}, not {found}")
    if critic is not None:
        check_critic(modules[1], spec, critic)
    if value and (found := output_shape(modules[-1], obs)) != (3, 1):
        raise DeeprlError(f"net: the value must return {(3, 1)}, not {found}")
    return tuple(module.to(device) for module in modules), remake


def _built(make: Any, spec: EnvSpec, config: Any, wanted: str, seed: int) -> tuple[nn.Module, ...]:
    """The networks that `make` returns where torch draws from `seed`."""
    try:
        inspect.signature(make).bind(spec, config)
        with drawing_from(seed):
            made = make(spec, config)
    except (TypeError, ValueError) as error:
        raise DeeprlError(f"net: {error}") from error
    modules = made if isinstance(made, tuple) else (made,)
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


def _check_apart(modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Raise DeeprlError for parameters without sizes, for a network with none to train, and for tensors of two."""
    owners: dict[int, str] = {}
    for name, module in zip(names, modules, strict=True):
        tensors = (*module.named_parameters(), *module.named_buffers())
        for key, tensor in tensors:
            if is_lazy(tensor):
                raise DeeprlError(f"net: {key} of the {name} has no sizes yet: give them to its layer")
            if (owner := owners.setdefault(id(tensor), name)) != name:
                raise DeeprlError(
                    f"net: {owner} and {name} share {key}, but each is trained by its own loss: give each a copy"
                )
        if tensors and not any(p.requires_grad for p in module.parameters()):
            raise DeeprlError(f"net: no parameter of the {name} is to be trained (requires_grad)")


def require_shapes(net: Any, expected: Mapping[str, Any]) -> None:
    """Raise DeeprlError unless these networks of a `Net` return such shapes for 3 observations and actions."""
    inputs = torch.zeros(3, *net.spec.obs_shape), torch.zeros(3, net.spec.action_dim)
    for name, shape in expected.items():
        if (found := output_shape(getattr(net, name), *_inputs_of(net, name, *inputs))) != shape:
            raise DeeprlError(f"net: the {name} must return {shape}, not {found}")


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


def networks_digest(net: Any) -> str:
    """Hex digits that change with what own networks compute (`deeprl.run.fingerprint`); "" for those of the library."""
    if net.remake is None:
        return ""
    return fingerprint(net.remake.args[0], [getattr(net, name) for name in _INPUTS if hasattr(net, name)])


def made_of(net: Any, data: Any = None) -> dict[str, Any]:
    """What a run keeps, to see later that it is the same: of own networks and of the datasets that it learns from."""
    kept = {"net_digest": networks_digest(net), "datasets": data.sources if data is not None else {}}
    return {name: value for name, value in kept.items() if value}


# --- one trial, when a run begins ---


def try_out(net: Any, state: Any, execution: Execution) -> None:
    """Try own networks as they will be used. Does nothing for those of the library.

    net, state: `Net` and `State` of a population. Raises DeeprlError unless they are pure functions of their inputs and
    tensors, which backend and compiler can take, and start from nothing but the agent's seed.
    """
    if net.remake is None:
        return
    names = [name for name in _INPUTS if hasattr(net, name)]
    _check_start(net.remake, names)
    for name in names:
        inputs = _inputs_of(net, name, *_trial_inputs(net.spec, execution.device))
        params = getattr(state, "params" if name == "q" else name)
        _try(name, getattr(net, name), (params, state.fixed.get(name, {})), inputs, execution)


def _check_start(remake: Callable[[int], tuple[nn.Module, ...]], names: Sequence[str]) -> None:
    first, again, other = remake(0), remake(0), remake(1)
    for name, one, same, else_ in zip(names, first, again, other, strict=True):
        if one is same:
            raise DeeprlError(f"net: returns the same {name} at every call: build new modules in it, for each agent")
        for key, value in _tensors(one).items():
            if not _equal(value, _tensors(same).get(key)):
                raise DeeprlError(f"net: {key} of the {name} differs from call to call: draw from torch's generator")
        loose, elsewhere = _loose(one), (_loose(same), _loose(else_))
        for key, value in loose.items():
            if not all(_equal(value, there.get(key)) for there in elsewhere):
                raise DeeprlError(f"net: {key} of the {name} is random, but would not be saved: use register_buffer")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict((*module.named_parameters(), *module.named_buffers()))


def _loose(module: nn.Module) -> dict[str, Any]:
    """Numbers and arrays that a module and its children hold as plain attributes."""
    return {
        f"{name}.{key}" if name else key: value
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if isinstance(value, Tensor | np.ndarray | float | int)
    }


def _inputs_of(net: Any, name: str, obs: Tensor, action: Tensor) -> tuple[Tensor, ...]:
    """What a network of a `Net` takes, made of observations and actions."""
    return net.trial(name, obs, action) if hasattr(net, "trial") else (obs, action)[: _INPUTS[name]]


def _trial_inputs(spec: EnvSpec, device: str) -> tuple[Tensor, Tensor]:
    """Observations [3, *O] and actions [3, A] that are not all alike."""
    generator = torch.Generator().manual_seed(0)
    if spec.obs_dtype == "float32":
        obs = torch.randn((3, *spec.obs_shape), generator=generator)
    else:
        high = 2 if spec.obs_dtype == "bool" else 256
        obs = torch.randint(high, (3, *spec.obs_shape), generator=generator).to(getattr(torch, spec.obs_dtype))
    action = 2.0 * torch.rand((3, spec.action_dim), generator=generator) - 1.0
    return obs.to(device), action.to(device)


def _try(
    name: str, module: nn.Module, tensors: tuple[Params, Params], inputs: Sequence[Tensor], execution: Execution
) -> None:
    who = f"net: the {name} ({type(module).__name__})"
    alone = copy.deepcopy(module)
    params, fixed = tree_map(lambda leaf: leaf[0], tensors)
    nets.put(alone, params | fixed)
    before = {key: value.clone() for key, value in _tensors(alone).items()}
    with torch.no_grad():
        outputs = alone(*inputs), alone(*inputs)
    for key, value in _tensors(alone).items():
        if not _equal(value, before[key]):
            raise DeeprlError(f"{who} changes its {key} when it is called; it must be a pure function of its inputs")
    if not all(map(_equal, *(_flat(output) for output in outputs))):
        raise DeeprlError(f"{who} gives another output at a second call: it draws random numbers or keeps state")

    def output(params: Params, fixed: Params, *inputs: Tensor) -> Any:
        return torch.func.functional_call(module, {**fixed, **params}, inputs)

    def slopes(params: Params, *rest: Any) -> Params:
        return torch.func.grad(lambda p: torch.stack([x.sum() for x in _flat(output(p, *rest))]).sum())(params)

    of_all = execution.backend == "vmap"
    arguments = (*(tensors if of_all else (params, fixed)), *inputs)
    for function in (output, slopes):  # acting, learning
        run = torch.vmap(function, in_dims=(0, 0, *(None for _ in inputs))) if of_all else function
        what, remedy = "run for a population", "it must not branch on values; --backend loop takes recurrent layers"
        try:
            run(*arguments)
            if execution.compile:
                what, remedy = "compiled", "--compile off takes it"
                trace(run, arguments)
        except Exception as error:  # PyTorch's transforms and its compiler fail in ways of their own
            reason = textwrap.shorten(first_line(error), 120, placeholder=" ...")
            raise DeeprlError(f"{who} cannot be {what} ({reason}): {remedy}") from error


def _flat(output: Any) -> list[Tensor]:
    return tree_leaves(output if isinstance(output, tuple) else (output,))


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same numbers, NaN included."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        one, other = (x.detach().to("cpu", torch.float64).numpy() for x in (one, other))
    return bool(np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f"))


# --- older checkpoints ---


def with_fixed(saved: Mapping[str, Tensor], net: Any, fixed: nets.Fixed, prefix: str) -> Mapping[str, Tensor]:
    """A checkpoint's leaves, with the fixed tensors that one of an earlier version lacks.

    Parameters that were trained there although they should not have been are those of the checkpoint, whose targets and
    moments of them are left out; buffers are those of the constructor, unless the checkpoint has some fixed tensors and
    is thus not so old. Raises DeeprlError for buffers that the constructor draws at random: they were never saved.
    """
    found = dict(saved)
    knows = any(name.startswith(f"{prefix}fixed.") for name in saved)
    for network, tensors in fixed.items():
        params, target, moments = _HELD.get(network, (network, f"target_{network}", f"{network}_moments"))
        for key in (key for key in tensors if f"{prefix}fixed.{network}.{key}" not in saved):
            trained = saved.get(f"{prefix}{params}.{key}")
            for field in (params, target, f"{moments}.m", f"{moments}.v"):
                found.pop(f"{prefix}{field}.{key}", None)
            if trained is None and knows:
                continue  # other networks, as `load_flat` tells
            if trained is None:
                number = [name for name in _INPUTS if hasattr(net, name)].index(network)
                one, other = (_tensors(net.remake(seed)[number])[key] for seed in (0, 1))
                if not _equal(one, other):
                    raise DeeprlError(f"net: {key} of the {network} is random, and the checkpoint does not have it")
            found[f"{prefix}fixed.{network}.{key}"] = tensors[key] if trained is None else trained
    return found
