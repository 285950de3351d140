"""Corruption of datasets: the four elements by hand, what stays clean, the adversary, files, the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import assert_equal
from offline_helpers import made_dataset, write_made
from torch import Tensor

import deeprl
from deeprl.commands.main import main
from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.data.datasets import Dataset, load_dataset
from deeprl.errors import DeeprlError
from deeprl.make_data import adversary, corruption
from deeprl.make_data.corruption import ELEMENTS, corrupt, read_corruption, write_hdf5
from deeprl.run import checkpoint, snapshots

CLEAN = made_dataset(2000, 20)
COLUMNS = {"observation": "obs", "action": "action", "reward": "reward", "dynamics": "next_obs"}
NOISY = ("observation", "action", "dynamics")


class Quadratic:
    """Two critics whose mean is |s - 1|^2 + |a + 0.5|^2, with its minimum at s = 1, a = -0.5; pi(s) = 0.1 s_0, s_1."""

    def __repr__(self) -> str:  # in the names of tests, the same in every process
        return "Quadratic()"

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        value = (obs - 1.0).square().sum(-1) + (action + 0.5).square().sum(-1)
        return torch.stack([0.5 * value, 1.5 * value])

    def policy(self, obs: Tensor) -> Tensor:
        return 0.1 * obs[:, :2]


def column(dataset: Dataset, element: str) -> Tensor:
    return getattr(dataset.data, COLUMNS[element])


def changed(made: corruption.Corrupted, name: str, clean: Dataset = CLEAN) -> Tensor:
    """The rows in which an array is another one than it was."""
    return (getattr(made.dataset.data, name) != getattr(clean.data, name)).reshape(len(clean), -1).any(1)


# --- rows and noise ---


@pytest.mark.parametrize("element", ELEMENTS)
def test_only_the_named_element_changes_and_only_in_its_rows(element: str) -> None:
    made = corrupt(CLEAN, "random", element, rate=0.3, seed=1)
    rows = made.rows[element]
    assert list(made.rows) == [element]
    for name in CLEAN.data._fields:
        assert torch.equal(changed(made, name), rows if name == COLUMNS[element] else torch.zeros_like(rows)), name
    # 600 of 2000 rows are expected, with a standard deviation of sqrt(2000 * 0.3 * 0.7) = 20.5.
    assert abs(int(rows.sum()) - 600) < 4 * 20.5
    assert torch.equal(made.dataset.ends, CLEAN.ends)
    assert torch.equal(made.dataset.returns, CLEAN.returns) == (element != "reward")


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("element", NOISY)
def test_random_noise_is_uniform_in_units_of_the_clean_deviation(element: str, scale: float) -> None:
    made = corrupt(CLEAN, "random", element, rate=0.5, scale=scale)
    values, rows = column(CLEAN, element), made.rows[element]
    std = torch.tensor(values.numpy().astype(np.float64).std(0), dtype=torch.float32)  # of the population
    torch.testing.assert_close(made.std[element], std)
    noise = (column(made.dataset, element) - values)[rows] / std
    assert float(noise.abs().max()) <= scale * (1 + 1e-5)
    # 1000 rows of at least two numbers: mean 0 and variance scale^2 / 3, known to a few per cent.
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.06 * scale)
    assert float(noise.var()) == pytest.approx(scale**2 / 3, rel=0.1)


def test_actions_are_not_clipped() -> None:
    made = corrupt(CLEAN, "random", "action", rate=1.0)
    # Uniform actions have std 0.577: those beyond 1 - 0.577 may leave [-1, 1].
    assert 1.2 < float(made.dataset.data.action.abs().max()) <= 1.0 + 0.6


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_rewards_by_hand(scale: float) -> None:
    made = corrupt(CLEAN, "random", "reward", rate=0.4, scale=scale, seed=3)
    rows, reward = made.rows["reward"], made.dataset.data.reward
    new = reward[rows]  # replaced, whatever they were: U(-eps, eps) * 30
    assert 29.0 * scale < float(new.abs().max()) <= 30.0 * scale
    assert float(new.std()) == pytest.approx(30.0 * scale / math.sqrt(3.0), rel=0.1)
    old = CLEAN.data.reward[rows]
    assert abs(float(torch.corrcoef(torch.stack([old, new]))[0, 1])) < 0.15
    flipped = corrupt(CLEAN, "adversarial", "reward", rate=0.4, scale=scale, seed=3)
    assert torch.equal(flipped.rows["reward"], rows)
    expected = torch.where(rows, -scale * CLEAN.data.reward, CLEAN.data.reward)
    assert torch.equal(flipped.dataset.data.reward, expected)
    torch.testing.assert_close(flipped.dataset.returns, expected.to(torch.float64).reshape(-1, 20).sum(1))
    assert "adversary" not in flipped.protocol


def test_numbers_are_those_of_the_named_stream() -> None:
    made = corrupt(CLEAN, "random", ("observation", "reward"), rate=0.3, seed=9)
    for number, element in ((0, "observation"), (2, "reward")):
        row_key, noise_key = (rng.fold_in(k, 0) for k in rng.split(rng.key(9, "corrupt", number), 2))
        values = column(CLEAN, element)
        rows = rng.uniform(row_key, (2000,)) < 0.3
        assert torch.equal(made.rows[element], rows)
        noise = rng.uniform(noise_key, values.shape, -1.0, 1.0)[rows]
        expected = 30.0 * noise if element == "reward" else values[rows] + noise * made.std[element]
        assert torch.equal(column(made.dataset, element)[rows], expected)


def test_draws_depend_on_seed_and_element_alone() -> None:
    alone = {e: corrupt(CLEAN, "random", e, seed=4) for e in ELEMENTS}
    together = corrupt(CLEAN, "random", tuple(reversed(ELEMENTS)), seed=4)
    assert together.protocol["elements"] == list(ELEMENTS)
    for element, made in alone.items():
        assert torch.equal(together.rows[element], made.rows[element])
        assert torch.equal(column(together.dataset, element), column(made.dataset, element))
    masks = [*together.rows.values(), corrupt(CLEAN, "random", seed=5).rows["observation"]]
    for i, a in enumerate(masks):  # 0.3 of the rows of one are in another one
        for b in masks[:i]:
            assert float((a & b).sum() / a.sum()) == pytest.approx(0.3, abs=0.08)
    fewer = corrupt(CLEAN, "random", "action", rate=0.1, seed=4).rows["action"]
    assert bool((fewer <= together.rows["action"]).all())
    assert_equal(corrupt(CLEAN, "random", "action", seed=4).dataset.data, alone["action"].dataset.data)


@pytest.mark.parametrize(("rate", "rows"), [(0.0, 0), (1.0, 2000)])
def test_extreme_rates(rate: float, rows: int) -> None:
    made = corrupt(CLEAN, "random", ELEMENTS, rate=rate)
    assert [int(mask.sum()) for mask in made.rows.values()] == [rows] * 4
    if rate == 0.0:
        assert_equal(made.dataset.data, CLEAN.data)
        assert torch.equal(made.dataset.returns, CLEAN.returns)


def test_pieces_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "_PIECE", 600)
    made = corrupt(CLEAN, "random", "dynamics", seed=2)
    row_keys, noise_keys = ([rng.fold_in(k, n) for n in range(4)] for k in rng.split(rng.key(2, "corrupt", 3), 2))
    sizes = (600, 600, 600, 200)
    rows = torch.cat([rng.uniform(k, (n,)) for k, n in zip(row_keys, sizes, strict=True)]) < 0.3
    noise = torch.cat([rng.uniform(k, (n, 3), -1.0, 1.0) for k, n in zip(noise_keys, sizes, strict=True)])
    expected = torch.where(rows[:, None], CLEAN.data.next_obs + noise * made.std["dynamics"], CLEAN.data.next_obs)
    torch.testing.assert_close(made.dataset.data.next_obs, expected)


def test_the_clean_dataset_is_left_as_it_was() -> None:
    before = CLEAN.digest()
    made = corrupt(CLEAN, "random", ELEMENTS)
    assert CLEAN.digest() == before == made.protocol["digest"] != made.dataset.digest()
    assert "corruption" not in CLEAN.about
    assert made.dataset.about["corruption"] == made.protocol == json.loads(json.dumps(made.protocol))


# --- along trajectories ---


@pytest.mark.parametrize("attack", ["random", "adversarial"])
def test_trajectory_mode_corrupts_a_state_in_both_of_its_rows(attack: str) -> None:
    opponent = Quadratic() if attack == "adversarial" else None
    clean = made_dataset(200, 20)
    made, alone = (
        corrupt(clean, attack, "observation", mode=mode, seed=6, adversary=opponent)
        for mode in ("trajectory", "transition")
    )
    data, rows = made.dataset.data, made.rows["observation"]
    assert torch.equal(rows, alone.rows["observation"])
    assert torch.equal(data.obs, alone.dataset.data.obs)
    expected = clean.data.next_obs.clone()
    for t in range(1, 200):
        if rows[t] and t % 20 != 0:  # the first row of an episode has no row before it
            expected[t - 1] = data.obs[t]
    assert torch.equal(data.next_obs, expected)
    inner = torch.arange(199) % 20 != 19
    assert torch.equal(data.next_obs[:-1][inner], data.obs[1:][inner])  # still one trajectory
    assert torch.equal(alone.dataset.data.next_obs, clean.data.next_obs)


def test_trajectory_mode_needs_trajectories() -> None:
    clean = made_dataset(200, 20)
    mixed = dataclasses.replace(clean, data=clean.data._replace(obs=clean.data.obs + 1.0))
    with pytest.raises(DeeprlError, match="no row begins where the one before ends"):
        corrupt(mixed, mode="trajectory")


# --- the adversary ---


def test_adversary_comes_to_the_minimum_within_its_reach() -> None:
    # One number, (x + d)^2. It starts at d0 and moves by 0.01 a step, a hundred times, within [-1, 1]:
    # x = 0.3 from 0.5: to -0.3, 0.8 away; from 0.9: 1.2 away, it stops at -0.1; x = 3 from -0.5: to the bound, -1.
    x, start = torch.tensor([[0.3], [0.3], [3.0], [-3.0]]), torch.tensor([[0.5], [0.9], [-0.5], [0.2]])
    found = corruption.least(lambda d: (x + d).square().sum(-1)[None], start, 1.0)
    assert found.flatten().tolist() == pytest.approx([-0.3, -0.1, -1.0, 1.0], abs=0.011)
    # Half the range: half the steps.
    found = corruption.least(lambda d: (x + d).square().sum(-1)[None], 0.5 * start, 0.5)
    assert found.flatten().tolist() == pytest.approx([-0.25, -0.05, -0.5, 0.5], abs=0.006)


def test_adversary_where_nothing_changes_stays_where_it_starts() -> None:
    start = torch.tensor([[0.5, -0.2]])
    assert torch.equal(corruption.least(lambda d: 0.0 * d.sum(-1)[None], start, 1.0), start)


def test_steps_are_those_of_a_new_adam_each_time() -> None:
    start = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    value = lambda d: torch.stack([torch.sin(3 * d).sum(-1), (d**2).sum(-1)])  # noqa: E731
    d = start.clone()
    for _ in range(100):
        d = d.detach().requires_grad_()
        optimizer = torch.optim.Adam([d], lr=0.005)
        value(d).mean(0).sum().backward()
        optimizer.step()
        d = d.detach().clamp(-0.5, 0.5)
    torch.testing.assert_close(corruption.least(value, start, 0.5), d, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("element", NOISY)
def test_adversarial_corruption_lowers_q_as_far_as_it_can(element: str) -> None:
    clean = made_dataset(200, 20)
    made, drawn = (
        corrupt(clean, attack, element, scale=0.5, seed=8, adversary=Quadratic() if attack == "adversarial" else None)
        for attack in ("adversarial", "random")
    )
    rows, std = made.rows[element], made.std[element]
    assert torch.equal(rows, drawn.rows[element])
    assert torch.equal(changed(made, COLUMNS[element], clean), rows)
    before, start, after = (column(d, element)[rows] for d in (clean, drawn.dataset, made.dataset))
    d, first = ((x - before) / std for x in (after, start))
    assert float(d.abs().max()) <= 0.5 * (1 + 1e-4)
    # The minimum of each number: s = 1, a = -0.5; of s' with its policy (s - 1)^2 + (0.1 s + 0.5)^2 in the first two.
    lowest = {"observation": [1.0] * 3, "action": [-0.5] * 2, "dynamics": [0.95 / 1.01] * 2 + [1.0]}[element]
    wanted = ((torch.tensor(lowest) - before) / std).clamp(-0.5, 0.5)
    expected = torch.maximum(torch.minimum(wanted, first + 0.5), first - 0.5)
    torch.testing.assert_close(d, expected, rtol=0, atol=0.006)


def test_adversary_of_actions_sees_corrupted_observations() -> None:
    seen: list[Tensor] = []

    class Spy(Quadratic):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            seen.append(obs)
            return super().q(obs, action)

    clean = made_dataset(40, 20)
    made = corrupt(clean, "adversarial", ("action", "observation"), rate=1.0, adversary=Spy())
    assert torch.equal(seen[-1], made.dataset.data.obs)  # the last one asked for is the action's


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A dataset, and a run of two agents that learned from it for three steps, with normalised observations."""
    folder = tmp_path_factory.mktemp("adversary")
    source = write_made(folder / "clean.npz")
    settings = {"seeds": [0, 1], "steps": 3, "hidden": (8, 8), "critics": 3, "normalize_obs": "obs", "compile": "off"}
    out = {"out": str(folder / "run"), "tensorboard": False, "checkpoint_minutes": 0.0, "eval_episodes": 0}
    deeprl.train("edac", dataset=source, batch_size=16, **settings, **out)
    return source, folder / "run"


