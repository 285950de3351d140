"""Optimizers as pure functions on dictionaries of parameters, for one agent; learning rates may be 0-d tensors.

Powers of the betas are carried in the state instead of a step count: `beta ** step` costs two calls of `pow` for
every few elements inside a compiled kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value

from deeprl.core.spec import Params

Scalar = float | Float[Tensor, ""]


class Moments(NamedTuple):
    """State of Adam, AdamW and LaProp: first and second moments of each parameter, beta1^t and beta2^t (0-d)."""

    m: Params
    v: Params
    beta1_power: Tensor
    beta2_power: Tensor


def init_moments(params: Params | Tensor) -> Moments:
    """The state before the first step; of a single tensor under the name that `descend` looks for."""
    params = params if isinstance(params, dict) else {"x": params}
    some = next(iter(params.values()))
    return Moments(
        {k: torch.zeros_like(p) for k, p in params.items()},
        {k: torch.zeros_like(p) for k, p in params.items()},
        torch.ones((), dtype=some.dtype, device=some.device),
        torch.ones((), dtype=some.dtype, device=some.device),
    )


def adam(
    params: Params,
    grads: Params,
    moments: Moments,
    lr: Scalar,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
) -> tuple[Params, Moments]:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1); with `weight_decay` it is AdamW (Loshchilov & Hutter 2019).

    Equal to `torch.optim.Adam` and `torch.optim.AdamW`.
    """
    beta1, beta2 = betas
    power1, power2 = moments.beta1_power * beta1, moments.beta2_power * beta2
    step_size, root2 = lr / (1.0 - power1), torch.sqrt(1.0 - power2)
    decays = isinstance(weight_decay, Tensor) or weight_decay != 0.0  # else three operations of each parameter less
    new_params, new_m, new_v = {}, {}, {}
    for k, g in grads.items():
        m = new_m[k] = moments.m[k] + (1.0 - beta1) * (g - moments.m[k])
        v = new_v[k] = beta2 * moments.v[k] + (1.0 - beta2) * g * g
        kept = params[k] * (1.0 - lr * weight_decay) if decays else params[k]
        new_params[k] = kept - step_size * m / (torch.sqrt(v) / root2 + eps)
    return new_params, Moments(new_m, new_v, power1, power2)


class Descent(NamedTuple):
    """A step down a loss: what it led to, the loss before it with what else it told, and the gradient's norm.

    params: as they were given, a dictionary or a single tensor. aux: () of a loss that tells nothing else.
    """

    params: Any
    moments: Moments
    loss: Float[Tensor, ""]
    aux: Any
    grad_norm: Float[Tensor, ""]


def descend(
    loss: Callable[..., Any],
    params: Any,
    moments: Moments,
    lr: Scalar,
    *args: Any,
    max_norm: float = 0.0,
    weight_decay: Scalar = 0.0,
    eps: Scalar = 1e-8,
) -> Descent:
    """One step of `adam` down the gradient of loss(params, *args), which returns a value, or a value and more.

    max_norm: the gradients' global norm is clipped to it, 0: not at all; `grad_norm` is that before.
    """

    def with_aux(params: Any, *args: Any) -> tuple[Tensor, Any]:
        found = loss(params, *args)
        return found if isinstance(found, tuple) else (found, ())

    grads, (value, aux) = grad_and_value(with_aux, has_aux=True)(params, *args)
    alone = next(iter(moments.m)) if isinstance(params, Tensor) else ""
    named, slopes = ({alone: params}, {alone: grads}) if alone else (params, grads)
    clipped = clip_by_global_norm(slopes, max_norm) if max_norm else slopes
    new, moments = adam(named, clipped, moments, lr, eps=eps, weight_decay=weight_decay)
    return Descent(new[alone] if alone else new, moments, value, aux, global_norm(slopes))


def laprop(
    params: Params,
    grads: Params,
    moments: Moments,
    lr: Scalar,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-20,
) -> tuple[Params, Moments]:
    """One step of LaProp (Ziyin et al. 2020, Algorithm 1): the gradient is normalised before it enters the momentum."""
    beta1, beta2 = betas
    power1, power2 = moments.beta1_power * beta1, moments.beta2_power * beta2
    new_params, new_m, new_v = {}, {}, {}
    for k, g in grads.items():
        v = new_v[k] = beta2 * moments.v[k] + (1.0 - beta2) * g * g
        m = new_m[k] = beta1 * moments.m[k] + (1.0 - beta1) * g / (torch.sqrt(v / (1.0 - power2)) + eps)
        new_params[k] = params[k] - lr / (1.0 - power1) * m
    return new_params, Moments(new_m, new_v, power1, power2)


def global_norm(grads: Params) -> Float[Tensor, ""]:
    """Euclidean norm of all entries of one agent's gradients."""
    return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()


def clip_by_global_norm(grads: Params, max_norm: Scalar) -> Params:
    """Scale all gradients of one agent so that their common norm is at most `max_norm` (Pascanu et al. 2013)."""
    scale = torch.clamp(max_norm / (global_norm(grads) + 1e-6), max=1.0)
    return {k: g * scale for k, g in grads.items()}


def adaptive_clip(grads: Params, params: Params, clip: float = 0.3, eps: float = 1e-3) -> Params:
    """Adaptive gradient clipping (Brock et al. 2021, Eq. 3), per tensor: |g| <= clip * max(|w|, eps)."""
    clipped = {}
    for k, g in grads.items():
        limit = clip * torch.clamp(params[k].square().sum().sqrt(), min=eps)
        clipped[k] = g * torch.clamp(limit / (g.square().sum().sqrt() + 1e-6), max=1.0)
    return clipped


def polyak(target: Params, online: Params, tau: Scalar) -> Params:
    """Soft target update: (1 - tau) * target + tau * online."""
    return {k: t + tau * (online[k] - t) for k, t in target.items()}
