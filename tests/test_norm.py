"""Running statistics and the parts of hyperspherical networks: numbers worked out by hand, exactly or in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.func import functional_call

from deeprl.core.population import member, stack
from deeprl.nets import (
    HyperLinear,
    Lerp,
    ReturnScale,
    RSNorm,
    RunningNorm,
    Scaler,
    hyper_weights,
    init_params,
    l2_normalize,
    project_,
    projected,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stats_of(module: nn.Module, **changes: float) -> dict[str, Tensor]:
    """A copy of a module's statistics, some of them set to other numbers."""
    stats = {k: b.clone() for k, b in module.named_buffers()}
    return stats | {k: torch.full_like(stats[k], v) for k, v in changes.items()}


def exact(stream: Sequence[Sequence[Fraction]]) -> tuple[Fraction, Fraction, Fraction]:
    """Mean, variance and count after a stream of batches, in exact arithmetic."""
    mean, var, count = Fraction(0), Fraction(1), Fraction(1, 10_000)
    for batch in stream:
        k = len(batch)
        middle = sum(batch) / Fraction(k)
        spread = sum((x - middle) ** 2 for x in batch) / Fraction(k)
        delta, total = middle - mean, count + k
        mean += delta * k / total
        var = (var * count + spread * k + delta**2 * count * k / total) / total
        count = total
    return mean, var, count


# --- RSNorm ---


@pytest.mark.parametrize("x", [0.0, 3.0, -20.0])
def test_first_sample_by_hand(x: float) -> None:
    # n = 1e-4, N = 1.0001: mean x / N; var (1 * 1e-4 + 0 + x^2 * 1e-4 / N) / N, about 1e-4 (1 + x^2).
    norm = RSNorm(1)
    norm.update(torch.tensor([[x]]))
    assert norm.mean.item() == pytest.approx(x / 1.0001, rel=1e-14)
    assert norm.var.item() == pytest.approx(1e-4 * (1 + x * x / 1.0001) / 1.0001, rel=1e-11)
    assert norm.var.item() == pytest.approx(1e-4 * (1 + x * x), rel=1e-3)
    assert norm.count.item() == 1.0001


def test_recursion_is_exact() -> None:
    # Batches of 1, 3 and 2 vectors; each coordinate is a stream of its own.
    stream = [[[1, -8]], [[2, 0], [5, 0], [-3, 1]], [[7, 4], [7, 5]]]
    norm = RSNorm(2)
    for batch in stream:
        norm.update(torch.tensor(batch, dtype=torch.float32))
    for j in range(2):
        mean, var, count = exact([[Fraction(row[j]) for row in batch] for batch in stream])
        assert norm.mean[j].item() == pytest.approx(float(mean), rel=1e-11)
        assert norm.var[j].item() == pytest.approx(float(var), rel=1e-11)
        assert norm.count.item() == pytest.approx(float(count), rel=1e-15)


