"""Policies that others trained, from a `.npz` file of plain arrays: to make datasets with, never to go on training.

A file holds one of three kinds, told apart by its keys; letters are sizes: O observation, A action, H and K the two
hidden layers, I snapshots. A layer is `x @ w + b`; arrays are read as float32; other keys are ignored.

`snapshots`, a Gaussian policy at several moments of its training (TRPO, as in Ho and Ermon 2016, arXiv 1606.03476):

    iteration [I], obs_mean, obs_std [I, O], log_std [I, A], w0 [I, O, H], b0 [I, H], w1 [I, H, K], b1 [I, K],
    w2 [I, K, A], b2 [I, A]
    x = (obs - obs_mean) / (obs_std + 1e-6); tanh after layers 0 and 1
    action = layer 2 + exp(log_std) * noise, in the environment's units, not clipped

`squashed`, the actor of SAC or TQC (Stable-Baselines3), for actions in [-1, 1]:

    w0 [O, H], b0 [H], w1 [H, K], b1 [K], w_mu [K, A], b_mu [A], w_log_std [K, A], b_log_std [A]
    ReLU after layers 0 and 1
    action = tanh(mu + exp(clip(log_std, -20, 2)) * noise)

`scaled`, a Gaussian policy with scaled inputs and outputs, for actions in [-1, 1] (DAPG, Rajeswaran et al. 2018,
arXiv 1709.10087):

    obs_shift, obs_scale [O], out_shift, out_scale, log_std [A], w0 [O, H], b0 [H], w1 [H, K], b1 [K], w2 [K, A], b2 [A]
    x = (obs - obs_shift) / (obs_scale + 1e-8); tanh after layers 0 and 1
    action = clip(layer 2 * out_scale + out_shift + exp(log_std) * noise, -1, 1)

A policy of the Ant with 111 observations also acts in an Ant that shows fewer: Gymnasium's Ant-v5 leaves out the
contact forces of the first body, which are zero, Ant-v4 all of them; the policy sees zeros after the 27th number.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from deeprl.core.spec import EnvSpec
from deeprl.errors import DeeprlError

Arrays = dict[str, np.ndarray]

_HIDDEN = {"w0": "O H", "b0": "H", "w1": "H K", "b1": "K"}
_LAYOUTS = {  # kind -> key -> axes; the first key of each is in no other kind
    "snapshots": {
        "iteration": "I",
        **{key: f"I {axes}" for key, axes in ({"obs_mean": "O", "obs_std": "O", "log_std": "A"} | _HIDDEN).items()},
        **{"w2": "I K A", "b2": "I A"},
    },
    "squashed": {"w_mu": "K A", "b_mu": "A", "w_log_std": "K A", "b_log_std": "A", **_HIDDEN},
    "scaled": {
        **{"obs_shift": "O", "obs_scale": "O", "out_shift": "A", "out_scale": "A", "log_std": "A"},
        **_HIDDEN,
        **{"w2": "K A", "b2": "A"},
    },
}
_ANT = (111, 8, 27)  # observations and actions of Ant with contact forces; observations before them


@dataclass(frozen=True)
class FilePolicy:
    """A policy of a file: `policy(obs, noise)`.

    name: the file's stem, with `:snapshot` where it has several. weights: the arrays of its kind, of one snapshot.
    """

    name: str
    kind: str
    weights: Arrays

    @property
    def obs_dim(self) -> int:
        return int(self.weights["w0"].shape[0])

    @property
    def action_dim(self) -> int:
        return int(self.weights["b_mu" if self.kind == "squashed" else "b2"].shape[0])

    def __call__(self, obs: Float[np.ndarray, "B P"], noise: np.random.Generator | None) -> Float[np.ndarray, "B A"]:
        """Actions in the environment's units, float32; drawn with `noise`, the mean actions without it.

        obs has O numbers, or those of an Ant without contact forces.
        """
        w, x = self.weights, self._padded(obs.astype(np.float32, copy=False))
        if self.kind == "squashed":
            x = np.maximum(np.maximum(x @ w["w0"] + w["b0"], 0) @ w["w1"] + w["b1"], 0)
            log_std = np.clip(x @ w["w_log_std"] + w["b_log_std"], -20, 2)
            return np.tanh(_drawn(x @ w["w_mu"] + w["b_mu"], log_std, noise))
        if self.kind == "snapshots":
            x = (x - w["obs_mean"]) / (w["obs_std"] + np.float32(1e-6))
        else:
            x = (x - w["obs_shift"]) / (w["obs_scale"] + np.float32(1e-8))
        action = np.tanh(np.tanh(x @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
        if self.kind == "snapshots":
            return _drawn(action, w["log_std"], noise)
        return np.clip(_drawn(action * w["out_scale"] + w["out_shift"], w["log_std"], noise), -1, 1)

    def _padded(self, obs: np.ndarray) -> np.ndarray:
        missing = self.obs_dim - obs.shape[1]
        if missing == 0:
            return obs
        first = _ANT[2]
        return np.concatenate([obs[:, :first], np.zeros((len(obs), missing), np.float32), obs[:, first:]], 1)

    def check(self, spec: EnvSpec, env: str) -> None:
        """Raise DeeprlError unless the policy can act in the environment, called `env` in the message."""
        ant = (self.obs_dim, self.action_dim) == _ANT[:2] and env.startswith("Ant-") and spec.obs_dim in (27, 105)
        same = not spec.image and (ant or spec.obs_dim == self.obs_dim) and spec.action_dim == self.action_dim
        if not same:
            raise DeeprlError(
                f"policy {self.name} has {self.obs_dim} observations and {self.action_dim} actions; "
                f"{env} has {spec.obs_shape} and {spec.actions or spec.action_dim}"
            )
        if self.kind != "snapshots" and {*spec.action_low, *spec.action_high} != {-1.0, 1.0}:
            raise DeeprlError(
                f"policy {self.name} acts in [-1, 1]; {env} in {list(spec.action_low)} .. {list(spec.action_high)}"
            )


def _drawn(mean: np.ndarray, log_std: np.ndarray, noise: np.random.Generator | None) -> np.ndarray:
    return mean if noise is None else mean + np.exp(log_std) * noise.standard_normal(mean.shape, np.float32)


def read_policies(path: str | Path) -> list[FilePolicy]:
    """All snapshots of a file in the order of training; of a file without snapshots the one policy.

    Raises DeeprlError that names file and key for what is wrong with it.
    """
    file = Path(path)
    arrays = _arrays(file)
    kind = next((k for k, layout in _LAYOUTS.items() if next(iter(layout)) in arrays), "")
    if not kind:
        firsts = ", ".join(f"{next(iter(layout))} ({k})" for k, layout in _LAYOUTS.items())
        raise DeeprlError(
            f"{file}: no policy; it needs one of the keys {firsts}, as deeprl.make_data.policies documents"
        )
    _check_layout(file, kind, arrays)
    weights = {key: arrays[key] for key in _LAYOUTS[kind]}
    if kind != "snapshots":
        return [FilePolicy(file.stem, kind, weights)]
    iterations = weights.pop("iteration").tolist()
    return [
        FilePolicy(f"{file.stem}:{iteration:g}", kind, {key: array[i] for key, array in weights.items()})
        for i, iteration in enumerate(iterations)
    ]


def read_policy(path: str | Path, snapshot: int | None = None) -> FilePolicy:
    """One policy of a file: the given snapshot (its `iteration`), by default the last one.

    Raises DeeprlError as `read_policies` does, and with the snapshots that exist for one that does not.
    """
    policies = read_policies(path)
    if snapshot is None:
        return policies[-1]
    fitting = [p for p in policies if p.name == f"{Path(path).stem}:{snapshot}"]
    if not fitting:
        known = ", ".join(p.name.rpartition(":")[2] for p in policies if p.kind == "snapshots")
        raise DeeprlError(f"{path}: no snapshot {snapshot}; {f'it has {known}' if known else 'it has one policy'}")
    return fitting[0]


def _arrays(file: Path) -> Arrays:
    """The numbers of a file, float32; pickled objects are refused, what is no number is left out."""
    try:
        with np.load(file, allow_pickle=False) as loaded:
            read = {key: loaded[key] for key in loaded.files}
    except FileNotFoundError:
        raise DeeprlError(f"{file}: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DeeprlError(f"{file}: no .npz file of plain arrays ({type(error).__name__})") from error
    return {key: array.astype(np.float32) for key, array in read.items() if array.dtype.kind in "fiub"}


def _check_layout(file: Path, kind: str, arrays: Arrays) -> None:
    sizes: dict[str, int] = {}
    for key, text in _LAYOUTS[kind].items():
        if key not in arrays:
            raise DeeprlError(f"{file}: has no {key}; a policy of the kind {kind} needs {', '.join(_LAYOUTS[kind])}")
        shape, axes = arrays[key].shape, text.split()
        if len(shape) == len(axes):
            sizes = dict(zip(axes, shape, strict=True)) | sizes
        expected = tuple(sizes.get(axis, axis) for axis in axes)
        if shape != expected or 0 in shape:
            raise DeeprlError(f"{file}: {key} has shape {shape}; expected ({', '.join(map(str, expected))})")
        if not np.isfinite(arrays[key]).all():
            raise DeeprlError(f"{file}: {key} has numbers that are not finite")