def test_trained_agent_is_an_adversary(trained: tuple[str, Path]) -> None:
    dataset, run = load_dataset(trained[0]), trained[1]
    made = corrupt(dataset, "adversarial", NOISY, rate=0.2, adversary=run)
    expected = {"run": str(run), "algorithm": "edac", "member": 0, "step": 3, "seed": 0}
    assert made.protocol["adversary"] == expected | {"steps": 100, "step_size": 0.01}
    agent, other = (adversary.load_adversary(run, dataset, i) for i in (0, 1))
    obs, action = dataset.data.obs[:7], dataset.data.action[:7]
    values = agent.q(obs, action)
    state = agent._state
    mean, std = dataset.data.obs.mean(0), dataset.data.obs.std(0, correction=0) + 1e-3
    expected_values = torch.func.functional_call(agent._net.critic, state.critic, ((obs - mean) / std, action))
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)
    assert values.shape == (3, 7)
    policy = deeprl.load(run, seed=0)
    np.testing.assert_allclose(agent.policy(obs).numpy(), policy(obs.numpy()), rtol=1e-5, atol=1e-6)
    assert not torch.equal(agent.q(obs, action), other.q(obs, action))
    rows = made.rows["observation"]
    drawn = corrupt(dataset, "random", "observation", rate=0.2)
    worse, random = (agent.q(d.data.obs[rows], dataset.data.action[rows]).mean() for d in (made.dataset, drawn.dataset))
    assert float(worse) < float(random)


