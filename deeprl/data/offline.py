"""What offline algorithms share: settings, and the datasets of a population on its device.

Each dataset is held once, however many agents learn from it; the rows of all of them lie one after the other, and every
agent draws its own from its part of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeprl.config import PerAgentText, RunConfig, per_agent, positive
from deeprl.core.spec import Batch, EnvSpec
from deeprl.data.datasets import Dataset, dataset_name, peek
from deeprl.data.rewards import Rewards, reward_recipe
from deeprl.data.source import Known
from deeprl.errors import DeeprlError
from deeprl.replay import Stored

Normalize = Literal["off", "obs", "both"]


@dataclass(frozen=True)
class DatasetConfig(RunConfig):
    """Datasets of a run, and how its agents see them."""

    dataset: PerAgentText = per_agent("")
    """File (.hdf5, .h5, .npz) or Minari id: one for all agents, or one for each entry of `seeds`."""
    clip_actions: bool = False
    """Clip actions beyond the environment's bounds; otherwise a dataset that has some is refused."""
    normalize_obs: Normalize = "off"
    """Centre and scale observations by the dataset's mean and standard deviation + 0.001, those of its observations
    (`obs`, TD3+BC) or of its observations and next observations together (`both`, RIQL)."""
    rewards: Rewards = "as-is"
    """`return-range`: times 1000 / (best - worst return of a complete episode), IQL on locomotion; `minus-one`: r - 1,
    IQL on AntMaze; `cql-antmaze`: 4 (r - 0.5), CQL on AntMaze; `calql-antmaze` and `calql-adroit`: 10 r - 5 and
    10 r + 5, Cal-QL; `times-100`: 100 r, ReBRAC on AntMaze; `standardize`: centred and scaled to deviation 1."""

    def datasets(self) -> list[str]:
        """The datasets of this population, each named once."""
        named = self.dataset if isinstance(self.dataset, tuple) else (self.dataset,)
        return list(dict.fromkeys(named))

    def shared_bytes(self) -> int:
        """Of all datasets; of several the largest one twice, as each is read before it is copied into its place."""
        sizes = [peek(source).bytes for source in self.datasets() if source]
        return sum(sizes) + (max(sizes) if len(sizes) > 1 else 0)


@dataclass(frozen=True)
class OfflineConfig(DatasetConfig):
    """One run of agents that learn from datasets and act only to be evaluated."""

    env: str = ""
    """Where the agents are evaluated; default: what the dataset names."""
    batch_size: int = positive(256)
    """Transitions in each update."""

    @property
    def task(self) -> str:
        names = [dataset_name(source) for source in self.datasets()]
        return names[0] if len(names) == 1 else f"{len(names)} datasets"


