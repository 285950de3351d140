"""Distributions over bins: hand-computed targets, and what must hold for every target."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprl.nets import categorical

ATOMS = categorical.atoms(-1.0, 1.0, 3)  # -1, 0, 1
EDGES = categorical.bin_edges(-2.0, 2.0, 4)  # bins [-2, -1], [-1, 0], [0, 1], [1, 2]

value_lists = st.lists(st.floats(-12.0, 12.0, width=32), min_size=1, max_size=5)
supports = st.tuples(st.floats(-10.0, 0.0), st.floats(0.5, 10.0), st.integers(2, 60))


def test_atoms_reach_both_ends_and_bins_fill_the_range() -> None:
    assert ATOMS.tolist() == [-1.0, 0.0, 1.0]
    assert EDGES.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert categorical.bin_centres(EDGES).tolist() == [-1.5, -0.5, 0.5, 1.5]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, [0.0, 0.75, 0.25]),
        (-0.5, [0.5, 0.5, 0.0]),
        (0.0, [0.0, 1.0, 0.0]),  # on an atom: all mass there, none lost
        (1.0, [0.0, 0.0, 1.0]),
        (7.0, [0.0, 0.0, 1.0]),  # beyond the ends: clipped
        (-7.0, [1.0, 0.0, 0.0]),
    ],
)
def test_two_hot_by_hand(value: float, expected: list[float]) -> None:
    torch.testing.assert_close(categorical.two_hot(torch.tensor([value]), ATOMS), torch.tensor([expected]))


def test_projection_by_hand() -> None:
    # reward 0.5, discount 0.5: atoms -1, 0, 1 move to 0, 0.5, 1; 0.5 is shared between the atoms 0 and 1.
    probs = torch.tensor([[0.2, 0.4, 0.4]])
    moved = 0.5 + 0.5 * ATOMS[None]
    torch.testing.assert_close(categorical.project(probs, moved, ATOMS), torch.tensor([[0.0, 0.4, 0.6]]))


def test_projection_of_a_termination_puts_all_mass_at_the_reward() -> None:
    probs = torch.tensor([[0.2, 0.4, 0.4], [0.2, 0.4, 0.4]])
    moved = torch.tensor([[0.25], [9.0]]).expand(2, 3)  # discount 0: every atom moves to the reward
    expected = torch.tensor([[0.0, 0.75, 0.25], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(categorical.project(probs, moved, ATOMS), expected)


def phi(z: float) -> float:
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


def test_hl_gauss_by_hand() -> None:
    # sigma = 0.75 * 1; value 0.5: bin [0, 1] gets Phi(0.5 / 0.75) - Phi(-0.5 / 0.75), over the mass inside [-2, 2].
    value, sigma = 0.5, 0.75
    cdf = [phi((e - value) / sigma) for e in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    expected = [(b - a) / (cdf[-1] - cdf[0]) for a, b in itertools.pairwise(cdf)]
    assert expected[2] == pytest.approx(0.5068, abs=1e-4)
    torch.testing.assert_close(categorical.hl_gauss(torch.tensor(value), EDGES), torch.tensor(expected))


def test_hl_gauss_is_finite_far_beyond_the_ends() -> None:
    probs = categorical.hl_gauss(torch.tensor([-1e6, 1e6]), EDGES)
    assert probs.isfinite().all()
    torch.testing.assert_close(probs[0], probs[1].flip(0))
    assert probs[1].argmax() == 3


def test_hl_gauss_spreads_over_about_six_bins() -> None:
    probs = categorical.hl_gauss(torch.tensor(0.0), categorical.bin_edges(-10.0, 10.0, 51))
    assert int((probs > 1e-3).sum()) in (5, 6, 7)


def test_cross_entropy_and_entropy_by_hand() -> None:
    target = torch.tensor([0.25, 0.75, 0.0])
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])) + 3.0  # a shift changes nothing
    expected = -(0.25 * math.log(0.5) + 0.75 * math.log(0.25))
    assert float(categorical.cross_entropy(logits, target)) == pytest.approx(expected)
    assert float(categorical.entropy(target)) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_mean_by_hand() -> None:
    logits = torch.log(torch.tensor([0.2, 0.3, 0.5]))
    assert float(categorical.mean(logits, ATOMS)) == pytest.approx(0.3)


def sums_to_one(probs: Tensor) -> bool:
    return bool((probs >= 0).all()) and torch.allclose(probs.sum(-1), torch.ones(probs.shape[:-1]), atol=1e-5)


@given(values=value_lists, support=supports)
def test_targets_are_distributions_and_keep_the_mean(values: list[float], support: tuple[float, float, int]) -> None:
    low, high, bins = support
    value, centres = torch.tensor(values), categorical.atoms(low, high, bins)
    probs = categorical.two_hot(value, centres)
    assert sums_to_one(probs)
    assert int((probs > 1e-6).sum(-1).max()) <= 2
    torch.testing.assert_close((probs * centres).sum(-1), value.clamp(low, high), rtol=1e-4, atol=2e-4)


@given(values=value_lists, support=supports)
def test_hl_gauss_is_a_distribution_and_keeps_the_mean_inside(
    values: list[float], support: tuple[float, float, int]
) -> None:
    low, high, bins = support
    value, edges = torch.tensor(values), categorical.bin_edges(low, high, bins)
    probs = categorical.hl_gauss(value, edges)
    assert sums_to_one(probs)
    width = (high - low) / bins
    inside = (value > low + 3 * width) & (value < high - 3 * width)  # four standard deviations from either end
    means = (probs * categorical.bin_centres(edges)).sum(-1)
    torch.testing.assert_close(means[inside], value[inside], rtol=0, atol=0.02 * width + 1e-4)
    assert bool((means[:, None] >= edges[0]).all() and (means <= edges[-1]).all())


@given(
    reward=st.floats(-3.0, 3.0, width=32), discount=st.floats(0.0, 1.0, width=32), support=supports,
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_projection_is_a_distribution_and_keeps_the_mean(
    reward: float, discount: float, support: tuple[float, float, int], seed: int
) -> None:
    low, high, bins = support
    centres = categorical.atoms(low, high, bins)
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(4, bins, generator=generator), -1)
    moved = (reward + discount * centres).expand(4, bins)
    projected = categorical.project(probs, moved, centres)
    assert sums_to_one(projected)
    expected = (probs * moved.clamp(low, high)).sum(-1)
    torch.testing.assert_close((projected * centres).sum(-1), expected, rtol=1e-4, atol=5e-4)


def test_gradient_of_the_cross_entropy_is_softmax_minus_target() -> None:
    logits = torch.tensor([0.3, -0.2, 0.9])
    target = torch.tensor([0.1, 0.6, 0.3])
    gradient = torch.func.grad(lambda x: categorical.cross_entropy(x, target))(logits)
    torch.testing.assert_close(gradient, torch.softmax(logits, -1) - target)
