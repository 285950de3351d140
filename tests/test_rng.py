"""Random numbers: the published vectors, an independent Philox in Python integers, and what a key promises."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprl.core import inductor, rng
from deeprl.core.compiled import Compiled

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, result.
VECTORS = {
    "zeros": ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}
MASK = 0xFFFFFFFF
WORD = st.integers(0, MASK)
SHAPE = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 as the paper writes it, in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def words(values: list[int], lanes: int | None = None) -> list[Tensor]:
    shape = () if lanes is None else (lanes,)
    return [torch.full(shape, v, dtype=torch.int64) for v in values]


def population(size: int) -> Tensor:
    return torch.stack([rng.key(seed * 7919, "update", seed) for seed in range(size)])


def draws(key: Tensor) -> dict[str, Tensor]:
    """One draw of every kind, in odd shapes."""
    return {
        "uniform": rng.uniform(key, (7, 5)),
        "randint": rng.randint(key, (33,), 2**31 - 1),
        "permutation": rng.permutation(key, 33),
        "fold_in": rng.fold_in(key, key[0]),
        "normal": rng.normal(key, (257, 3)),
    }


# --- Philox ---


@pytest.mark.parametrize("name", VECTORS)
def test_reference_philox_gives_published_vector(name: str) -> None:
    counter, key, result = VECTORS[name]
    assert reference(counter, key) == result


@pytest.mark.parametrize("lanes", [None, 1, 17])
@pytest.mark.parametrize("name", VECTORS)
def test_philox_gives_published_vector(name: str, lanes: int | None) -> None:
    counter, key, result = VECTORS[name]
    out = rng.philox(words(counter, lanes), words(key, lanes))
    assert [w.unique().tolist() for w in out] == [[r] for r in result]


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
def test_philox_equals_integer_reference(counter: list[int], key: list[int]) -> None:
    assert [int(w) for w in rng.philox(words(counter), words(key))] == reference(counter, key)


@given(WORD, st.integers(0, 5), WORD, st.integers(1, 40))
def test_bits_are_philox_of_key_and_lane(seed: int, stream: int, counter: int, lanes: int) -> None:
    # counter words (counter, lane, path = 0, 0 for draws), key words (seed, stream); word-major order.
    key = rng.key(seed, rng.STREAMS[stream], counter)
    by_lane = [reference([counter, lane, 0, 0], [seed, stream]) for lane in range(lanes)]
    expected = [by_lane[lane][word] for word in range(4) for lane in range(lanes)]
    assert rng.bits(key, (4 * lanes,)).tolist() == expected


@pytest.fixture
def no_trials() -> None:
    """As in our own graphs: TorchInductor does not try out the processor's instructions, which takes 5 s."""
    inductor._spare_trials()


@pytest.mark.inductor
@pytest.mark.compiled
@pytest.mark.usefixtures("no_trials")
def test_compiled_philox_gives_published_vectors_and_reference_bits() -> None:
    # The two silent faults of compilers need >= 16 lanes and 0-d (loop-invariant) words to show.
    def function(counter: list[Tensor], key: list[Tensor], lanes: list[Tensor]) -> tuple[list[Tensor], ...]:
        mixed = [counter[0], torch.arange(33), counter[2], counter[3]]
        return list(rng.philox(counter, key)), list(rng.philox(lanes, key)), list(rng.philox(mixed, key))

    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    for counter, key, result in VECTORS.values():
        scalars, vectors, mixed = compiled(words(counter), words(key), words(counter, 17))
        assert [int(w) for w in scalars] == result
        assert [w.unique().tolist() for w in vectors] == [[r] for r in result]
        expected = [reference([counter[0], lane, counter[2], counter[3]], key) for lane in range(33)]
        assert torch.stack(mixed, 1).tolist() == expected