@pytest.mark.parametrize("batch", [1, 4])
def test_statistics_are_those_of_all_that_was_seen(batch: int) -> None:
    # The start weighs as 1e-4 observations of mean 0 and variance 1.
    x = (randn(400, 3) * torch.tensor([0.1, 1.0, 30.0]) + torch.tensor([5.0, 0.0, -100.0])).split(batch)
    norm = RSNorm(3)
    for part in x:
        norm.update(part)
    seen, total = torch.cat(x).double().numpy(), 400 + 1e-4
    mean = seen.sum(0) / total
    var = (1e-4 * (1 + mean**2) + ((seen - mean) ** 2).sum(0)) / total
    np.testing.assert_allclose(norm.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(norm.var.numpy(), var, rtol=1e-12)


def test_result_is_standardised_and_never_clipped() -> None:
    # (x - 2) / sqrt(9 + 1e-8)
    norm = RSNorm(1)
    stats = stats_of(norm, mean=2.0, var=9.0)
    out = functional_call(norm, stats, (torch.tensor([[2.0], [5.0], [3e6], [-3e6]]),))
    torch.testing.assert_close(out, torch.tensor([[0.0], [1.0], [2999998 / 3], [-3000002 / 3]]))
    assert RSNorm(1)(torch.tensor([1e5])).item() == pytest.approx(1e5)  # before the first update: as it is


def test_small_variance_does_not_divide_by_zero() -> None:
    norm = RSNorm(1)  # 1e-4 / sqrt(0 + 1e-8) = 1
    assert functional_call(norm, stats_of(norm, var=0.0), (torch.tensor([1e-4]),)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("make", [lambda: RSNorm(3), lambda: ReturnScale(3)])
def test_statistics_stay_float64_when_the_network_around_them_changes_its_type(make: Any) -> None:
    norm, last = make(), nn.Linear(3, 1)
    norm.mean.fill_(1 / 3)  # no float32
    before = {k: b.clone() for k, b in norm.named_buffers()}
    for change in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float(), lambda m: m.to("cpu")):
        change(nn.Sequential(norm, last))
        assert {k: b.dtype for k, b in norm.named_buffers()} == dict.fromkeys(before, torch.float64)
        assert all(torch.equal(b, before[k]) for k, b in norm.named_buffers())
    assert last.weight.dtype == torch.float32
    assert norm.to("meta").mean.is_meta
    assert norm.to_empty(device="cpu").mean.shape == before["mean"].shape


def test_float64_statistics_move_where_float32_stands_still() -> None:
    # 100 observations of 1001 after 10^7 of 1000: the mean rises by 100 / (10^7 + 100); one last digit of float32 is
    # 6e-5 there. The count rises by 100 from 2^24, which float32 cannot count beyond.
    norm, rounded = RSNorm(1), RunningNorm(1)
    for count, name, expected in ((1e7, "mean", 1000 + 100 / (1e7 + 100)), (2.0**24, "count", 2.0**24 + 100)):
        ours, theirs = (stats_of(m, mean=1000.0, count=count) for m in (norm, rounded))
        for _ in range(100):
            ours, theirs = (
                RSNorm.updated(ours, torch.tensor([[1001.0]])),
                rounded.updated(theirs, torch.tensor([[1001.0]])),
            )
        assert ours[name].item() == pytest.approx(expected, rel=1e-14)
        assert theirs[name].item() == {"mean": 1000.0, "count": 2.0**24}[name]


def test_differences_are_taken_in_float64_and_the_result_has_the_inputs_type() -> None:
    # 10^6 - (10^6 - 0.01) = 0.01, in units of a standard deviation of 0.01; the mean is 10^6 itself in float32.
    norm = RSNorm(1)
    stats = stats_of(norm, mean=1e6 - 0.01, var=1e-4 - 1e-8)
    for dtype in (torch.float32, F64):
        out = functional_call(norm, stats, (torch.tensor([1e6], dtype=dtype),))
        assert out.dtype == dtype
        assert out.item() == pytest.approx(1.0, rel=1e-6)
    assert all(b.dtype == F64 for b in norm.buffers())
    assert not list(norm.parameters())


def test_statistics_change_only_in_update_and_updated_is_pure() -> None:
    norm, x = RSNorm((3,)), randn(5, 3)
    before = stats_of(norm)
    norm(x)
    assert_equal(dict(norm.named_buffers()), before)
    new = RSNorm.updated(before, x)
    assert_equal(before, stats_of(RSNorm(3)))
    norm.update(x)
    assert_equal(dict(norm.named_buffers()), new)
    assert set(norm.state_dict()) == {"mean", "var", "count"}


def test_population_of_observation_statistics_equals_singles() -> None:
    singles = [stats_of(RSNorm(3)) for _ in range(3)]
    together = stack(singles)
    for t in range(20):
        x = randn(3, 2, 3, seed=t) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1) + 5
        together = torch.vmap(RSNorm.updated)(together, x)
        singles = [RSNorm.updated(s, x[i]) for i, s in enumerate(singles)]
    out = torch.vmap(lambda s, x: functional_call(RSNorm(3), s, (x,)))(together, x)
    for i, alone in enumerate(singles):
        for name, value in member(together, i).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-13, atol=0)
        torch.testing.assert_close(out[i], functional_call(RSNorm(3), alone, (x[i],)))


# --- ReturnScale ---


def outcome(stats: dict[str, Tensor], reward: list[float], ended: list[bool], discount: Any = 0.5) -> dict[str, Tensor]:
    return ReturnScale.updated(stats, torch.tensor(reward), torch.tensor(ended), discount)