def test_adversary_of_other_data_is_refused(trained: tuple[str, Path], tmp_path: Path) -> None:
    other = load_dataset(write_made(tmp_path / "other.npz", seed=1))
    with pytest.raises(DeeprlError, match=r"^adversary: .* was trained on .*clean.npz \(digest .* not other"):
        corrupt(other, "adversarial", adversary=trained[1])
    with pytest.raises(DeeprlError, match=r"^adversary: .* has no member 2"):
        adversary.load_adversary(trained[1], other, 2)


def test_adversary_that_does_not_tell_its_data_is_refused(trained: tuple[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    found = checkpoint.load_checkpoint(run / "checkpoints", histories=False)
    assert found is not None
    snapshots.take(run, found[0], found[1]["agents"])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DeeprlError, match=r"^adversary: .* has no checkpoint, and its snapshots do not tell"):
        adversary.load_adversary(run, load_dataset(trained[0]))


# --- files ---


def round_trip(clean: Dataset, folder: Path, **settings: Any) -> tuple[corruption.Corrupted, Dataset]:
    made = corrupt(clean, **settings)
    write_hdf5(made, folder / "made.hdf5")
    return made, load_dataset(str(folder / "made.hdf5"))


@pytest.mark.parametrize("mode", ["transition", "trajectory"])
def test_files_read_back_equal(mode: str, tmp_path: Path) -> None:
    elements = tuple(e for e in ELEMENTS if mode == "transition" or e != "dynamics")
    clean = dataclasses.replace(made_dataset(200, 20), about={"made": "by hand"})
    made, found = round_trip(clean, tmp_path, elements=elements, mode=mode, rate=0.5)
    assert_equal(found.data, made.dataset.data)
    assert float(found.data.action.abs().max()) > 1.0
    assert found.digest() == made.dataset.digest()
    assert found.about == made.dataset.about
    assert any("beyond the bounds, left there, as this dataset is corrupted" in note for note in found.notes)
    told = read_corruption(tmp_path / "made.hdf5")
    assert told["protocol"] == made.protocol
    for element in elements:
        assert np.array_equal(told["rows"][element], made.rows[element].numpy())
    assert sorted(told["std"]) == sorted(set(elements) - {"reward"})
    assert [p.name for p in tmp_path.iterdir()] == ["made.hdf5"]


def test_a_name_of_others_is_no_corruption_of_ours(tmp_path: Path) -> None:
    for number, about in enumerate((None, "[]", "collected on Monday")):
        path = tmp_path / f"{number}.hdf5"
        with h5py.File(path, "w") as file:
            file["corruption"] = np.zeros(3)
            if about is not None:
                file.attrs["about"] = about
        with pytest.raises(DeeprlError, match="no file of a corrupted dataset"):
            read_corruption(path)


def test_files_keep_units_scores_and_the_returns_of_rows_that_were_left_out(tmp_path: Path) -> None:
    spec = EnvSpec((3,), 2, (-2.0, 0.0), (2.0, 0.5), score_range=(1.0, 9.0))
    clean = made_dataset(200, 20)
    clean = dataclasses.replace(clean, spec=spec, returns=clean.returns + 100.0)
    _, found = round_trip(clean, tmp_path, elements="observation")
    assert found.spec == spec
    assert torch.equal(found.returns, clean.returns)
    torch.testing.assert_close(found.data.action, clean.data.action)
    assert not found.notes


def test_clipping_of_a_corrupted_file_can_be_asked_for(tmp_path: Path) -> None:
    made, _ = round_trip(made_dataset(200, 20), tmp_path, elements="action", rate=1.0)
    found = load_dataset(str(tmp_path / "made.hdf5"), clip=True)
    assert torch.equal(found.data.action, made.dataset.data.action.clamp(-1.0, 1.0))


def test_clean_datasets_are_written_too_and_bounds_stay_checked(tmp_path: Path) -> None:
    write_hdf5(CLEAN, tmp_path / "clean.hdf5")
    assert_equal(load_dataset(str(tmp_path / "clean.hdf5")).data, CLEAN.data)
    with pytest.raises(DeeprlError, match="no file of a corrupted dataset"):
        read_corruption(tmp_path / "clean.hdf5")
    wide = dataclasses.replace(CLEAN, data=CLEAN.data._replace(action=1.5 * CLEAN.data.action))
    write_hdf5(wide, tmp_path / "wide.hdf5")
    with pytest.raises(DeeprlError, match="beyond the bounds"):
        load_dataset(str(tmp_path / "wide.hdf5"))


def test_files_are_never_overwritten_or_left_half_written(tmp_path: Path) -> None:
    (tmp_path / "there.hdf5").write_text("precious")
    with pytest.raises(DeeprlError, match="exists"):
        write_hdf5(CLEAN, tmp_path / "there.hdf5")
    assert (tmp_path / "there.hdf5").read_text() == "precious"
    with pytest.raises(DeeprlError, match="expected a file"):
        write_hdf5(CLEAN, tmp_path / "made.npz")
    with pytest.raises(TypeError):
        write_hdf5(dataclasses.replace(CLEAN, about={"not": object()}), tmp_path / "made.hdf5")
    assert [p.name for p in tmp_path.iterdir()] == ["there.hdf5"]


# --- the command line ---


def test_command_corrupts_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_made(tmp_path / "clean.npz"), str(tmp_path / "made.hdf5")
    words = ["dataset", "corrupt", source, target, "--element", "action", "--element", "reward", "--rate", "0.5"]
    assert main([*words, "--seed", "7", "--scale", "0.5"]) == 0
    made = corrupt(load_dataset(source), "random", ("action", "reward"), rate=0.5, scale=0.5, seed=7)
    assert load_dataset(target).digest() == made.dataset.digest()
    counts = [int(made.rows[e].sum()) for e in ("action", "reward")]
    assert f"action of {counts[0]}, reward of {counts[1]} of 200 rows corrupted" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


def test_a_corrupted_copy_is_of_the_environment_that_was_named(tmp_path: Path) -> None:
    wrapper = "gymnasium.wrappers:RecordEpisodeStatistics"
    words = ["dataset", "corrupt", write_made(tmp_path / "clean.npz"), str(tmp_path / "made.hdf5"), "--env"]
    words += ["offline_helpers:MadeLinear-v0", "--env-kwargs", '{"max_episode_steps": 9}', "--wrappers", wrapper]
    assert main([*words, "--element", "reward"]) == 0
    made = load_dataset(str(tmp_path / "made.hdf5"))
    assert made.env_kwargs == {"max_episode_steps": 9}
    assert made.env_problem.endswith(f"was wrapped in {wrapper}; name them with --wrappers")


def test_a_member_without_an_adversary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset", "corrupt", write_made(tmp_path / "clean.npz"), str(tmp_path / "made.hdf5")]
    assert main([*words, "--element", "action", "--adversary-member", "0"]) == 2
    assert "--adversary-member: does nothing without --adversary" in capsys.readouterr().err
    assert main([*words, "--element", "action", "--device", "cpu"]) == 2
    assert "--device: does nothing without --adversary" in capsys.readouterr().err
    assert not (tmp_path / "made.hdf5").exists()


def test_command_corrupts_with_an_adversary(trained: tuple[str, Path], tmp_path: Path) -> None:
    target = str(tmp_path / "made.hdf5")
    words = ["dataset", "corrupt", trained[0], target, "--element", "observation", "--attack", "adversarial"]
    assert main(words) == 2
    assert main([*words, "--adversary", str(trained[1]), "--adversary-member", "1"]) == 0
    assert read_corruption(target)["protocol"]["adversary"]["member"] == 1


# --- bad input ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "evil"}, "attack: 'evil' is none of random, adversarial"),
        ({"mode": "episode"}, "mode: 'episode'"),
        ({"elements": "observatoin"}, "element: 'observatoin' is none of .*did you mean observation"),
        ({"elements": ()}, "element: name some"),
        ({"elements": ("action", "action")}, "element: name some"),
        ({"rate": 1.5}, "rate: must be in 0 .. 1, not 1.5"),
        ({"rate": -0.1}, "rate:"),
        ({"rate": math.nan}, "rate:"),
        ({"scale": -1.0}, "scale:"),
        ({"scale": math.inf}, "scale:"),
        ({"seed": -1}, "seed:"),
        ({"mode": "trajectory", "elements": ("reward", "dynamics")}, "element: in mode trajectory"),
        ({"attack": "adversarial"}, "adversary: one is needed: train edac"),
        ({"adversary": Quadratic()}, "adversary: none is needed for random"),
        ({"attack": "adversarial", "elements": "reward", "adversary": Quadratic()}, "adversary: none is needed"),
        ({"attack": "adversarial", "adversary": "nowhere"}, "nowhere is no run directory"),
    ],
    ids=str,
)
def test_bad_input_raises(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=message):
        corrupt(CLEAN, **settings)


def test_adversary_of_other_shapes_raises() -> None:
    class Narrow(Quadratic):
        def policy(self, obs: Tensor) -> Tensor:
            return obs[:, :1]

    class Wide(Quadratic):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return obs[:, :2] @ torch.zeros(5, 1)

    class Broken(Quadratic):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return super().q(obs, action) * math.nan

    for kind, message in ((Narrow, "policy and q return"), (Wide, "cannot take these rows"), (Broken, "not finite")):
        with pytest.raises(DeeprlError, match=f"^adversary: .*{message}"):
            corrupt(CLEAN, "adversarial", "action", adversary=kind())


def test_a_corrupted_dataset_is_not_corrupted_again() -> None:
    with pytest.raises(DeeprlError, match="is corrupted already"):
        corrupt(corrupt(CLEAN).dataset)
