"""Corruption of datasets: the protocol of the RIQL paper, random or by an adversary, and files that remember it.

Yang et al. 2024, "Towards Robust Offline Reinforcement Learning under Diverse Data Corruption", arXiv 2310.12955.

Each element is corrupted in rows that are drawn for it alone, each row with probability `rate` (c of the paper). std is
the deviation of each number over all rows of the clean dataset, eps is `scale`, U is uniform in [-eps, eps].

    element       random                   adversarial
    observation   s + U std(s)             s + d std(s),    d: least mean_i Q_i(s + d std(s), a)
    action        a + U std(a)             a + d std(a),    d: least mean_i Q_i(s, a + d std(a))
    reward        30 U                     -eps r
    dynamics      s' + U std(s')           s' + d std(s'),  d: least mean_i Q_i(x, pi(x)),  x = s' + d std(s')

d starts from U and takes 100 steps of Adam's first step (of size 0.01 eps, against the sign of each slope), held within
[-eps, eps]. Q and pi are those of an EDAC agent that was trained on the clean dataset. Elements are corrupted in the
order above: the adversary of actions sees corrupted observations. Evaluation stays clean.

Actions are not clipped, so that they leave [-1, 1]. The units make no difference: std scales with them. A dataset or
file with `corruption` in its `about` is exempt from the check of bounds; learners that clip actions (IQL) still do.

mode `transition` is the paper's: s of a row changes, but the same state as s' of the row before stays clean. In mode
`trajectory` it changes there too, as where corruption came with the recording ("ADG: Ambient Diffusion-Guided Dataset
Recovery for Corruption-Robust Offline RL"); there are no separate dynamics then, and an episode's last s' stays clean.

Differences from the authors' code (YangRui2015/RIQL, attack.py): numbers are drawn by `deeprl.core.rng`: the rows are
not theirs; d of the adversary starts within [-eps, eps], where theirs is multiplied by std once more; pi(x) is the
policy's mode, where theirs samples.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad

from deeprl.core import rng
from deeprl.core.population import resolve_device
from deeprl.core.process import torch_defaults
from deeprl.data.datasets import Dataset
from deeprl.data.offline import moments_of
from deeprl.errors import DeeprlError, first_line, nearest
from deeprl.make_data.adversary import Adversary, opponent_of
from deeprl.make_data.writers import save_dataset
from deeprl.replay import Stored
from deeprl.run.progress import Progress

_COLUMNS = {"observation": "obs", "action": "action", "reward": "reward", "dynamics": "next_obs"}
ELEMENTS = tuple(_COLUMNS)
ATTACKS = ("random", "adversarial")
MODES = ("transition", "trajectory")
STEPS, STEP_SIZE, REWARD_UNIT = 100, 0.01, 30.0
_PIECE = 8192  # rows for which numbers are drawn, and attacked, at once; another size would draw others


@dataclass(frozen=True)
class Corrupted:
    """A corrupted dataset with the same N rows as the clean one.

    rows: for each element, where it was corrupted. std: the clean deviations [D] of all elements but rewards.
    protocol: everything that was asked for, the clean dataset's name and digest, the adversary; plain JSON values, also
    in `dataset.about["corruption"]`. Returns of episodes are those of the corrupted rewards.
    """

    dataset: Dataset
    rows: dict[str, Bool[Tensor, " N"]]
    std: dict[str, Float[Tensor, " D"]]
    protocol: dict[str, Any]


@torch_defaults()
def corrupt(
    dataset: Dataset,
    attack: str = "random",
    elements: Sequence[str] = ("observation",),
    rate: float = 0.3,
    scale: float = 1.0,
    mode: str = "transition",
    seed: int = 0,
    adversary: Adversary | str | Path | None = None,
    device: str = "cpu",
) -> Corrupted:
    """A corrupted copy of a clean dataset, which depends on the dataset and these arguments alone.

    attack: `random` or `adversarial`. elements: some of `ELEMENTS`. rate: in [0, 1]. scale: eps, in deviations.
    mode: `transition` or `trajectory`. seed: 0 <= seed < 2^32; the rows and noise of an element do not depend on which
    others are corrupted, and the rows of a smaller rate are among those of a larger one. adversary: the directory of an
    `edac` run on the clean dataset (its first agent; `load_adversary` for another), or an `Adversary` of your own;
    adversarial rewards need none. device: where the adversary computes.

    Raises DeeprlError for arguments that do not fit, and for a dataset that is corrupted already.
    """
    chosen, device = _checked(dataset, attack, elements, rate, scale, mode, seed), resolve_device(device)
    opponent = opponent_of(dataset, attack, chosen, adversary, device)
    made = _Attack(attack, rate, scale, seed, opponent, device)
    std = {e: moments_of((getattr(dataset.data, _COLUMNS[e]),))[1] for e in chosen if e != "reward"}
    data, rows = dataset.data, {}
    for element in chosen:
        column, rows[element] = made(f"corrupting {dataset.name}: {element}", data, element, std.get(element))
        if element == "observation" and mode == "trajectory":
            data = data._replace(next_obs=_passed_on(dataset, column, rows[element]))
        data = data._replace(**{_COLUMNS[element]: column})
    protocol = {"attack": attack, "elements": list(chosen), "rate": rate, "scale": scale, "mode": mode, "seed": seed}
    protocol |= {"source": dataset.name, "digest": dataset.digest()}
    if opponent is not None:
        who = getattr(opponent, "about", {"type": type(opponent).__name__})
        protocol["adversary"] = who | {"steps": STEPS, "step_size": STEP_SIZE * scale}
    returns = dataset.returns + (_sums(data.reward, dataset) - _sums(dataset.data.reward, dataset))
    about = dataset.about | {"corruption": protocol}
    return Corrupted(dataclasses.replace(dataset, data=data, returns=returns, about=about), rows, std, protocol)


def _checked(
    dataset: Dataset, attack: str, elements: Sequence[str], rate: float, scale: float, mode: str, seed: int
) -> list[str]:
    """The elements in their order. Raises DeeprlError."""
    asked = [elements] if isinstance(elements, str) else list(elements)
    for name, value, known in (("attack", attack, ATTACKS), ("mode", mode, MODES)):
        if value not in known:
            raise DeeprlError(f"{name}: {value!r} is none of {', '.join(known)}")
    for element in asked:
        if element not in ELEMENTS:
            raise DeeprlError(f"element: {element!r} is none of {', '.join(ELEMENTS)}{nearest(element, ELEMENTS)}")
    if not asked or len(set(asked)) != len(asked):
        raise DeeprlError(f"element: name some of {', '.join(ELEMENTS)}, each once")
    if not 0.0 <= rate <= 1.0:
        raise DeeprlError(f"rate: must be in 0 .. 1, not {rate:g}")
    if not 0.0 <= scale < math.inf:
        raise DeeprlError(f"scale: must not be negative, and finite, not {scale:g}")
    if not 0 <= seed < 2**32:
        raise DeeprlError(f"seed: must be in 0 .. 2^32 - 1, not {seed}")
    if mode == "trajectory" and "dynamics" in asked:
        raise DeeprlError("element: in mode trajectory a corrupted observation is also a successor: leave out dynamics")
    if "corruption" in dataset.about:
        raise DeeprlError(f"{dataset.name}: is corrupted already; deviations must be those of the clean dataset")
    return [element for element in ELEMENTS if element in asked]


# --- one element ---


@dataclass(frozen=True)
class _Attack:
    """What is done to an element, whichever it is."""

    kind: str
    rate: float
    scale: float
    seed: int
    opponent: Adversary | None
    device: str

    def __call__(
        self, title: str, data: Stored, element: str, std: Float[Tensor, " D"] | None
    ) -> tuple[Float[Tensor, "N *D"], Bool[Tensor, " N"]]:
        """The column of an element after its corruption, and in which rows it was. std: None for rewards."""
        column = getattr(data, _COLUMNS[element]).clone()
        rows = torch.zeros(len(column), dtype=torch.bool)
        keys = rng.split(rng.key(self.seed, "corrupt", ELEMENTS.index(element)), 2)
        progress = Progress(title, len(column))
        for number, start in enumerate(range(0, len(column), _PIECE)):
            here = slice(start, start + _PIECE)
            part = column[here]  # a view
            row_key, noise_key = (rng.fold_in(key, number) for key in keys)
            chosen = rows[here] = rng.uniform(row_key, part.shape[:1]) < self.rate
            noise = self.scale * rng.uniform(noise_key, part.shape, -1.0, 1.0)[chosen]
            clean = part[chosen]
            if std is None:
                part[chosen] = REWARD_UNIT * noise if self.kind == "random" else -self.scale * clean
            else:
                if self.opponent is not None and len(clean):
                    noise = self._against(element, data.obs[here][chosen], data.action[here][chosen], clean, std, noise)
                part[chosen] = clean + noise * std
            progress.update(start)
        progress.close()
        return column, rows

    def _against(
        self, element: str, obs: Tensor, action: Tensor, clean: Tensor, std: Tensor, start: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B D"]:
        obs, action, clean, std, start = (x.to(self.device) for x in (obs, action, clean, std, start))
        assert self.opponent is not None
        found = least(_value(self.opponent, element, obs, action, clean, std), start, self.scale)
        if not bool(found.isfinite().all()):
            raise DeeprlError("adversary: its values have slopes that are not finite")
        return found.cpu()


def _value(
    opponent: Adversary, element: str, obs: Tensor, action: Tensor, clean: Tensor, std: Tensor
) -> Callable[[Tensor], Float[Tensor, "E B"]]:
    """The value of rows as a function of d. clean: what d is added to."""
    if element == "observation":
        return lambda d: opponent.q(clean + d * std, action)
    if element == "action":
        return lambda d: opponent.q(obs, clean + d * std)
    return lambda d: opponent.q(clean + d * std, opponent.policy(clean + d * std))


def least(
    value: Callable[[Float[Tensor, "B D"]], Float[Tensor, "E B"]], start: Float[Tensor, "B D"], limit: float
) -> Float[Tensor, "B D"]:
    """The adversary's d in [-limit, limit]: `STEPS` steps from `start` down the mean over E of value(d).

    A step is Adam's first, g / (|g| + 1e-8) times `STEP_SIZE` * limit. The way is so long that d can move by `limit`:
    from the far end it does not come to the other one. Rows do not depend on each other.
    """
    slope = grad(lambda d: value(d).mean(0).sum())
    d = start
    with torch.no_grad():
        for _ in range(STEPS):
            g = slope(d)
            d = (d - STEP_SIZE * limit * g / (g.abs() + 1e-8)).clamp(-limit, limit)
    return d


def _passed_on(dataset: Dataset, obs: Float[Tensor, "N O"], rows: Bool[Tensor, " N"]) -> Float[Tensor, "N O"]:
    """Successors, in which a corrupted observation stands in the row before it as well."""
    clean, next_obs = dataset.data, dataset.data.next_obs.clone()
    follows = (clean.next_obs[:-1] == clean.obs[1:]).all(1)  # row t + 1 begins where row t ends
    follows[dataset.ends[:-1] - 1] = False
    if len(dataset) > 1 and not follows.any():
        raise DeeprlError(f"{dataset.name}: no row begins where the one before ends: mode trajectory needs such rows")
    before = torch.nonzero(follows & rows[1:]).squeeze(1)
    next_obs[before] = obs[before + 1]
    return next_obs


def _sums(reward: Float[Tensor, " N"], dataset: Dataset) -> Float[Tensor, " E"]:
    episode = torch.bucketize(torch.arange(len(dataset)), dataset.ends, right=True)
    return torch.zeros(len(dataset.ends), dtype=torch.float64).index_add(0, episode, reward.to(torch.float64))


# --- files ---


def write_hdf5(made: Dataset | Corrupted, path: str | Path) -> None:
    """Write a dataset as `writers.save_dataset` does; a corrupted one with a group `corruption` beside it.

    In the group are the masks `rows/ELEMENT` [N] bool and the clean `std/ELEMENT` [D] (`read_corruption`).
    """
    if isinstance(made, Dataset):
        save_dataset(made, path)
        return
    kinds = {"rows": made.rows, "std": made.std}
    arrays = {f"corruption/{kind}/{name}": v.numpy() for kind, found in kinds.items() for name, v in found.items()}
    save_dataset(made.dataset, path, arrays)


def read_corruption(path: str | Path) -> dict[str, Any]:
    """What a file knows of its corruption: `protocol` (JSON), `rows` {element: bool [N]}, `std` {element: [D]}.

    Its row i is row i of the clean dataset. Raises DeeprlError for a file that `write_hdf5` has not written from a
    corrupted dataset.
    """
    try:
        with h5py.File(Path(path).expanduser(), "r") as file:
            group = file["corruption"]
            found = {kind: {k: v[()] for k, v in group.get(kind, {}).items()} for kind in ("rows", "std")}
            return {"protocol": json.loads(file.attrs["about"])["corruption"]} | found
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DeeprlError(f"{path}: no file of a corrupted dataset ({first_line(error)})") from error