def test_running_return_by_hand() -> None:
    # Rewards 1, 2, 3, -5, discount 0.5; the second is the last of its episode: there G is that reward alone, and the
    # next episode goes on from it. G: 1; 0 * 1 + 2 = 2; 0.5 * 2 + 3 = 4; 0.5 * 4 + (-5) = -3.
    stats, found = stats_of(ReturnScale()), []
    for reward, ended in ((1.0, False), (2.0, True), (3.0, False), (-5.0, False)):
        stats = outcome(stats, [reward], [ended])
        found.append((stats["returns"].item(), stats["peak"].item()))
    assert found == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (-3.0, 4.0)]
    mean, var, count = exact([[Fraction(g)] for g in (1, 2, 4, -3)])
    for name, value in (("mean", mean), ("var", var), ("count", count)):
        assert stats[name].item() == pytest.approx(float(value), rel=1e-11)
    assert all(value.dtype == F64 for value in stats.values())


def test_environments_have_returns_of_their_own_and_share_the_scale() -> None:
    # Two environments. Step 1: G = 1, -6. Step 2: 0.5 * 1 + 1 = 1.5; the other one ends: 2. Peak |-6|.
    stats = outcome(stats_of(ReturnScale(envs=2)), [1.0, -6.0], [False, False])
    stats = outcome(stats, [1.0, 2.0], [False, True])
    assert stats["returns"].tolist() == [1.5, 2.0]
    assert stats["peak"].item() == 6.0
    mean, var, _ = exact([[Fraction(1), Fraction(-6)], [Fraction(3, 2), Fraction(2)]])
    assert stats["mean"].item() == pytest.approx(float(mean))
    assert stats["var"].item() == pytest.approx(float(var))


@pytest.mark.parametrize(
    ("var", "peak", "bound", "scale"),
    [
        (4.0, 5.0, 5.0, 2.0),  # max(2, 1)
        (0.25, 10.0, 5.0, 2.0),  # max(0.5, 2)
        (0.25, 10.0, 20.0, 0.5),  # max(0.5, 0.5)
        (0.0, 0.0, 5.0, 1e-4),  # sqrt(0 + 1e-8)
    ],
)
def test_rewards_are_divided_by_the_larger_of_spread_and_bound(
    var: float, peak: float, bound: float, scale: float
) -> None:
    module = ReturnScale(1, bound)
    stats = stats_of(module, var=var, peak=peak, mean=77.0)  # the mean is not subtracted
    out = functional_call(module, stats, (torch.tensor([1.0, 0.0, -3.0]),))
    torch.testing.assert_close(out, torch.tensor([1.0, 0.0, -3.0]) / scale)
    assert ReturnScale()(torch.tensor([2.0])).item() == pytest.approx(2.0)  # before the first reward: as it is


def test_scaled_returns_stay_within_the_bound() -> None:
    # Whatever the rewards, the largest return so far becomes at most the bound.
    module, stats = ReturnScale(1, 5.0), stats_of(ReturnScale())
    returns = []
    for t, reward in enumerate(randn(200).exp().tolist()):
        stats = outcome(stats, [reward], [t % 50 == 49], 0.95)
        returns.append(stats["returns"].item())
    scaled = functional_call(module, stats, (torch.tensor(returns),))
    assert float(scaled.abs().max()) <= 5.0 + 1e-6
    assert float(scaled.abs().max()) > 1.0


def test_population_of_return_scales_with_their_own_discounts_equals_singles() -> None:
    discount, singles = torch.tensor([0.0, 0.5, 0.99]), [stats_of(ReturnScale(2)) for _ in range(3)]
    together = stack(singles)
    for t in range(20):
        reward, ended = randn(3, 2, seed=t), randn(3, 2, seed=100 + t) > 1
        together = torch.vmap(ReturnScale.updated)(together, reward, ended, discount)
        singles = [ReturnScale.updated(s, reward[i], ended[i], discount[i]) for i, s in enumerate(singles)]
    for i, alone in enumerate(singles):
        for name, value in member(together, i).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-13, atol=1e-15)
    assert len(together["peak"].unique()) == 3


# --- the sphere ---


