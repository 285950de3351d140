"""Networks: shapes, numbers worked out by hand, and initial parameters that depend on the seed alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from deeprl.nets import (
    MLP,
    CriticEnsemble,
    EnsembleLinear,
    RunningNorm,
    SimbaCritic,
    TanhGaussianActor,
    bound_log_std,
    init_params,
    tanh_normal_log_prob,
)
from deeprl.nets.mlp import Linear


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- MLP ---


def test_mlp_has_layers_and_parameters_of_its_dimensions() -> None:
    # 3 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2 = 54 parameters
    mlp = MLP(3, (5, 4), 2)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert sum(p.numel() for p in mlp.parameters()) == 54
    assert mlp(torch.zeros(7, 3)).shape == (7, 2)
    assert mlp(torch.zeros(3)).shape == (2,)
    assert mlp(torch.zeros(6, 7, 3)).shape == (6, 7, 2)


def test_mlp_without_hidden_layers_is_linear() -> None:
    mlp = MLP(3, (), 2, nn.Tanh)
    assert [type(layer) for layer in mlp] == [nn.Linear]


def test_mlp_takes_another_activation() -> None:
    assert isinstance(MLP(1, (2,), 1, nn.SiLU)[1], nn.SiLU)


# --- ensembles ---


def test_ensemble_linear_equals_separate_linears() -> None:
    layer = EnsembleLinear(3, 4, 2)
    x = randn(3, 5, 4)
    for i in range(3):
        linear = nn.Linear(4, 2)
        with torch.no_grad():
            linear.weight.copy_(layer.weight[i].T)
            linear.bias.copy_(layer.bias[i])
        torch.testing.assert_close(layer(x)[i], linear(x[i]))


def test_ensemble_linear_starts_as_linear_does() -> None:
    # U(-1/sqrt(16), 1/sqrt(16)): bound 1/4, standard deviation 1/4/sqrt(3) = 0.1443.
    torch.manual_seed(0)
    layer = EnsembleLinear(10, 16, 100)
    for p in (layer.weight.detach(), layer.bias.detach()):
        assert float(p.abs().max()) <= 0.25
        assert float(p.abs().max()) > 0.24
        assert float(p.std()) == pytest.approx(0.1443, rel=0.05)
    assert not torch.equal(layer.weight[0], layer.weight[1])


def test_critic_ensemble_by_hand() -> None:
    # x = (obs, action) = (2, -1). Critic 0: hidden = relu(2 * 1 - 1 * 1, 2 * -1 + 0) = (1, 0); q = 3 * 1 + 5 * 0 + 0.5.
    # Critic 1: hidden = relu(-1 + 0.25, 2 + 0) = (0, 2); q = 1 * 0 + 2 * 2 - 1.
    critic = CriticEnsemble(1, 1, (2,), 2)
    params = {
        "layers.0.weight": torch.tensor([[[1.0, -1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]),
        "layers.0.bias": torch.tensor([[0.0, 0.0], [0.25, 0.0]]),
        "layers.1.weight": torch.tensor([[[3.0], [5.0]], [[1.0], [2.0]]]),
        "layers.1.bias": torch.tensor([[0.5], [-1.0]]),
    }
    qs = functional_call(critic, params, (torch.tensor([[2.0]]), torch.tensor([[-1.0]])))
    assert qs.tolist() == [[3.5], [3.0]]


@pytest.mark.parametrize(("place", "expected"), [("before", [[3.75, -0.5]]), ("after", [[4.5, -3.0]])])
def test_normalised_critics_by_hand(place: Any, expected: list[list[float]]) -> None:
    # x = (2, -1), hidden (1, -3): mean -1, deviation 2, so (1, -1) before the activation; scaled by (1, 2) and shifted
    # by (0.25, 0) it is (1.25, -2), then (1.25, 0): q = 3 * 1.25 + 5 * 0. After it: (1, 0) has mean and deviation 0.5,
    # (1, -1) again, then (1.25, -2): q = 3.75 - 10 + 10.75. The second critic has weights 1 and shifts 0: before,
    # (0, 2) -> (-1, 1) -> (0, 1), q = 2 * 0 - 1 * 1 + 0.5; after, (0, 2) -> (-1, 1), q = -2 - 1 - 0 + 0.
    critic = CriticEnsemble(1, 1, (2,), 2, layer_norm=place)
    heads = torch.tensor([0.0, 0.5]) if place == "before" else torch.tensor([10.75, 0.0])
    params = {
        "layers.0.weight": torch.tensor([[[1.0, -2.0], [1.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]]]),
        "layers.0.bias": torch.tensor([[0.0, 0.0], [0.0, 0.0]]),
        "norms.0.weight": torch.tensor([[1.0, 2.0], [1.0, 1.0]]),
        "norms.0.bias": torch.tensor([[0.25, 0.0], [0.0, 0.0]]),
        "layers.1.weight": torch.tensor([[[3.0], [5.0]], [[2.0], [-1.0]]]),
        "layers.1.bias": heads[:, None],
    }
    qs = functional_call(critic, params, (torch.tensor([[2.0]]), torch.tensor([[-1.0]])))
    torch.testing.assert_close(qs.T, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    first = functional_call(critic, params, (torch.tensor([[2.0]]), torch.tensor([[-1.0]])), {"first": 1})
    assert torch.equal(first, qs[:1])


def test_layers_start_as_their_authors_say() -> None:
    torch.manual_seed(0)
    for start, bound in (("small-head", 3e-3), ("smaller-head", 1e-3)):
        mlp = MLP(5, (64, 64), 64, start=start)  # type: ignore[arg-type]
        weight, bias = mlp[-1].weight.detach().abs(), mlp[-1].bias.detach().abs()
        assert 0.95 * bound < weight.max() <= bound
        assert 0.8 * bound < bias.max() <= bound
        assert [set(layer.bias.tolist()) for layer in (mlp[0], mlp[2])] == [{torch.tensor(0.1).item()}] * 2
    # xavier: sqrt(6 / (7 + 64)) of the first layer, whatever the layout; biases 0
    for module in (MLP(7, (64,), 64, start="xavier"), CriticEnsemble(5, 2, (64,), 3, "xavier")):
        weight, bias = (next(p for n, p in module.named_parameters() if n.endswith(e)) for e in ("weight", "bias"))
        assert 0.98 * math.sqrt(6 / 71) < weight.abs().max() <= math.sqrt(6 / 71)
        assert not bias.any()
    # orthogonal: W W^T = gain^2; only the last hidden layer is small
    small = MLP(4, (4, 4), 4, start="orthogonal-small-last")
    for layer, gain in zip((small[0], small[2], small[4]), (2.0, 1e-4, 2.0), strict=True):
        torch.testing.assert_close(layer.weight @ layer.weight.T / gain, torch.eye(4), rtol=0, atol=1e-5)


def test_normalised_layers_follow_or_precede_the_activation() -> None:
    kinds = {p: [type(m).__name__ for m in MLP(2, (3,), 1, layer_norm=p)] for p in ("none", "before", "after")}  # type: ignore[arg-type]
    assert kinds["none"] == ["Linear", "ReLU", "Linear"]
    assert kinds["before"] == ["Linear", "LayerNorm", "ReLU", "Linear"]
    assert kinds["after"] == ["Linear", "ReLU", "LayerNorm", "Linear"]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_critic_ensemble_returns_one_row_per_critic_without_trailing_axis(size: int) -> None:
    critic = CriticEnsemble(3, 2, (8, 8), size)
    qs = critic(randn(7, 3), randn(7, 2))
    assert qs.shape == (size, 7)
    assert len(qs.unique(dim=0)) == size
    # (5 * 8 + 8 + 8 * 8 + 8 + 8 + 1) = 129 parameters each
    assert sum(p.numel() for p in critic.parameters()) == 129 * size


# --- tanh-Gaussian policy ---


def test_log_prob_equals_torch_distributions() -> None:
    mean, log_std, noise = (randn(50, 3, seed=s).double() for s in range(3))
    pre_tanh = mean + log_std.exp() * noise
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform(cache_size=1)
    )
    action = theirs.transforms[0](pre_tanh)
    expected = theirs.log_prob(action).sum(-1)
    torch.testing.assert_close(tanh_normal_log_prob(noise, log_std, pre_tanh), expected, rtol=1e-10, atol=1e-10)


def test_log_prob_by_hand() -> None:
    # u = 0, sigma = 1: -log sqrt(2 pi) - log(1 - 0) = -0.9189385 for each of two entries.
    # u = 1 with noise 1, sigma = e^-1: -0.5 + 1 - 0.9189385 - log(1 - tanh(1)^2) = -0.4189385 + 0.8675616.
    zero = torch.zeros(2)
    assert float(tanh_normal_log_prob(zero, zero, zero)) == pytest.approx(-1.8378771)
    one = torch.ones(1)
    assert float(tanh_normal_log_prob(one, -one, one)) == pytest.approx(0.4486231)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 0.8), (-1.0, 0.3)])
def test_density_of_the_action_integrates_to_one(mean: float, std: float) -> None:
    action = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[1:-1]
    pre_tanh = torch.atanh(action)
    noise = ((pre_tanh - mean) / std).unsqueeze(-1)
    log_prob = tanh_normal_log_prob(noise, torch.full_like(noise, math.log(std)), pre_tanh.unsqueeze(-1))
    assert float(torch.trapezoid(log_prob.exp(), action)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("u", [-1000.0, -50.0, -9.0, 9.0, 50.0, 1000.0])
def test_log_prob_and_gradient_stay_finite_where_tanh_saturates(u: float) -> None:
    # -log(1 - tanh(u)^2) -> 2 |u| - 2 log 2 for large |u|, its derivative 2 sign(u).
    pre_tanh = torch.tensor([u], requires_grad=True)
    log_prob = tanh_normal_log_prob(torch.zeros(1), torch.zeros(1), pre_tanh)
    (slope,) = torch.autograd.grad(log_prob, pre_tanh)
    assert float(log_prob.detach()) == pytest.approx(2 * abs(u) - 2 * math.log(2) - 0.9189385, rel=1e-5)
    assert float(slope) == pytest.approx(math.copysign(2.0, u), rel=1e-5)


def test_clamped_log_std_is_cut_without_gradient_outside() -> None:
    raw = torch.tensor([-30.0, 0.5, 3.0], requires_grad=True)
    bounded = bound_log_std(raw, "clamp", -20.0, 2.0)
    assert bounded.tolist() == [-20.0, 0.5, 2.0]
    assert torch.autograd.grad(bounded.sum(), raw)[0].tolist() == [0.0, 1.0, 0.0]


def test_tanh_log_std_spans_its_range_smoothly() -> None:
    # low + (high - low) / 2 * (tanh(x) + 1): at 0 the middle -1.5, at +-inf the ends; slope at 0 is 3.5.
    raw = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    bounded = bound_log_std(raw, "tanh", -5.0, 2.0)
    assert bounded.tolist() == pytest.approx([-5.0, -1.5, 2.0])
    assert torch.autograd.grad(bounded.sum(), raw)[0].tolist() == pytest.approx([0.0, 3.5, 0.0])


@pytest.mark.parametrize(("kind", "expected"), [("clamp", 2.0), ("tanh", 0.5 * math.tanh(3.0) + 1.5)])
def test_actor_splits_its_output_into_mean_and_bounded_log_std(kind: str, expected: float) -> None:
    # Output (mean 1, mean 2, raw 1, raw 2) = bias (0.1, 0.2, 3, 3). clamp to [1, 2]: 2; tanh: 1 + 0.5 (tanh 3 + 1).
    actor = TanhGaussianActor(3, 2, (), kind, (1.0, 2.0))  # type: ignore[arg-type]
    params = {"trunk.0.weight": torch.zeros(4, 3), "trunk.0.bias": torch.tensor([0.1, 0.2, 3.0, 3.0])}
    mean, log_std = functional_call(actor, params, (randn(5, 3),))
    assert mean.shape == log_std.shape == (5, 2)
    assert mean[0].tolist() == pytest.approx([0.1, 0.2])
    assert log_std[4].tolist() == pytest.approx([expected] * 2)


# --- running normalisation ---


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1000), st.sampled_from([0.0, 5.0]))
def test_running_norm_equals_numpy_over_all_batches(sizes: list[int], seed: int, shift: float) -> None:
    batches = [randn(n, 3, seed=seed + i).double() * (i + 1) + shift * i for i, n in enumerate(sizes)]
    norm = RunningNorm(3).double()
    for batch in batches:
        norm.update(batch)
    together = torch.cat(batches).numpy()
    np.testing.assert_allclose(norm.mean.numpy(), together.mean(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(norm.var.numpy(), together.var(0), rtol=1e-10, atol=1e-10)
    assert float(norm.count) == sum(sizes)


def test_running_norm_in_float32_stays_close_to_numpy_over_many_single_rows() -> None:
    # Mean 100, deviation 0.1, one row at a time: the naive sum of squares would lose all digits.
    rows = randn(5000, 1) * 0.1 + 100.0
    norm = RunningNorm(1)
    for row in rows:
        norm.update(row[None])
    assert float(norm.mean) == pytest.approx(float(rows.double().mean()), rel=1e-5)
    assert float(norm.var) == pytest.approx(float(rows.double().var(unbiased=False)), rel=2e-2)


def test_running_norm_by_hand() -> None:
    # (1, 3), then (5): mean 3, variance ((2)^2 + 0 + 2^2) / 3 = 8/3. 5 -> 2 / 1.632993 = 1.2247449
    norm = RunningNorm(1)
    norm.update(torch.tensor([[1.0], [3.0]]))
    norm.update(torch.tensor([[5.0]]))
    assert (float(norm.mean), float(norm.count)) == (3.0, 3.0)
    assert float(norm.var) == pytest.approx(8 / 3)
    assert float(norm(torch.tensor([[5.0]]))) == pytest.approx(1.2247449)


def test_running_norm_forward_changes_no_statistics_even_in_training_mode() -> None:
    norm = RunningNorm(2).train()
    norm.update(randn(10, 2))
    before = {k: b.clone() for k, b in norm.named_buffers()}
    norm(randn(10, 2, seed=1) * 100)
    assert all(torch.equal(b, before[k]) for k, b in norm.named_buffers())


def test_running_norm_before_first_update_passes_and_clips() -> None:
    assert RunningNorm(3)(torch.tensor([-20.0, 0.5, 11.0])).tolist() == pytest.approx([-10.0, 0.5, 10.0])


def test_running_norm_of_constant_feature_is_finite() -> None:
    # Variance 0: the feature itself gives 0; any other value is cut at the clip.
    norm = RunningNorm(1)
    norm.update(torch.full((4, 1), 7.0))
    assert norm(torch.tensor([[7.0], [8.0]])).tolist() == [[0.0], [10.0]]


def test_running_norm_has_no_parameters_and_pure_form_leaves_arguments() -> None:
    norm = RunningNorm(2)
    assert list(norm.parameters()) == []
    stats = {k: b.clone() for k, b in norm.named_buffers()}
    new = RunningNorm.updated(stats, randn(4, 2))
    assert float(stats["count"]) == 0.0
    assert float(new["count"]) == 4.0
    assert list(new) == list(stats)


# --- initial parameters ---


class Stubborn(nn.Module):
    """A parameter of its own and no `reset_parameters`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


