"""Search spaces: ranges, choices, what is refused, and the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deeprl
from deeprl.config import build, per_agent_fields
from deeprl.errors import DeeprlError
from deeprl.online.dqn import Config as DqnConfig
from deeprl.online.sac import Config as SacConfig
from deeprl.run.trained import algorithm_module
from deeprl.tuning.published import SPACES, published_space
from deeprl.tuning.spaces import Choice, Range, read_space, require_inside, space_of


def test_a_discount_is_drawn_by_the_logarithm_of_its_complement() -> None:
    discount = Range(("discount",), 0.97, 0.9999, "complement")
    assert discount.inner == pytest.approx((1e-4, 0.03))
    assert discount.value(0.01, steps=1) == pytest.approx(0.99)
    assert discount.drawn(0.99, steps=1) == pytest.approx(0.01)
    assert discount.drawn(0.96, steps=1) is None


def test_shares_of_the_steps_and_whole_numbers() -> None:
    assert Range(("epsilon_steps",), 0.1, 0.5, times_steps=True).value(0.25, steps=1000) == 250.0
    assert Range(("batch_size",), 16.0, 256.0, "log", whole=True).value(31.6, steps=1) == 32
    assert Choice(("hidden",), ([64, 64], [256])).value("[256]", steps=1) == [256]


@given(st.sampled_from(["linear", "log", "complement"]), st.floats(0.001, 0.5), st.floats(0.51, 0.999), st.floats(0, 1))
def test_values_never_leave_their_range(scale: str, low: float, high: float, share: float) -> None:
    one = Range(("tau",), low, high, scale)  # type: ignore[arg-type]
    bottom, top = one.inner
    value = one.value(min(max(bottom + share * (top - bottom), bottom), top), steps=7)
    assert low <= value <= high
    inner = one.drawn(value, steps=7)
    assert inner is not None
    assert bottom <= inner <= top
    assert one.value(inner, steps=7) == pytest.approx(value)


def test_a_file_gives_each_setting_its_number(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        '[lr]\nsettings = ["actor_lr", "critic_lr"]\nlow = 1e-5\nhigh = 1e-3\nscale = "log"\n'
        "[hidden]\nchoices = [[64, 64], [256, 256]]\n[batch_size]\nlow = 16\nhigh = 64\n"
    )
    space = read_space(file, SacConfig)
    found = space.settings({"lr": 1e-4, "hidden": "[64, 64]", "batch_size": 31.6}, steps=100)
    assert found == {"actor_lr": 1e-4, "critic_lr": 1e-4, "hidden": [64, 64], "batch_size": 32}
    assert type(found["batch_size"]) is int
    usual = build(SacConfig, {"hidden": [64, 64], "batch_size": 64})
    assert space.point(usual) == {"lr": 3e-4, "hidden": "[64, 64]", "batch_size": 64.0}
    assert space.point(build(SacConfig, {"hidden": [64, 64], "actor_lr": 1e-4})) is None  # one number cannot be two
    assert space_of(space.plain(), SacConfig, "again").parameters == space.parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a space needs at least one parameter"),
        ("[actor_lrr]\nlow = 1\nhigh = 2", "actor_lrr: unknown setting actor_lrr; did you mean actor_lr"),
        ("[tau]\nlow = 0.1", "tau: low and high: two numbers are needed, not 0.1 and None"),
        ("[tau]\nlow = 0.2\nhigh = 0.1", "tau: low 0.2 is not below high 0.1"),
        ('[tau]\nlow = 0\nhigh = 0.1\nscale = "log"', "tau: low must be above 0"),
        ('[discount]\nlow = 0.9\nhigh = 1\nscale = "complement"', "discount: high must be below 1"),
        ('[tau]\nlow = 0.1\nhigh = 1\nscale = "lg"', "tau: scale: expected linear, log, complement, not 'lg'"),
        ("[tau]\nlow = 0.1\nhigh = 1\nloww = 2", "tau: unknown key loww; did you mean low"),
        ("[hidden]\nchoices = []", r"hidden: choices: a list of values is needed, not \[\]"),
        ("[hidden]\nchoices = [[4], [4]]", "hidden: choices: one of them stands there twice"),
        ("[seeds]\nchoices = [1]", "seeds: seeds cannot be searched"),
        ('[a]\nsettings = ["tau"]\nlow=0.1\nhigh=1\n[tau]\nlow=0.1\nhigh=1', "tau: tau is chosen by a already"),
        ("tau = 3", r"tau: expected a table \[tau\]"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(DeeprlError, match=message) as raised:
        read_space(file, SacConfig)
    assert str(raised.value).startswith(f"{file}: ")


def test_a_space_outside_the_bounds_of_a_setting_names_it() -> None:
    config = build(SacConfig, {"steps": 20_000})
    outside = space_of({"rate": {"settings": ["tau"], "low": 0.1, "high": 1.5}}, SacConfig, "")
    with pytest.raises(DeeprlError, match=r"rate: 1\.5 cannot be tried: tau: must be in 0 \.\. 1, not 1\.5"):
        require_inside(outside, config)
    together = space_of({"learning_starts": {"choices": [100, 20_000]}}, SacConfig, "")
    with pytest.raises(
        DeeprlError, match="learning_starts: 20000 cannot be tried: learning_starts: 20000 random steps"
    ):
        require_inside(together, config)


@pytest.mark.parametrize("algorithm", sorted(deeprl.ALGORITHMS))
def test_published_spaces_lie_within_the_bounds_and_train_as_one_population(algorithm: str) -> None:
    kind = algorithm_module(algorithm).Config
    offline = "dataset" in kind.__dataclass_fields__
    config = build(kind, {"dataset": "a.hdf5"} if offline and algorithm != "wsrl" else {})
    space = published_space(algorithm, kind)
    require_inside(space, config)
    chosen = [name for parameter in space.parameters.values() for name in parameter.settings]
    assert set(chosen) <= set(per_agent_fields(kind))
    assert space.source
    usual = space.point(config)
    if algorithm not in ("bc", "wsrl"):  # whose weight decay is 0, and whose two learning rates differ
        assert usual is not None
        assert space.settings(usual, config.steps) == pytest.approx({name: getattr(config, name) for name in chosen})


def test_every_algorithm_has_a_space() -> None:
    assert set(SPACES) == set(deeprl.ALGORITHMS)
    with pytest.raises(DeeprlError, match="nobody has no search space of its own"):
        published_space("nobody", DqnConfig)