def test_l2_normalize_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    torch.testing.assert_close(l2_normalize(x), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    torch.testing.assert_close(l2_normalize(x, dim=0), torch.tensor([[1.0, 4 / 20**0.5], [0.0, -2 / 20**0.5]]))
    # below eps = 1e-8 the length is taken for 1e-8
    torch.testing.assert_close(l2_normalize(torch.tensor([1e-9, 0.0])), torch.tensor([0.1, 0.0]))
    assert l2_normalize(x.double()).dtype == F64


def test_l2_normalize_of_the_zero_vector_is_zero_with_a_finite_gradient() -> None:
    gradient, out = torch.func.grad_and_value(lambda x: l2_normalize(x).sum())(torch.zeros(3))
    assert out.item() == 0.0
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_l2_normalize_of_short_types_is_computed_in_float32(dtype: torch.dtype) -> None:
    # 300 * 300 overflows float16, and a length rounded to bfloat16 is off by up to 4e-3.
    x = (randn(16, 64) * 300).to(dtype)
    out = l2_normalize(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(16), rtol=0, atol=1e-6)
    assert_equal(out, l2_normalize(x.float()))


def lengths(weight: Tensor) -> Tensor:
    return weight.detach().norm(dim=1)


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 3), (3, 8), (1, 5)])
def test_units_begin_with_weights_of_length_one(inputs: int, outputs: int) -> None:
    layer = HyperLinear(inputs, outputs)
    assert [(name, p.shape) for name, p in layer.named_parameters()] == [("weight", (outputs, inputs))]
    torch.testing.assert_close(lengths(layer.weight), torch.ones(outputs))
    if outputs <= inputs:  # rows, and otherwise columns, are orthogonal
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(outputs), rtol=0, atol=1e-5)
    x = randn(4, inputs)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    one, same, other = (init_params(layer, s)["weight"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(lengths(one), torch.ones(outputs))


def test_projection_takes_the_layers_on_the_sphere_and_no_others_back() -> None:
    module = nn.Sequential(HyperLinear(3, 4), nn.Linear(4, 4), nn.ModuleList([HyperLinear(4, 2), Scaler(2)]))
    names = hyper_weights(module)
    assert names == {"0.weight", "2.0.weight"}
    assert hyper_weights(HyperLinear(2, 2)) == {"weight"}
    assert hyper_weights(nn.Linear(2, 2)) == set()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3.0).add_(0.5)
    before = {k: p.detach().clone() for k, p in module.named_parameters()}
    after = projected(before, names)
    project_(module)
    assert_equal({k: p.detach() for k, p in module.named_parameters()}, after)
    for name, old in before.items():
        if name in names:  # the direction stays
            torch.testing.assert_close(after[name], old / old.norm(dim=1, keepdim=True))
            torch.testing.assert_close(lengths(after[name]), torch.ones(len(old)))
        else:
            assert after[name] is old
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_scaler_begins_as_its_init_whatever_its_scale() -> None:
    for init, scale in ((1.0, 1.0), (0.5, 0.1), (0.25, 0.25), (0.1, 2.0)):
        scaler = Scaler(3, init, scale)
        torch.testing.assert_close(scaler(torch.ones(2, 3)), torch.full((2, 3), init))
        torch.testing.assert_close(scaler.weight.detach(), torch.full((3,), scale))


def test_scale_alone_sets_how_much_a_step_changes_the_factor() -> None:
    # init 0.5, scale 0.1, x = 2: dy/dw = 2 * 0.5 / 0.1 = 10. Adam's first step moves w by 1e-3, 1 % of 0.1, so that the
    # factor falls by 1 %, to 0.495; with another init and the same scale by 1 %, too.
    for init, slope in ((0.5, 10.0), (0.2, 4.0)):
        scaler = Scaler(1, init, 0.1)
        optimizer = torch.optim.Adam(scaler.parameters(), lr=1e-3)
        scaler(torch.tensor([2.0])).sum().backward()
        assert scaler.weight.grad is not None
        assert scaler.weight.grad.item() == pytest.approx(slope)
        optimizer.step()
        assert scaler(torch.ones(1)).item() == pytest.approx(0.99 * init)


def test_lerp_between_two_points_of_the_sphere_by_hand() -> None:
    # Halfway between (1, 0) and (0, 1) lies (0.5, 0.5); a third of the way (2/3, 1/3), of length sqrt(5) / 3.
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(Lerp(2, 0.5, 0.1)(x, y), torch.full((1, 2), 0.5**0.5))
    torch.testing.assert_close(Lerp(2, 1 / 3, 0.1)(x, y), torch.tensor([[2.0, 1.0]]) / math.sqrt(5))
    # alpha has a value of its own for each feature: (1 - 1, 0 + 0.5)
    lerp = Lerp(2, 1.0, 1.0)
    with torch.no_grad():
        lerp.alpha.weight.copy_(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(lerp(x, y), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
def test_lerp_stays_on_the_sphere(alpha: float) -> None:
    x, y = (l2_normalize(randn(32, 8, seed=s)) for s in range(2))
    out = Lerp(8, alpha, 8**-0.5)(x, y)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(32))
    if alpha in (0.0, 1.0):
        torch.testing.assert_close(out, y if alpha else x)
