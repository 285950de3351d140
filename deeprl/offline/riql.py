"""Robust IQL (RIQL), offline, for a population of agents: implicit Q-learning for datasets with corrupted rows.

Yang et al. 2024, "Towards Robust Offline Reinforcement Learning under Diverse Data Corruption", arXiv 2310.12955.

    q(s, a) = the alpha-quantile over K target critics Q'_k(s, a), linear between two of them              (Eq. 11)
    value loss = mean |tau - 1(u < 0)| u^2,  u = q(s, a) - V(s)                                             (Eq. 10)
    td_target = clip(r + discount * V(s'), -100, 1000)
    critic loss = mean_k mean l(Q_k(s, a) - td_target),  l(d) = d^2 / (2 h) if |d| < h else |d| - h / 2       (Eq. 9)
    actor loss = mean min(exp(beta (q(s, a) - V(s))), 100) |pi(s) - a|^2                                   (Eq. 12)

with observations normalised by the corrupted data's own mean and deviation, and Huber's threshold h = 1 / sigma^2. The
targets and the policy see V as it was before this step. The paper's three changes to IQL are normalisation, Huber's
loss and a quantile of K critics in place of the minimum of two. `--normalize-obs off`, `--huber-threshold 1000` and
`--quantile 0 --critics 2` take them back: the IQL that the paper compares with, but for the clip of targets and the
critics' initial weights (there torch's). (A threshold beyond some thousands divides gradients down to Adam's epsilon,
and nothing is learned.) `iql.py` is IQL as its own authors have it: targets and policy see the new V, and layers start
orthogonal but for a deterministic policy's.

Differences from the authors' code (YangRui2015/RIQL): none in losses, order, layers, initial weights, optimizers or the
cosine decay of the policy's learning rate. Their settings of each attack are recipes, such as `hopper-random-dynamics`.
Left out is their option of a Gaussian policy, which they report to be slightly worse.

Metrics: value_loss, actor_loss, critic_loss (mean over critics), q, v, advantage, spread (standard deviation over the
target critics), means over the batch; gradients' norms of the three networks.

    python -m deeprl.offline.riql --dataset hopper-medium-replay-dynamics.hdf5 --recipe hopper-random-dynamics
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, Normalize, OfflineConfig, no_facts
from deeprl.nets import functional_call
from deeprl.offline.iql import Net, lr_share, value_loss
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OfflineConfig):
    """RIQL. Defaults: YangRui2015/RIQL, RIQL.py and RIQL_config.py (clean data), which trains 3M steps."""

    normalize_obs: Normalize = "both"

    # --- learning ---
    expectile: PerAgent = per_agent(0.7)
    """tau of the paper: 0.5 is the mean over the data's actions, 1 the best of them."""
    temperature: PerAgent = per_agent(3.0, 0.0, 1000.0)
    """beta of the paper, the inverse temperature: 0 is behaviour cloning."""
    quantile: PerAgent = per_agent(0.25)
    """alpha of the paper: which quantile of the target critics; 0 is their minimum."""
    huber_threshold: PerAgent = per_agent(1.0, 1e-6, 1e6)
    """h, the error from which on the critics' loss is linear; 1 / sigma^2 in the paper's terms."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    value_lr: PerAgent = per_agent(3e-4)  # learning rate of the value V
    actor_lr_decay: bool = True
    """Cosine decay of the policy's learning rate to 0 at the last step."""
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    # --- networks ---
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(5)  # K

    def over_all_steps(self) -> list[str]:
        """As there."""
        return ["actor_lr_decay"] if self.actor_lr_decay else []


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, critics and value of the authors' code: two ReLU layers of 256 each.

    actor(obs [B, O]) -> action [B, A] in [-1, 1]. critic(obs, action) -> qs [E, B]. value(obs) -> [B, 1].
    """
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics, "corl-ensemble")
    value = nets.MLP(spec.obs_dim, config.hidden, 1)
    return nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden), critic, value


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    kinds: dict[str, Any] = {"actor": "deterministic", "critic": 0, "value": True}
    (actor, critic, value), remake = build_networks("riql", make_net, spec, config, custom, device, **kinds)
    return Net(actor, critic, value, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    value: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    value_moments: Moments
    facts: Facts
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    return learning.new_state(State, net, key, config.hparams(), facts=facts or no_facts(net.spec))


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """The policy's actions in [-1, 1], whether exploring or not."""
    net = nets.bound(net, state.fixed)
    return nets.act_deterministic(net.actor, state.actor, state.facts.see(obs)), carry


def quantile_of(qs: Float[Tensor, "E B"], share: Scalar) -> Float[Tensor, " B"]:
    """The quantile over the first axis, linear between the two values next to it, as `torch.quantile`'s."""
    place = share * (len(qs) - 1)
    weight = (1.0 - (torch.arange(len(qs), device=qs.device) - place).abs()).clamp(min=0.0)
    return (weight.to(qs.dtype).unsqueeze(-1) * qs.sort(0).values).sum(0)  # a matrix product would round under bf16


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"], threshold: Scalar) -> Scalar:
    """Huber's loss to the target, divided by its threshold, averaged over the critics (Eq. 9)."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    error = (qs - td_target).abs()
    return torch.where(error < threshold, 0.5 * error.square() / threshold, error - 0.5 * threshold).mean()


def actor_loss(actor: Params, net: Net, batch: Batch, weight: Float[Tensor, " B"]) -> Scalar:
    """Advantage-weighted regression onto the data's actions, summed over their entries (Eq. 12)."""
    action = functional_call(net.actor, actor, (batch.obs,)).to(weight.dtype)
    return (weight * (action - batch.action).square().sum(-1)).mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the value, the critics and the policy, and one soft update of the targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    obs, next_obs = batch.obs, batch.next_obs
    qs = functional_call(net.critic, state.target_critic, (obs, batch.action)).to(batch.reward.dtype)
    q = quantile_of(qs, h["quantile"])
    next_v = functional_call(net.value, state.value, (next_obs,)).squeeze(-1).to(q.dtype)

    value = descend(value_loss, state.value, state.value_moments, h["value_lr"], net, obs, q, h["expectile"])

    td_target, threshold = (batch.reward + batch.discount * next_v).clamp(-100.0, 1000.0), h["huber_threshold"]
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], net, batch, td_target, threshold)

    advantage, actor_lr = q - value.aux, h["actor_lr"] * lr_share(config, state)
    weight = torch.exp(h["temperature"] * advantage).clamp(max=100.0)
    actor = descend(actor_loss, state.actor, state.actor_moments, actor_lr, net, batch, weight)

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        value=value.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        value_moments=value.moments,
        step=state.step + 1,
    )
    metrics = {"value_loss": value.loss, "actor_loss": actor.loss, "critic_loss": critic.loss, "q": q.mean()}
    metrics |= {"v": value.aux.mean(), "advantage": advantage.mean(), "spread": qs.std(0, correction=0).mean()}
    norms = {"value": value, "actor": actor, "critic": critic}
    return new, metrics | {f"{name}_grad_norm": step.grad_norm for name, step in norms.items()}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("riql", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        learner = agents.learner(update)
        while run.running():
            for i in agents.updates_due():
                agents.learn(learner, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("riql")
