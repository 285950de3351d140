"""Optimizers: equal to torch.optim, to numbers worked out by hand, and computed for each agent on its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprl.core.optim import adam, adaptive_clip, clip_by_global_norm, global_norm, init_moments, laprop, polyak
from deeprl.core.spec import Params
from deeprl.core.tree import tree_leaves


def tensors(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem(seed: int) -> tuple[Params, Callable[[Params], Tensor]]:
    """Parameters and a loss that is not quadratic, float64."""
    generator = torch.Generator().manual_seed(seed)
    params = {
        "w": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, generator=generator, dtype=torch.float64),
    }
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return params, lambda p: torch.tanh(x @ p["w"] + p["b"]).pow(4).sum()


# --- Adam ---


@pytest.mark.parametrize(
    ("weight_decay", "betas", "eps"), [(0.0, (0.9, 0.999), 1e-8), (0.1, (0.9, 0.999), 1e-8), (0.01, (0.5, 0.9), 1e-3)]
)
def test_adam_equals_torch_over_100_steps(weight_decay: float, betas: tuple[float, float], eps: float) -> None:
    params, loss = problem(0)
    moments = init_moments(params)
    theirs = {k: p.clone().requires_grad_() for k, p in params.items()}
    settings = {"lr": 0.01, "betas": betas, "eps": eps}
    optimizer = (
        torch.optim.AdamW(theirs.values(), weight_decay=weight_decay, **settings)
        if weight_decay
        else torch.optim.Adam(theirs.values(), **settings)
    )
    for _ in range(100):
        grads = torch.func.grad(loss)(params)
        params, moments = adam(params, grads, moments, 0.01, betas, eps, weight_decay)
        optimizer.zero_grad()
        loss(theirs).backward()
        optimizer.step()
    for k, p in params.items():
        torch.testing.assert_close(p, theirs[k].detach(), rtol=1e-12, atol=1e-12)


def test_adam_first_step_by_hand() -> None:
    # m = 0.1 g, v = 0.001 g^2; corrected both are g and g^2: the step is lr * g / (|g| + eps) = 0.5 * sign(g).
    params, grads = {"p": tensors(1.0, 1.0)}, {"p": tensors(4.0, -0.01)}
    new, moments = adam(params, grads, init_moments(params), 0.5)
    torch.testing.assert_close(new["p"], tensors(0.5, 1.5), rtol=0, atol=1e-6)
    torch.testing.assert_close(moments.m["p"], tensors(0.4, -0.001))
    torch.testing.assert_close(moments.v["p"], tensors(0.016, 1e-7))
    assert float(moments.beta1_power) == pytest.approx(0.9)
    assert float(moments.beta2_power) == pytest.approx(0.999)


def test_adamw_decays_before_the_step_by_hand() -> None:
    # 2 * (1 - 0.5 * 0.1) - 0.5 * sign(g) = 1.9 - 0.5
    params = {"p": tensors(2.0)}
    new, _ = adam(params, {"p": tensors(3.0)}, init_moments(params), 0.5, weight_decay=0.1)
    assert float(new["p"]) == pytest.approx(1.4, abs=1e-8)


def test_optimizers_leave_their_arguments_unchanged() -> None:
    for step in (adam, laprop):
        params, loss = problem(1)
        moments = init_moments(params)
        before = [x.clone() for x in tree_leaves((params, moments))]
        step(params, torch.func.grad(loss)(params), moments, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(before, tree_leaves((params, moments)), strict=True))


def test_learning_rate_of_zero_changes_nothing() -> None:
    for step in (adam, laprop):
        params, loss = problem(2)
        new, _ = step(params, torch.func.grad(loss)(params), init_moments(params), torch.zeros((), dtype=torch.float64))
        assert all(torch.equal(new[k], params[k]) for k in params)


@pytest.mark.parametrize("step", [adam, laprop])
def test_learning_rates_per_agent_equal_separate_runs(step: Callable) -> None:
    params, loss = problem(3)
    rates = tensors(1e-4, 1e-2, 0.3)
    stacked = {k: p.expand(3, *p.shape).clone() for k, p in params.items()}
    moments = torch.vmap(init_moments)(stacked)

    def one(params: Params, moments: object, lr: Tensor) -> tuple:
        return step(params, torch.func.grad(loss)(params), moments, lr)

    together, state = stacked, moments
    for _ in range(20):
        together, state = torch.vmap(one)(together, state, rates)
    for i, lr in enumerate(rates):
        alone, own = params, init_moments(params)
        for _ in range(20):
            alone, own = one(alone, own, lr)
        for k in params:
            torch.testing.assert_close(together[k][i], alone[k], rtol=1e-12, atol=1e-12)


def test_moments_have_the_dtype_of_the_parameters() -> None:
    for dtype in (torch.float32, torch.float64):
        params = {"p": torch.zeros(2, dtype=dtype)}
        grads, lr = {"p": torch.ones(2, dtype=dtype)}, torch.tensor(0.1, dtype=dtype)
        new = adam(params, grads, init_moments(params), lr)
        assert {x.dtype for x in tree_leaves(new)} == {dtype}


# --- LaProp ---


def test_laprop_two_steps_by_hand() -> None:
    # lr 0.1, betas 0.9 and 0.99, p = 1, gradients 2 and -1 (eps 1e-20 is nothing here).
    # Step 1: v = 0.01 * 4 = 0.04; v / (1 - 0.99) = 4; g / 2 = 1; m = 0.1; p = 1 - 0.1 / 0.1 * 0.1 = 0.9
    params = {"p": tensors(1.0)}
    params, moments = laprop(params, {"p": tensors(2.0)}, init_moments(params), 0.1)
    assert float(params["p"]) == pytest.approx(0.9, abs=1e-12)
    assert float(moments.v["p"]) == pytest.approx(0.04, abs=1e-12)
    assert float(moments.m["p"]) == pytest.approx(0.1, abs=1e-12)
    # Step 2: v = 0.99 * 0.04 + 0.01 = 0.0496; v / (1 - 0.9801) = 2.4924623, root 1.5787534; g / root = -0.6334111
    # m = 0.9 * 0.1 - 0.1 * 0.6334111 = 0.0266589; p = 0.9 - 0.1 / 0.19 * 0.0266589 = 0.8859690
    params, moments = laprop(params, {"p": tensors(-1.0)}, moments, 0.1)
    assert float(moments.m["p"]) == pytest.approx(0.0266589, abs=1e-7)
    assert float(params["p"]) == pytest.approx(0.8859690, abs=1e-7)


def test_laprop_of_zero_gradient_stays_finite() -> None:
    params = {"p": torch.ones(2)}
    new, moments = laprop(params, {"p": torch.zeros(2)}, init_moments(params), 0.1)
    assert new["p"].tolist() == [1.0, 1.0]
    assert all(bool(x.isfinite().all()) for x in tree_leaves(moments))


# --- clipping ---


def test_global_norm_spans_all_tensors() -> None:
    # sqrt(3^2 + 4^2 + 12^2) = 13
    norm = global_norm({"a": tensors(3.0, 4.0), "b": tensors(12.0).reshape(1, 1)})
    assert float(norm) == pytest.approx(13.0)
    assert norm.dtype == torch.float64


def test_clipping_scales_long_gradients_and_leaves_short_ones() -> None:
    # Norm 5, at most 1: times 1 / (5 + 1e-6).
    grads = {"a": tensors(3.0), "b": tensors(4.0)}
    clipped = clip_by_global_norm(grads, 1.0)
    assert float(clipped["a"]) == pytest.approx(0.6, abs=1e-6)
    assert float(clipped["b"]) == pytest.approx(0.8, abs=1e-6)
    assert clip_by_global_norm(grads, 6.0) == grads


def test_clipping_equals_torch_clip_grad_norm() -> None:
    grads = {"a": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), "b": torch.full((5,), 2.0)}
    theirs = [torch.zeros_like(g) for g in grads.values()]
    for t, g in zip(theirs, grads.values(), strict=True):
        t.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(theirs, 0.7)
    for t, g in zip(theirs, clip_by_global_norm(grads, 0.7).values(), strict=True):
        torch.testing.assert_close(g, t.grad)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_clipped_norm_is_at_most_the_bound(values: list[float], bound: float) -> None:
    assert float(global_norm(clip_by_global_norm({"g": tensors(*values)}, bound))) <= bound * (1 + 1e-9)


def test_clipping_of_zero_gradients_gives_zeros() -> None:
    assert clip_by_global_norm({"g": torch.zeros(3)}, 1.0)["g"].tolist() == [0.0] * 3
    assert adaptive_clip({"g": torch.zeros(3)}, {"g": torch.zeros(3)})["g"].tolist() == [0.0] * 3


def test_norms_of_a_population_are_per_agent() -> None:
    # Norms 5 and 0.5, bound 1: only the first agent is scaled.
    grads = {"g": tensors(3.0, 4.0, 0.3, 0.4).reshape(2, 2)}
    clipped = torch.vmap(lambda g: clip_by_global_norm(g, 1.0))(grads)["g"]
    torch.testing.assert_close(clipped, tensors(0.6, 0.8, 0.3, 0.4).reshape(2, 2), rtol=0, atol=1e-6)
    # Weight norms 1 and 100: limits 0.3 and 30.
    params = {"g": tensors(0.6, 0.8, 60.0, 80.0).reshape(2, 2)}
    clipped = torch.vmap(adaptive_clip)({"g": tensors(3.0, 4.0, 3.0, 4.0).reshape(2, 2)}, params)["g"]
    torch.testing.assert_close(clipped, tensors(0.18, 0.24, 3.0, 4.0).reshape(2, 2), rtol=0, atol=1e-6)


def test_adaptive_clip_works_per_tensor_by_hand() -> None:
    params = {"a": tensors(0.6, 0.8), "b": tensors(0.0), "c": tensors(0.6, 0.8)}
    grads = {"a": tensors(3.0, 4.0), "b": tensors(-2.0), "c": tensors(0.1, 0.1)}
    clipped = adaptive_clip(grads, params)
    # a: |w| = 1, limit 0.3, |g| = 5: times 0.06. b: |w| = 0, limit 0.3 * 1e-3. c: |g| = 0.14 below 0.3.
    torch.testing.assert_close(clipped["a"], tensors(0.18, 0.24), rtol=0, atol=1e-6)
    torch.testing.assert_close(clipped["b"], tensors(-3e-4), rtol=0, atol=1e-9)
    assert torch.equal(clipped["c"], grads["c"])


# --- target networks ---


def test_polyak_by_hand() -> None:
    # 0.9 * 10 + 0.1 * 20 = 11
    target, online = {"p": tensors(10.0)}, {"p": tensors(20.0)}
    assert float(polyak(target, online, 0.1)["p"]) == pytest.approx(11.0)
    assert torch.equal(polyak(target, online, 0.0)["p"], target["p"])
    assert torch.equal(polyak(target, online, 1.0)["p"], online["p"])
    assert float(target["p"]) == 10.0


def test_polyak_with_tau_per_agent() -> None:
    target, online = {"p": torch.zeros(2, 1)}, {"p": torch.ones(2, 1)}
    assert torch.vmap(polyak)(target, online, torch.tensor([0.25, 0.5]))["p"].tolist() == [[0.25], [0.5]]