@pytest.mark.inductor
@pytest.mark.compiled
@pytest.mark.usefixtures("no_trials")
def test_compiled_population_of_64_draws_what_each_agent_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two graphs: 64 agents under vmap, as a user compiles them; one agent without, as we do, in half of the time.
    monkeypatch.setattr(rng.native, "operator_available", lambda key: False)
    keys = population(64)
    together = torch.compile(torch.vmap(draws), fullgraph=True, dynamic=False)(keys)
    alone = Compiled(draws, {"cpp_wrapper": True})
    eager = torch.vmap(draws)(keys)
    for name, value in together.items():
        if name.startswith("normal"):  # log, sin and cos come from another library than in eager mode
            torch.testing.assert_close(value, eager[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, eager[name]), name
    for i in (0, 1, 31, 63):
        for name, value in alone(keys[i]).items():
            assert torch.equal(value, together[name][i]), (i, name)


def test_population_of_64_draws_what_each_agent_draws_alone() -> None:
    keys = population(64)
    together = torch.vmap(draws)(keys)
    for i in (0, 1, 31, 63):
        for name, value in draws(keys[i]).items():
            assert torch.equal(value, together[name][i]), (i, name)


# --- keys ---


def test_keys_of_other_seed_stream_or_counter_draw_other_numbers() -> None:
    seeds, counters = (0, 1, 2, 2**32 - 1), (0, 1, 1000)
    keys = [rng.key(s, n, c) for s, n, c in itertools.product(seeds, rng.STREAMS, counters)]
    drawn = torch.stack([rng.bits(k, (8,)) for k in keys])
    assert len(drawn.unique(dim=0)) == len(keys) == 4 * 8 * 3
    # and no two keys share a word by accident of lane and counter changing places: 576 words of 32 bits
    assert len(drawn.unique()) == drawn.numel()


def test_streams_give_the_keys_of_each_seed() -> None:
    streams = rng.Streams((3, 8))
    assert torch.equal(streams("eval", 5), torch.stack([rng.key(3, "eval", 5), rng.key(8, "eval", 5)]))
    # The keys of a call are its own: a later call does not change them.
    first = streams("eval", 5)
    streams("eval", 6)
    assert first[:, 2].tolist() == [5, 5]


def test_derived_keys_are_never_drawn_words() -> None:
    # Lane i of a draw and fold_in(key, i) differ in the last counter word only: none of the 500 x 500 pairs is equal.
    key = rng.key(5, "update")
    drawn = rng.bits(key, (2000,)).reshape(4, 500).T
    derived = torch.stack(rng.split(key, 500))
    assert len(torch.cat([drawn, derived]).unique(dim=0)) == 1000


def test_split_is_the_same_before_and_after_draws_and_for_more_keys() -> None:
    key = rng.key(5, "update")
    before = rng.split(key, 2)
    rng.normal(key, (100,))
    for a, b in zip(before, rng.split(key, 5), strict=False):
        assert torch.equal(a, b)


def test_fold_in_order_matters() -> None:
    key = rng.key(5, "update")
    ab, ba = rng.fold_in(rng.fold_in(key, 0), 1), rng.fold_in(rng.fold_in(key, 1), 0)
    assert not torch.equal(ab, ba)


def test_fold_in_of_int_equals_fold_in_of_tensor() -> None:
    key = rng.key(5, "update")
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(rng.fold_in(key, 77), rng.fold_in(key, torch.tensor(77, dtype=dtype)))


@given(WORD, WORD)
def test_derived_key_consists_of_32_bit_words(seed: int, data: int) -> None:
    derived = rng.fold_in(rng.key(seed, "init"), data)
    assert derived.shape == (4,)
    assert int(derived.min()) >= 0
    assert int(derived.max()) <= MASK


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_raises_value_error(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be in"):
        rng.key(seed, "init")


def test_unknown_stream_raises_value_error() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        rng.key(0, "evaluation")


# --- distributions ---


@given(WORD, SHAPE)
def test_draws_have_the_shape_and_depend_on_the_number_of_elements_only(seed: int, shape: tuple[int, ...]) -> None:
    # Draws of another length are other numbers (no prefix property): the words are laid out word by word.
    key = rng.key(seed, "sample")
    for draw in (rng.bits, rng.uniform, rng.normal, lambda k, s: rng.randint(k, s, 10)):
        value = draw(key, shape)
        assert value.shape == shape
        assert torch.equal(value.flatten(), draw(key, (math.prod(shape),)))


def test_same_key_draws_the_same_numbers_again() -> None:
    first, again = draws(rng.key(9, "eval", 3)), draws(rng.key(9, "eval", 3))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_uniform_has_range_and_moments_of_the_unit_interval() -> None:
    x = rng.uniform(rng.key(0, "explore"), (200_000,), dtype=torch.float64)
    assert float(x.min()) >= 0.0
    assert float(x.max()) < 1.0
    # Standard error of the mean sqrt(1/12/200000) = 6.5e-4, of the variance sqrt(1/180/200000) = 1.7e-4; 5 of them.
    assert abs(float(x.mean()) - 0.5) < 3.3e-3
    assert abs(float(x.var()) - 1 / 12) < 8.5e-4
    assert scipy.stats.kstest(x.numpy(), "uniform").pvalue > 1e-3


def test_uniform_maps_to_its_bounds() -> None:
    key = rng.key(0, "explore")
    unit, wide = rng.uniform(key, (1000,)), rng.uniform(key, (1000,), -1.0, 1.0)
    assert torch.equal(wide, unit * 2.0 - 1.0)


def extreme_words(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "_words", lambda key, lanes: torch.stack(words([value] * 4, lanes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_of_largest_word_stays_below_its_bound(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 - 2^-24 is a float32; doubled and shifted it is 1 - 2^-23, exactly.
    extreme_words(MASK, monkeypatch)
    key = rng.key(0, "explore")
    assert rng.uniform(key, (4,), dtype=dtype).tolist() == [1.0 - 2.0**-24] * 4
    assert rng.uniform(key, (4,), -1.0, 1.0, dtype=dtype).tolist() == [1.0 - 2.0**-23] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_of_extreme_words_is_finite_and_within_5_77(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rng.key(0, "explore")
    # Word 0: u = 2^-24, angle 0: radius sqrt(48 log 2) = 5.76805, times cos 0 = 1 and sin 0 = 0.
    extreme_words(0, monkeypatch)
    z = rng.normal(key, (4,), dtype)
    assert z.tolist() == pytest.approx([5.76805, 0.0, 5.76805, 0.0], abs=1e-4)
    assert z.dtype == dtype
    # Largest word: u = 1, radius 0.
    extreme_words(MASK, monkeypatch)
    assert rng.normal(key, (4,), dtype).abs().tolist() == [0.0] * 4


def test_normal_has_moments_and_tails_of_the_standard_normal() -> None:
    n = 400_000
    z = rng.normal(rng.key(1, "explore"), (n,), torch.float64)
    # Standard errors of mean, variance, skewness, kurtosis: sqrt(1, 2, 6, 24 / n); five of them.
    assert abs(float(z.mean())) < 5 * math.sqrt(1 / n)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(scipy.stats.skew(z.numpy()))) < 5 * math.sqrt(6 / n)
    assert abs(float(scipy.stats.kurtosis(z.numpy()))) < 5 * math.sqrt(24 / n)
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    for bound in (2.0, 3.0, 4.0):
        expected = 2 * n * scipy.stats.norm.sf(bound)
        assert abs(int((z.abs() > bound).sum()) - expected) < 5 * math.sqrt(expected), bound
    assert float(z.abs().max()) <= 5.77


def test_normals_of_one_draw_are_uncorrelated_at_every_distance_within_a_lane() -> None:
    n = 100_000
    z = rng.normal(rng.key(2, "explore"), (4 * n,), torch.float64).reshape(4, n)
    # Correlations between the four normals of a lane; standard error 1 / sqrt(n) = 0.0032; five of them.
    off_diagonal = torch.corrcoef(z) - torch.eye(4)
    assert float(off_diagonal.abs().max()) < 5 / math.sqrt(n)


def test_float64_normals_are_the_float32_normals_with_more_digits() -> None:
    key = rng.key(3, "explore")
    single, double = rng.normal(key, (1000,)), rng.normal(key, (1000,), torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=5e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000, 10**6, 2**30, 2**31 - 1])
def test_randint_equals_big_integer_arithmetic(n: int) -> None:
    key = rng.key(4, "sample", 9)
    w0, w1, w2, w3 = (w.tolist() for w in rng._words(key, 50))
    pairs = list(zip(w0 + w2, w1 + w3, strict=True))
    expected = [(((high << 32) | low) * n) >> 64 for high, low in pairs]
    assert rng.randint(key, (100,), n).tolist() == expected
    assert rng.randint(key, (100,), torch.tensor(n)).tolist() == expected
    assert min(expected) >= 0
    assert max(expected) < n


def test_randint_of_largest_word_stays_below_n(monkeypatch: pytest.MonkeyPatch) -> None:
    # (2^64 - 1) * n >> 64 = n - 1
    extreme_words(MASK, monkeypatch)
    for n in (1, 3, 2**31 - 1):
        assert rng.randint(rng.key(0, "sample"), (2,), n).tolist() == [n - 1] * 2


@pytest.mark.parametrize("n", [6, 100, 1000])
def test_randint_passes_chi_square(n: int) -> None:
    counts = torch.bincount(rng.randint(rng.key(5, "sample"), (100_000,), n), minlength=n)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


@given(WORD, st.integers(0, 60))
def test_permutation_holds_every_number_once(seed: int, n: int) -> None:
    assert sorted(rng.permutation(rng.key(seed, "sample"), n).tolist()) == list(range(n))


def test_permutations_of_three_are_equally_likely() -> None:
    keys = torch.stack([rng.key(seed, "sample") for seed in range(3000)])
    orders = torch.vmap(lambda key: rng.permutation(key, 3))(keys) @ torch.tensor([9, 3, 1])
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
