"""Policies of others: each kind by hand, what is wrong with a file, and one real policy in its environment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeprl.core.spec import EnvSpec
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError
from deeprl.make_data.policies import read_policies, read_policy

HOPPER = Path(__file__).parent / "data" / "trpo_hopper.npz"
SPEC = EnvSpec((1,), 1, (-1.0,), (1.0,))

# One observation, one unit in each hidden layer, one action.
HIDDEN: dict[str, Any] = {"w0": [[1.0]], "b0": [0.0], "w1": [[2.0]], "b1": [-1.0]}
SNAPSHOTS: dict[str, Any] = {
    "iteration": [0, 20], "obs_mean": [[1.0], [0.0]], "obs_std": [[2.0], [1.0]], "log_std": [[math.log(0.5)], [0.0]],
    **{key: [value, value] for key, value in HIDDEN.items()}, "w2": [[[3.0]], [[0.0]]], "b2": [[0.5], [7.0]],
}  # fmt: skip
SQUASHED: dict[str, Any] = {
    **HIDDEN, "w_mu": [[0.5]], "b_mu": [-1.0], "w_log_std": [[100.0]], "b_log_std": [-502.0],
}  # fmt: skip
SCALED: dict[str, Any] = {
    **HIDDEN, "w2": [[1.0]], "b2": [0.0], "obs_shift": [2.0], "obs_scale": [0.5], "out_shift": [0.1],
    "out_scale": [0.25], "log_std": [math.log(0.1)],
}  # fmt: skip


def written(path: Path, arrays: dict[str, Any], **changes: Any) -> Path:
    arrays = {k: np.asarray(v, np.float32) for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


def tanh_hidden(x: float) -> float:
    return math.tanh(2.0 * math.tanh(x) - 1.0)


def test_snapshots(tmp_path: Path) -> None:
    first, last = read_policies(written(tmp_path / "p.npz", SNAPSHOTS))
    assert (first.name, last.name) == ("p:0", "p:20")
    obs = np.array([[3.0], [0.0]])
    # x = (o - 1) / 2: 1 and -1/2
    mean = [[3.0 * tanh_hidden(1.0) + 0.5], [3.0 * tanh_hidden(-0.5) + 0.5]]
    np.testing.assert_allclose(first(obs, None), mean, rtol=1e-5)
    drawn = np.random.default_rng(1).standard_normal((2, 1), np.float32)
    np.testing.assert_allclose(first(obs, np.random.default_rng(1)), mean + 0.5 * drawn, rtol=1e-5)
    np.testing.assert_allclose(last(obs, None), [[7.0], [7.0]])
    assert first(obs, np.random.default_rng(1)).dtype == np.float32


def test_squashed(tmp_path: Path) -> None:
    policy = read_policy(written(tmp_path / "p.npz", SQUASHED))
    # ReLU: 2 * 3 - 1 = 5, mu = 1.5, log_std = -2; for -3: 0 and 0, mu = -1, log_std clipped to -20
    obs = np.array([[3.0], [-3.0]], np.float32)
    np.testing.assert_allclose(policy(obs, None), np.tanh([[1.5], [-1.0]]), rtol=1e-6)
    drawn = np.random.default_rng(1).standard_normal((2, 1), np.float32)
    expected = np.tanh([[1.5 + math.exp(-2.0) * drawn[0, 0]], [-1.0]])
    np.testing.assert_allclose(policy(obs, np.random.default_rng(1)), expected, rtol=1e-5)


def test_scaled(tmp_path: Path) -> None:
    policy = read_policy(written(tmp_path / "p.npz", SCALED))
    # x = (o - 2) / 0.5: 2 and 0
    mean = [[0.25 * tanh_hidden(2.0) + 0.1], [0.25 * tanh_hidden(0.0) + 0.1]]
    obs = np.array([[3.0], [2.0]])
    np.testing.assert_allclose(policy(obs, None), mean, rtol=1e-5)
    drawn = np.random.default_rng(1).standard_normal((2, 1), np.float32)
    np.testing.assert_allclose(policy(obs, np.random.default_rng(1)), mean + 0.1 * drawn, rtol=1e-4)
    large = read_policy(written(tmp_path / "q.npz", SCALED, out_shift=[5.0]))
    assert large(obs, None).tolist() == [[1.0], [1.0]]


def test_layers_of_different_width_and_a_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w0": (3, 5), "b0": (5,), "w1": (5, 4), "b1": (4,), "w_mu": (4, 2), "b_mu": (2,)}
    arrays = {k: rng.normal(size=s) for k, s in (shapes | {"w_log_std": (4, 2), "b_log_std": (2,)}).items()}
    policy = read_policy(written(tmp_path / "p.npz", arrays))
    assert (policy.obs_dim, policy.action_dim) == (3, 2)
    obs = rng.normal(size=(6, 3))
    alone = np.concatenate([policy(row[None], None) for row in obs])
    np.testing.assert_allclose(policy(obs, None), alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w1": None}, "has no w1; a policy of the kind snapshots needs iteration, obs_mean"),
        ({"b1": [[0.0, 0.0], [0.0, 0.0]]}, "b1 has shape (2, 2); expected (2, 1)"),
        ({"w0": [[1.0]]}, "w0 has shape (1, 1); expected (2, 1, H)"),
        ({"b2": [[0.5], [np.nan]]}, "b2 has numbers that are not finite"),
        ({"iteration": None}, "no policy; it needs one of the keys iteration (snapshots), w_mu (squashed), obs_shift"),
    ],
)
def test_wrong_arrays(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "p.npz", SNAPSHOTS, **change)
    with pytest.raises(DeeprlError) as error:
        read_policies(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_wrong_files(tmp_path: Path) -> None:
    text, pickled, half = (tmp_path / name for name in ("text.npz", "pickled.npz", "half.npz"))
    text.write_text("no numbers")
    np.savez(pickled, iteration=np.array([object()]))
    whole = written(tmp_path / "whole.npz", SNAPSHOTS).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    for path in (text, pickled, half):
        with pytest.raises(DeeprlError, match=r"no \.npz file of plain arrays"):
            read_policies(path)
    with pytest.raises(DeeprlError, match="no such file"):
        read_policies(tmp_path / "none.npz")


def test_unknown_snapshots(tmp_path: Path) -> None:
    path = written(tmp_path / "p.npz", SNAPSHOTS)
    assert read_policy(path).name == "p:20"
    assert read_policy(path, 0).name == "p:0"
    with pytest.raises(DeeprlError, match="no snapshot 10; it has 0, 20"):
        read_policy(path, 10)
    with pytest.raises(DeeprlError, match="no snapshot 10; it has one policy"):
        read_policy(written(tmp_path / "q.npz", SCALED), 10)


def test_environments_that_do_not_fit(tmp_path: Path) -> None:
    gaussian = read_policy(written(tmp_path / "p.npz", SNAPSHOTS))
    squashed = read_policy(written(tmp_path / "q.npz", SQUASHED))
    gaussian.check(EnvSpec((1,), 1, (-2.0,), (2.0,)), "Wide-v0")
    squashed.check(SPEC, "Narrow-v0")
    for spec in (EnvSpec((2,), 1, (-1.0,), (1.0,)), EnvSpec((1,), 0, (), (), actions=3), EnvSpec((1, 1), 1, (), ())):
        with pytest.raises(DeeprlError, match="policy p:20 has 1 observations and 1 actions; Other-v0 has"):
            gaussian.check(spec, "Other-v0")
    with pytest.raises(DeeprlError, match=r"acts in \[-1, 1\]; Wide-v0 in \[-2.0\]"):
        squashed.check(EnvSpec((1,), 1, (-2.0,), (2.0,)), "Wide-v0")


def test_ant_without_contact_forces(tmp_path: Path) -> None:
    weights = {k: np.zeros(s) for k, s in {"w0": (1, 111, 1), "w1": (1, 1, 1), "w2": (1, 1, 8)}.items()}
    weights["w0"][0, 33], weights["w1"][:], weights["w2"][:] = 1.0, 1.0, 1.0  # sees number 33 alone
    biases = {"b0": np.zeros((1, 1)), "b1": np.zeros((1, 1)), "b2": np.zeros((1, 8)), "log_std": np.zeros((1, 8))}
    norm = {"iteration": [5], "obs_mean": np.zeros((1, 111)), "obs_std": np.ones((1, 111))}
    policy = read_policy(written(tmp_path / "ant.npz", weights | biases | norm))
    whole, v5, v4 = np.zeros((1, 111)), np.zeros((1, 105)), np.ones((1, 27))
    whole[0, 33] = v5[0, 27] = 1.0
    expected = math.tanh(math.tanh(1.0))
    np.testing.assert_allclose(policy(whole, None), np.full((1, 8), expected), rtol=1e-5)
    np.testing.assert_allclose(policy(v5, None), np.full((1, 8), expected), rtol=1e-5)
    np.testing.assert_allclose(policy(v4, None), np.zeros((1, 8)))
    for size in (27, 105, 111):
        policy.check(EnvSpec((size,), 8, (-1.0,) * 8, (1.0,) * 8), "Ant-v5")
    with pytest.raises(DeeprlError, match="policy ant:5 has 111 observations"):
        policy.check(EnvSpec((27,), 8, (-1.0,) * 8, (1.0,) * 8), "Spider-v0")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_the_expert_hops_as_it_did_for_others() -> None:
    """Measured with the same weights: 3,723 over five episodes of mean actions."""
    policy, env = read_policy(HOPPER, 500), make_env("Hopper-v4")
    policy.check(EnvSpec((11,), 3, (-1.0,) * 3, (1.0,) * 3), "Hopper-v4")
    obs, total, ended = env.reset(seed=0)[0], 0.0, False
    while not ended:
        action = np.clip(policy(obs[None], None)[0], -1.0, 1.0)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    assert 3650 < total < 3800
