"""What other libraries recorded, read as curves: files of the libraries themselves, numbers by hand, broken files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from deeprl.errors import DeeprlError
from deeprl.reporting.peers import EPISODES, POINTS, Peer, is_peer, parse_peer, read_peer

SB3 = Path(__file__).parent / "data" / "peers"  # written by stable-baselines3


def event_file(folder: Path, **scalars: list[tuple[int, float]]) -> Path:
    """As CleanRL writes them."""
    writer = SummaryWriter(str(folder))
    writer.add_text("hyperparameters", "|param|value|")
    for name, points in scalars.items():
        for step, value in points:
            writer.add_scalar(name.replace("__", "/"), value, step)
    writer.close()
    return folder


def test_evaluations_of_stable_baselines3_are_means_over_episodes_of_each_seed():
    # of the files: (9 + 9 + 11) / 3 and so on; the folders name the environment
    curves = read_peer(Peer("sb3", SB3))
    assert list(curves) == ["CartPole-v1"]
    first, second = curves["CartPole-v1"]
    assert first == pytest.approx({256: 29 / 3, 512: 28 / 3, 768: 38 / 3, 1024: 71 / 3})
    assert second[1024] == pytest.approx((40 + 36 + 28) / 3)
    assert read_peer(Peer("one", SB3 / "CartPole-v1_1" / "evaluations.npz")) == {"CartPole-v1": [first]}


def test_monitors_of_one_run_are_one_curve_in_order_of_time(tmp_path):
    # stable-baselines3's own `load_results` finds 42 episodes of 990 steps, their mean 23.571
    folder = SB3 / "CartPole-v1_1"
    (curve,) = read_peer(Peer("sb3", folder / "0.monitor.csv"))["CartPole-v1"]
    assert max(curve) == 990
    assert curve[990] == pytest.approx(23.571428571428573)
    assert read_peer(Peer("sb3", folder / "1.monitor.csv"))["CartPole-v1"] == [curve]
    (tmp_path / "run").mkdir()
    alone = tmp_path / "run" / "monitor.csv"
    alone.write_text('#{"t_start": 5.0, "env_id": "Own-v0"}\nr,l,t\n1.0,50,1\n4.0,50,2\n')
    # two episodes of 50 steps: one has ended from step 50 on, both at 100
    (curve,) = read_peer(Peer("mine", alone))["Own-v0"]
    assert len(curve) == POINTS // 2 + 1
    assert (curve[50], curve[98], curve[100]) == (1.0, 1.0, 2.5)


def test_training_returns_are_means_of_the_last_hundred_at_steps_that_all_seeds_share(tmp_path):
    # returns 0, 1, 2, ... every 10 steps: at step 10 n the last hundred are n - 100 .. n - 1, their mean n - 50.5
    for seed, count in ((1, 300), (2, 200)):
        points = [(10 * k, float(k - 1)) for k in range(1, count + 1)]
        event_file(tmp_path / f"Hopper-v4__td3_continuous_action__{seed}__17", charts__episodic_return=points)
    first, second = read_peer(Peer("cleanrl", tmp_path))["Hopper-v4"]
    assert first == second
    assert sorted(first) == list(range(40, 2001, 40))
    assert first[2000] == 200 - 50.5
    assert first[400] == pytest.approx(np.mean(range(40)))
    assert EPISODES == 100


def test_evaluations_in_tensorboard_are_taken_as_they_are(tmp_path):
    scalars = {"eval__mean_reward": [(100, 1.0), (200, 3.0)], "rollout__ep_rew_mean": [(50, 9.0)]}
    event_file(tmp_path / "PPO_1", **scalars)
    assert read_peer(Peer("sb3", tmp_path, "Own-v0")) == {"Own-v0": [{100: 1.0, 200: 3.0}]}
    (file,) = (tmp_path / "PPO_1").iterdir()
    assert read_peer(Peer("sb3", file, "Own-v0")) == {"Own-v0": [{100: 1.0, 200: 3.0}]}


def export(path: Path, header: list[str], *lines: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *lines])
    return path


def test_an_export_of_wandb_has_a_curve_for_each_run_without_its_bounds(tmp_path):
    names = [f"Ant-v4__sac__{seed}__16 - eval/return" for seed in (1, 2)]
    header = ["global_step", *(f"{name}{end}" for name in names for end in ("", "__MIN", "__MAX"))]
    path = export(tmp_path / "w.csv", header, ["10", "1", "0", "9", "", "", ""], ["20", "2", "0", "9", "5", "5", "5"])
    assert read_peer(Peer("wandb", path)) == {"Ant-v4": [{10: 1.0, 20: 2.0}, {20: 5.0}]}
    episodic = export(
        tmp_path / "e.csv", ["Step", "Ant-v4__sac__1__16 - charts/episodic_return"], ["50", "2"], ["100", "4"]
    )
    (curve,) = read_peer(Peer("wandb", episodic))["Ant-v4"]
    assert (curve[50], curve[100]) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("word", "expected"), [("a={}", Peer("a", Path())), ("a b@ALE/Pong-v5={}", Peer("a b", Path(), "ALE/Pong-v5"))]
)
def test_words_name_a_peer(word, expected, tmp_path):
    assert parse_peer(word.format(tmp_path)) == expected._replace(path=tmp_path)


@pytest.mark.parametrize("word", ["a", "={}", "a=", "@x={}"])
def test_words_without_name_or_path_are_refused(word, tmp_path):
    with pytest.raises(DeeprlError, match="NAME=PATH"):
        parse_peer(word.format(tmp_path))
    with pytest.raises(DeeprlError, match="no such file"):
        parse_peer("a=nowhere.npz")


def test_what_does_not_tell_its_environment_is_refused_with_the_remedy(tmp_path):
    np.savez(tmp_path / "evaluations.npz", timesteps=[1], results=[[2.0]])
    with pytest.raises(DeeprlError, match="a@ENVIRONMENT="):
        read_peer(Peer("a", tmp_path / "evaluations.npz"))
    assert read_peer(Peer("a", tmp_path, "Own-v0")) == {"Own-v0": [{1: 2.0}]}


BROKEN = {
    "evaluations.npz": (b"no archive", "not the evaluations"),
    "monitor.csv": (b"r,l,t\n1,2,3\n", "no monitor file"),
    "0.monitor.csv": (b'#{"t_start": 1.0, "env_id": "A-v0"}\nr,l,t\nhigh,2,3\n', "no monitor file"),
    "wandb.csv": (b'"Step","A-v0__x - r"\n"1","high"\n', "is broken"),
    "other.csv": (b"name,grade\nA,1\n", "no returns of another library"),
    "empty.csv": (b"", "no returns of another library"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name, tmp_path):
    content, complaint = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeeprlError, match=complaint) as found:
        read_peer(Peer("a", tmp_path / name, "Own-v0"))
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


def test_events_without_returns_and_empty_folders_are_refused(tmp_path):
    event_file(tmp_path / "run", losses__q=[(1, 2.0)])
    for path in (tmp_path, tmp_path / "run"):
        with pytest.raises(DeeprlError, match="no returns of another library"):
            read_peer(Peer("a", path, "Own-v0"))
    (tmp_path / "empty").mkdir()
    assert not is_peer(tmp_path / "empty")
    assert is_peer(tmp_path / "run")


def test_unequal_results_are_refused(tmp_path):
    for steps, results in (([1, 2], [[2.0, 3.0, 4.0, 5.0]]), ([1], [[2.0], [3.0]])):
        np.savez(tmp_path / "evaluations.npz", timesteps=steps, results=results)
        with pytest.raises(DeeprlError, match="not the evaluations"):
            read_peer(Peer("a", tmp_path, "Own-v0"))


def test_files_that_have_not_got_a_return_yet_are_refused(tmp_path):
    (tmp_path / "monitor.csv").write_text('#{"t_start": 1.0, "env_id": "A-v0"}\nr,l,t\n')
    with pytest.raises(DeeprlError, match="no returns of another library"):
        read_peer(Peer("a", tmp_path))