class ZeroHead(nn.Module):
    """Starts its head at zero, as a parent may."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.weight)


def test_init_params_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = init_params(MLP(3, (4,), 2), 5)
    torch.manual_seed(2)
    again, other = init_params(MLP(3, (4,), 2), 5), init_params(MLP(3, (4,), 2), 6)
    assert list(first) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert not first[name].requires_grad


def test_init_params_leaves_global_generator_and_module_untouched() -> None:
    module = MLP(3, (4,), 2)
    before = {k: p.detach().clone() for k, p in module.named_parameters()}
    generator = torch.random.get_rng_state()
    params = init_params(module, 7)
    params["0.weight"].zero_()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(p, before[k]) for k, p in module.named_parameters())


def test_init_params_without_reset_parameters_raises_value_error_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"the network \(Stubborn\)"):
        init_params(Stubborn(), 0)
    with pytest.raises(ValueError, match=r"1 \(Stubborn\)"):
        init_params(nn.Sequential(nn.Linear(2, 2), Stubborn()), 0)


def test_init_params_lets_the_parent_reset_last() -> None:
    params = init_params(ZeroHead(), 0)
    assert float(params["head.weight"].abs().sum()) == 0.0
    assert float(params["body.weight"].abs().min()) > 0.0
    # also when the parent is itself a child
    assert float(init_params(nn.Sequential(ZeroHead()), 0)["0.head.weight"].abs().sum()) == 0.0


def test_init_params_of_large_seeds_work() -> None:
    assert not torch.equal(init_params(nn.Linear(2, 2), 2**32 - 1)["weight"], init_params(nn.Linear(2, 2), 0)["weight"])


@pytest.mark.parametrize("kind", ["mlp", "ensemble", "simba"])
def test_values_are_not_rounded_under_bf16(kind: str) -> None:
    """Hidden layers round their products, the last one does not: no two of 64 values near 250 are the same."""
    torch.manual_seed(0)
    obs, action = torch.randn(64, 3), torch.randn(64, 2)
    made = {"mlp": MLP(5, (16,), 1), "ensemble": CriticEnsemble(3, 2, (16,)), "simba": SimbaCritic(3, 2, 16, 1)}[kind]
    inputs = (torch.cat([obs, action], 1),) if kind == "mlp" else (obs, action)
    with torch.no_grad():
        bias = [p for name, p in made.named_parameters() if name.endswith("bias")][-1]
        bias.fill_(250.0)
    with torch.autocast("cpu", torch.bfloat16):
        values = made(*inputs)
    assert values.dtype == torch.float32
    assert len(values.flatten()[:64].unique()) == 64
    exact = made(*inputs)
    torch.testing.assert_close(values, exact, rtol=0.0, atol=0.05)


def test_a_single_output_equals_that_of_torchs_layer() -> None:
    ours, theirs, x = Linear(7, 1), nn.Linear(7, 1), torch.randn(2, 5, 7)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