class Facts(NamedTuple):
    """Numbers of a dataset that its agents keep: how they see its observations and rewards.

    obs -> (obs - obs_mean) / obs_std, all [O]; reward -> reward_scale * reward + reward_shift, 0-d.
    """

    obs_mean: Float[Tensor, " O"]
    obs_std: Float[Tensor, " O"]
    reward_scale: Float[Tensor, ""]
    reward_shift: Float[Tensor, ""]

    def see(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """Observations as the networks see them."""
        return (obs - self.obs_mean) / self.obs_std

    def value(self, reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Rewards as the critics learn them."""
        return self.reward_scale * reward + self.reward_shift

    def batch(self, batch: Batch) -> Batch:
        """Transitions as the networks see and the critics learn them."""
        seen = {"obs": self.see(batch.obs), "next_obs": self.see(batch.next_obs)}
        return batch._replace(reward=self.value(batch.reward), **seen)


def no_facts(spec: EnvSpec) -> Facts:
    """Observations and rewards as they are."""
    zeros, ones = torch.zeros(spec.obs_shape), torch.ones(spec.obs_shape)
    return Facts(zeros, ones, torch.ones(()), torch.zeros(()))


def facts_of(dataset: Dataset, normalize_obs: Normalize, rewards: Rewards) -> Facts:
    """The facts of one dataset. Raises DeeprlError for rewards or returns that are all equal and cannot be scaled."""
    facts = no_facts(dataset.spec)
    if len(dataset) == 0:  # an outline
        return facts
    if normalize_obs != "off":
        columns = (dataset.data.obs, dataset.data.next_obs)[: 2 if normalize_obs == "both" else 1]
        mean, std = moments_of(columns)
        facts = facts._replace(obs_mean=mean, obs_std=std + 1e-3)
    scale, shift = reward_recipe(dataset, rewards)
    return facts._replace(reward_scale=torch.tensor(scale), reward_shift=torch.tensor(shift))


def moments_of(columns: Sequence[Float[Tensor, "N O"]]) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Mean and standard deviation of the rows of several arrays together, in float64 blocks, as float32."""
    count = sum(len(column) for column in columns)
    blocks = [block for column in columns for block in column.split(2**16)]
    mean = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / count
    variance = torch.stack([(block - mean).square().sum(0) for block in blocks]).sum(0) / count
    return mean.to(torch.float32), variance.sqrt().to(torch.float32)


def returns_to_go(
    reward: Float[Tensor, " N"], ends: Int[Tensor, " E"], discount: float, sparse: bool = False
) -> Float[Tensor, " N"]:
    """What an episode still brings from each row on: G_t = r_t + discount * G_t+1, with the last row's own reward.

    ends: as in `Dataset`. Nothing is added behind an episode that was cut, by a time limit or where a recording stops:
    there G is less than the policy that was recorded would get where rewards are positive, and more where they are
    negative. Hence sparse (nakamotoo/Cal-QL): an episode that never gets more than the lowest reward of all has failed,
    and would have gone on to: r / (1 - discount) in all of its rows. Their returns on Kitchen, where every episode's
    last reward goes on for ever, are not offered.
    """
    lengths = ends.diff(prepend=ends.new_zeros(1))
    left = ends.int().repeat_interleave(lengths).sub_(torch.arange(len(reward), dtype=torch.int32))  # rows to the end
    returns, reach, longest = reward.to(torch.float64, copy=True), 1, int(lengths.max()) if len(ends) else 0
    while reach < longest:  # so far each is the sum of the next `reach` rewards
        further = returns[reach:] * discount**reach
        returns[:-reach] += further.mul_(left[:-reach] > reach)
        reach *= 2
    found = returns.to(reward.dtype)
    if not sparse:
        return found
    episode = torch.bucketize(torch.arange(len(reward)), ends, right=True)
    best = torch.full((len(ends),), -torch.inf, dtype=reward.dtype).scatter_reduce(0, episode, reward, "amax")
    lowest = reward.min()
    return torch.where((best == lowest)[episode], lowest / (1.0 - discount), found)


def next_actions(data: Stored, row: Int[Tensor, " B"]) -> Float[Tensor, "B A"]:
    """What the data did after these rows of datasets: the action of the next row of the same episode.

    NaN in an episode's last row: the row that follows is of another episode, or of another dataset.
    """
    ends = data.terminated[row] | data.truncated[row]
    return torch.where(ends.unsqueeze(-1), torch.nan, data.action[row + (~ends).to(row.dtype)])


class _Part(NamedTuple):
    """One dataset among the rows of all: where its rows begin, how many there are, and what is known of them."""

    start: int
    size: int
    facts: Facts
    ends: Int[Tensor, " E"]
    digest: str


class OfflineData:
    """The datasets of a population on its device, each read when its turn comes and copied into its place.

    datasets: pairs of a name in `config.dataset` and what it names. rows: how many they have together, or more, if they
    are several. sources: of each name, what a run keeps of it (`data.source`).
    arrays: the rows of all of them, one dataset after the other. Agent i learns from the size[i] rows from first[i] on
    (both [S] int64). facts: those of each agent's dataset. spec: what they are recorded in.
    """

    def __init__(
        self,
        datasets: Iterable[tuple[str, Dataset]],
        rows: int,
        config: DatasetConfig,
        device: str,
        sources: Known | None = None,
    ):
        self.sources: Known = sources or {}
        self._parts: dict[str, _Part] = {}
        alone, start = len(config.datasets()) == 1, 0
        for source, dataset in datasets:
            if alone:
                self.arrays = Stored(*(own.to(device) for own in dataset.data))
            elif not self._parts:
                self.arrays = Stored(*(own.new_empty((rows, *own.shape[1:]), device=device) for own in dataset.data))
            if not alone:
                for whole, own in zip(self.arrays, dataset.data, strict=True):
                    whole[start : start + len(dataset)].copy_(own)
            facts = facts_of(dataset, config.normalize_obs, config.rewards)
            self._parts[source] = _Part(start, len(dataset), facts, dataset.ends, dataset.digest())
            self.spec, start = dataset.spec, start + len(dataset)
        self.arrays = Stored(*(whole[:start] for whole in self.arrays))
        self._mine = [self._parts[config.member(i).datasets()[0]] for i in range(len(config.seeds))]
        self.first: Int[Tensor, " S"] = torch.tensor([part.start for part in self._mine], device=device)
        self.size: Int[Tensor, " S"] = torch.tensor([part.size for part in self._mine], device=device)
        self.facts = [part.facts for part in self._mine]

    def returns_to_go(
        self, discounts: Sequence[float], sparse: bool = False, facts: Sequence[Facts] = ()
    ) -> tuple[Float[Tensor, " M"], Int[Tensor, " S"]]:
        """`returns_to_go` of the rows, with the rewards as critics learn them: row j of agent i's has first[i] + j.

        discounts: one for each agent, or none for no returns at all. facts: of each agent, where its rewards are scaled
        otherwise. Agents with the same dataset, discount and scale share theirs.
        """
        parts: list[Tensor] = [torch.zeros(0)]
        places: dict[tuple[float, ...], int] = {}
        first = []
        for i, (part, discount) in enumerate(zip(self._mine, discounts, strict=False)):
            own = facts[i] if facts else part.facts
            place = part.start, discount, float(own.reward_scale), float(own.reward_shift)
            if place not in places:
                places[place] = sum(map(len, parts))
                reward = own.value(self.arrays.reward[part.start : part.start + part.size].cpu())
                parts.append(returns_to_go(reward, part.ends, discount, sparse))
            first.append(places[place])
        start = torch.tensor(first or [0] * len(self.facts), device=self.first.device)
        return torch.cat(parts).to(self.arrays.reward.device), start

    def state_dict(self) -> dict[str, Any]:
        """Which data these are, not the data."""
        return {"digests": {source: part.digest for source, part in self._parts.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raise DeeprlError unless the datasets are those of `saved`, whatever they were called there."""
        before = list(dict.fromkeys(saved["digests"].values()))
        here = {part.digest: source for source, part in self._parts.items()}
        if before != list(here):
            changed = next((source for digest, source in here.items() if digest not in before), "the dataset")
            raise DeeprlError(f"{changed} is not what it was when this run began; choose another --out")


def best_episodes(dataset: Dataset, share: float) -> Dataset:
    """The share of the complete episodes with the highest returns, at least one, in the order of their recording.

    Where no episode is complete, of all.
    """
    whole = dataset.complete.nonzero().squeeze(1) if dataset.complete.any() else torch.arange(len(dataset.ends))
    count = max(1, int(share * len(whole)))
    chosen = whole[dataset.whole_returns.argsort(descending=True, stable=True)[:count]].sort().values
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), dataset.ends[:-1]])
    rows = torch.cat([torch.arange(int(starts[i]), int(dataset.ends[i])) for i in chosen])
    data = Stored(*(array[rows] for array in dataset.data))
    ends, returns = (dataset.ends - starts)[chosen].cumsum(0), dataset.returns[chosen]
    return dataclasses.replace(dataset, data=data, ends=ends, returns=returns, complete=dataset.complete[chosen])
