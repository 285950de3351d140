"""Decision periods: agents that look less often, the frequency-averaged score, actions that are held."""

from __future__ import annotations

import csv
import functools
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from offline_helpers import write_made
from torch import Tensor

import deeprl
from deeprl.commands import evaluate
from deeprl.commands.main import main
from deeprl.core import rng
from deeprl.core.carry import fresh
from deeprl.core.spec import EnvSpec
from deeprl.envs import repeat
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.spaces import env_spec
from deeprl.errors import DeeprlError
from deeprl.reporting.frequency import PERIODS, RANGES, ReturnRange, fas, return_range
from deeprl.reporting.report import write_report
from deeprl.run.evaluate import Evaluator, GreedyPolicy
from deeprl.run.periods import Period, at_period, without_repeats
from deeprl.run.trained import Population

SPEC = EnvSpec((1,), 1, (-1.0,), (1.0,))


# --- the score ---


def test_score_of_a_constant_return_is_29_of_30_of_it() -> None:
    assert PERIODS == (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
    assert fas(dict.fromkeys(PERIODS, 50.0), ReturnRange(100.0)) == pytest.approx(29 / 30 / 2)
    assert fas(dict.fromkeys(PERIODS, -200.0), RANGES["Pendulum"]) == pytest.approx(29 / 30)


def test_score_is_an_area_by_trapezia() -> None:
    returns = dict.fromkeys(PERIODS, 0.0) | {1: 10.0, 2: 4.0, 30: 6.0}
    area = 1 * (10 + 4) / 2 + 2 * (4 + 0) / 2 + 2 * (0 + 6) / 2
    assert fas(returns, ReturnRange(5.0)) == pytest.approx(area / (5 * 30))
    shifted = fas(returns, ReturnRange(5.0, 2.0))
    assert shifted == pytest.approx((area + 2 * 29) / (5 * 30))
    with pytest.raises(DeeprlError, match="FAS: no return at decision period 2, 30"):
        fas({p: 0.0 for p in PERIODS if p not in (2, 30)}, ReturnRange(1.0))


def test_published_ranges_are_by_environment_and_never_assumed() -> None:
    assert return_range("Pendulum-v1") == (1350.0, 1550.0)
    assert return_range("Reacher-v5") == (60.0, 65.0)
    assert return_range("Walker2d-v5") == (5000.0, 0.0)
    with pytest.raises(
        DeeprlError, match=r"MountainCarContinuous-v0 has no published range .* --return-range BEST OFF"
    ):
        return_range("MountainCarContinuous-v0")


# --- agents that look less often ---


class Ramp(gym.Env):
    """Shows the time; the reward is the action; ends after 9 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.full(1, self.t, np.float32), float(action[0]), False, self.t == 9, {}


def module_of(**functions: Any) -> Any:
    return types.SimpleNamespace(**functions)


def act(net: Any, config: Any, state: Any, carry: Any, obs: Tensor, is_first: Any, key: Any, *, explore: bool) -> Any:
    assert not explore
    return obs / 10.0, carry


def population_of(module: Any, spec: EnvSpec = SPEC) -> Population:
    return Population(module, None, None, {"w": torch.zeros(2)}, spec, [], 0, {})


def played(population: Population, period: Period, count: int = 1) -> list[float]:
    decide, begin = at_period(population, period)
    policy = GreedyPolicy(decide, population.state, begin=begin)
    return [e.ret for e in Evaluator(Ramp, [0, 1], count)(policy)]


@pytest.mark.parametrize(
    ("period", "expected"),
    [(1, sum(range(9))), (2, 2 * (0 + 2 + 4 + 6) + 8), (4, 4 * (0 + 4) + 8), (9, 0), (30, 0)],
)
def test_an_action_is_held_until_the_next_decision(period: int, expected: float) -> None:
    assert played(population_of(module_of(act=act)), Period(period, period)) == pytest.approx([expected / 10] * 2)


def test_periods_that_are_drawn_lie_in_their_range_and_differ_from_episode_to_episode() -> None:
    population, lengths = population_of(module_of(act=act)), set[int]()
    decide, begin = at_period(population, Period(2, 4))
    carry, first = fresh(begin, 5), torch.ones(5, dtype=torch.bool)
    before, since = [None] * 5, [0] * 5
    for t in range(60):
        action, carry = decide({}, carry, torch.full((5, 1), t / 10), first, rng.key(0, "eval", t))
        first = torch.zeros(5, dtype=torch.bool)
        for e in range(5):
            now = round(float(action[e, 0]) * 100)
            if before[e] is not None and now != before[e]:
                lengths.add(since[e])
                since[e] = 0
            before[e], since[e] = now, since[e] + 1
    assert lengths == {2, 3, 4}
    assert len(set(played(population, Period(1, 8), 12))) > 6


def test_a_memory_sees_what_its_agent_looks_at_and_nothing_else() -> None:
    def remembering(net: Any, config: Any, state: Any, carry: Any, obs: Tensor, *_: Any, explore: bool) -> Any:
        (total,) = carry
        return (total + obs) / 100.0, (total + obs,)

    module = module_of(act=remembering, init_carry=lambda net, config, n: (torch.zeros(n, 1),))
    # Period 3: looks at 0, 3, 6; sums 0, 3, 9; three steps each.
    assert played(population_of(module), Period(3, 3)) == pytest.approx([3 * (0 + 3 + 9) / 100] * 2)


def test_a_plan_is_carried_out_as_far_as_the_period_goes() -> None:
    def plan(net: Any, config: Any, state: Any, obs: Tensor, previous: Tensor, length: int) -> Tensor:
        return obs.unsqueeze(1) / 10.0 + torch.arange(length).unsqueeze(-1) / 100.0 + previous.unsqueeze(1)

    # Looks at 0, 4, 8 after 0.00, 0.03, 0.46: 0 1 2 3 | 43 44 45 46 | 126 hundredths, of which no more than 100 act.
    found = played(population_of(module_of(plan=plan, act=act)), Period(4, 4))
    assert found == pytest.approx([(6 + 178 + 100) / 100] * 2)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(DeeprlError, match="decision periods: for agents with continuous actions"):
        at_period(population_of(module_of(act=act), EnvSpec((1,), 0, (), (), actions=3)), Period(1, 1))


# --- actions that are held in training ---


def test_repeated_actions_sum_rewards_and_stop_with_the_episode() -> None:
    env = repeat.Repeat4(Ramp())
    env.reset(seed=0)
    steps = [env.step(np.full(1, 0.5)) for _ in range(3)]
    assert [(float(obs[0]), reward, truncated) for obs, reward, _, truncated, _ in steps] == [
        (4.0, 2.0, False), (8.0, 2.0, False), (9.0, 0.5, True)
    ]  # fmt: skip
    assert env_spec(env).action_repeat == 4
    assert repeat.Repeat4 is repeat.Repeat4
    with pytest.raises(AttributeError, match="no attribute 'Repeat0'; Repeat4 holds an action for 4 steps"):
        repeat.Repeat0  # noqa: B018
    made = make_env("Pendulum-v1", {}, ("deeprl.envs.repeat:Repeat3",))
    assert env_spec(made).action_repeat == 3
    factory = EnvFactory("Pendulum-v1", {"g": 9.0}, ("deeprl.envs.repeat:Repeat3", "gymnasium.wrappers:ClipAction"))
    assert without_repeats(factory) == EnvFactory("Pendulum-v1", {"g": 9.0}, ("gymnasium.wrappers:ClipAction",))


def test_agents_that_hold_actions_are_resumed_exactly_and_evaluated_at_each_step(tmp_path: Path, capsys: Any) -> None:
    settings: dict[str, Any] = {"env": "Pendulum-v1", "wrappers": ("deeprl.envs.repeat:Repeat8",), "steps": 40}
    settings |= {"env_kwargs": {"max_episode_steps": 36}}
    settings |= {"learning_starts": 30, "batch_size": 4, "hidden": (8,), "eval_episodes": 1, "eval_every": 0}
    settings |= {"seeds": (0, 1), "compile": "off", "threads": 1, "tensorboard": False}
    whole = deeprl.train("sac", out=str(tmp_path / "a"), **settings).directory
    deeprl.train("sac", out=str(tmp_path / "b"), callback=lambda run: run.step == 33, **settings)
    deeprl.train("sac", out=str(tmp_path / "b"), **settings)
    states = [deeprl.api.load_population(d).state for d in (whole, tmp_path / "b")]
    assert all(torch.equal(states[0].actor[k], states[1].actor[k]) for k in states[0].actor)
    table, png = tmp_path / "t.csv", tmp_path / "p.png"
    words = ["evaluate", str(whole), "--decision-periods", "1,8,random", "--episodes", "2"]
    capsys.readouterr()
    assert main([*words, "--csv", str(table), "--png", str(png)]) == 0
    assert "FAS" not in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["period"], r["member"], r["episode"]) for r in rows] == [
        (p, m, e) for p in ("1", "8", "1 to 16") for m in "01" for e in "01"
    ]
    assert {r["length"] for r in rows} == {"36"}  # of Pendulum itself
    assert png.read_bytes()[:4] == b"\x89PNG"


# --- the command ---


def test_score_is_printed_with_the_returns(tmp_path: Path, capsys: Any) -> None:
    settings: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 8}, "steps": 12}
    settings |= {"learning_starts": 10, "batch_size": 4, "eval_episodes": 1, "compile": "off", "seeds": (0, 1)}
    settings |= {"hidden": (8,), "units": 8, "critic_hidden": (8,), "model_hidden": (8,), "sequence_length": 2}
    run = deeprl.train("srl", out=str(tmp_path / "a"), **settings).directory
    capsys.readouterr()
    assert main(["evaluate", str(run), "--decision-periods", "fas", "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    found = evaluate.assess_periods(run, [Period(p, p) for p in PERIODS], 2)
    scores = [fas({p.longest: float(r[i].mean()) for p, r in found.items()}, RANGES["Pendulum"]) for i in (0, 1)]
    assert f"FAS {np.mean(scores):.3f} (standard deviation {np.std(scores):.3f}):" in text
    assert (run / "decision_periods.png").exists()
    page = write_report(run).read_text()
    numbers = "2", f"{np.mean(scores):.3g}", f"{np.std(scores, ddof=1):.3g}"
    assert "<td>srl</td>" + "".join(f'<td class="n">{n}</td>' for n in numbers) in page
    assert (run / "report" / "curve_Pendulum-v1_by_decision_period.png").exists()
    words = ["--decision-periods", "fas", "--episodes", "2", "--return-range", "1350", "0"]
    assert main(["evaluate", str(run), *words]) == 0
    shifted = capsys.readouterr().out.splitlines()[-2]
    assert shifted.startswith(f"FAS {np.mean(scores) - 29 / 30 * 1550 / 1350:.3f}")
    assert evaluate.parse_periods("fas,random,3,1") == [*(Period(p, p) for p in PERIODS), Period(1, 16), Period(3, 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decision-periods", "0"], "'0' is no number of steps, nor fas or random"),
        (["--decision-periods", "1,x"], "'x' is no number of steps"),
        (["--decision-periods", ""], "'' is no number of steps"),
        (["--return-range", "1", "2"], "--return-range: needs --decision-periods"),
        (["--png", "a.png"], "--png: needs --decision-periods"),
        (["--decision-periods", "1", "--episodes", "0"], "--episodes: must be positive, not 0"),
        (["--decision-periods", "fas", "--return-range", "0", "0"], "--return-range: BEST must be positive"),
    ],
)
def test_wrong_options(words: list[str], message: str, capsys: Any) -> None:
    assert main(["evaluate", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_what_was_evaluated_is_kept_with_its_step_and_nothing_else_is_overwritten(tmp_path: Path, capsys: Any) -> None:
    settings: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 8}, "steps": 24}
    settings |= {"learning_starts": 10, "batch_size": 4, "eval_episodes": 1, "compile": "off", "hidden": (8,)}
    settings |= {"snapshot_every": 16, "out": str(tmp_path / "a"), "eval_every": 12}
    run = deeprl.train("sac", callback=lambda run: run.step == 20, **settings).directory
    assess = functools.partial(evaluate.assess_periods, run, episodes=1)
    assess([Period(1, 1), Period(2, 2)])
    assess([Period(2, 2), Period(4, 4)])

    def periods() -> list[tuple[str, str]]:
        with (run / "decision_periods.csv").open(newline="") as file:
            return [(row["step"], row["period"]) for row in csv.DictReader(file)]

    assert periods() == [("20", "1"), ("20", "2"), ("20", "4")]
    picture = (run / "decision_periods.png").read_bytes()
    assess([Period(8, 8)], step=16)
    assert periods() == [("20", "1"), ("20", "2"), ("20", "4")]
    assert (run / "decision_periods_step_16.png").exists()
    assert (run / "decision_periods.png").read_bytes() == picture
    deeprl.train("sac", **settings)
    page = write_report(run).read_text()
    assert "evaluated at decision periods before its last step" in page
    assert "<h2>Decision periods</h2>" not in page
    assess([Period(1, 1)])
    assert periods() == [("24", "1")]
    assert "<h2>Decision periods</h2>" in write_report(run).read_text()
    before = (run / "config.json").read_bytes()
    for png, told in (
        (run / "config.json", "pictures are .png"),
        (run / "checkpoints" / "a.png", "belongs to the records"),
    ):
        assert main(["evaluate", str(run), "--decision-periods", "1", "--episodes", "1", "--png", str(png)]) == 2
        assert told in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before


def test_agents_of_different_datasets_are_not_mixed(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        data = write_made(tmp_path / f"{name}.npz", seed=seed)
        settings = {"hidden": (8,), "steps": 5, "batch_size": 4, "eval_episodes": 1, "compile": "off", "threads": 1}
        out = tmp_path / "runs" / name
        deeprl.train("bc", dataset=data, env="offline_helpers:MadeLinear-v0", out=str(out), **settings)
        evaluate.assess_periods(out, [Period(1, 1)], 1)
    page = write_report(tmp_path / "runs").read_text().partition("<h2>Decision periods</h2>")[2]
    assert [f"<td>bc, {name}</td>" in page for name in ("a", "b")] == [True, True]
