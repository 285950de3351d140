"""SAC-N and EDAC, offline, for a population of agents: SAC with the minimum of many critics, kept from agreeing.

An et al. 2021, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", arXiv 2110.01548.

    temperature loss = -log alpha * mean(log pi(a | s) + target_entropy)
    actor loss = mean(alpha log pi(a | s) - min_i Q_i(s, a)),  a ~ pi(. | s) reparameterised
    td_target = reward + discount * (min_i Q'_i(s', a') - alpha log pi(a' | s')),  a' ~ pi(. | s')
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2 + eta * ES                                             (Alg. 1)
    ES = mean 1 / (N - 1) sum_{i != j} cos(grad_a Q_i(s, a), grad_a Q_j(s, a)), at the data's actions

in this order: the policy sees the new alpha, the critics both, the targets Q' move last. eta = 0 is SAC-N: pessimism by
the number N of critics alone. The policy is SAC's, a Gaussian squashed by tanh, evaluated at its mode; one sample of it
serves temperature and policy. The sum over pairs is |sum_i u_i|^2 - sum_i |u_i|^2 of the unit slopes u_i.

Differences from the authors' code (snu-mllab/EDAC):
- They take all gradients at the same parameters, with the old alpha; one after the other is how CORL and RIQL do it.
- Their target critics start from weights of their own, here from those of the critics, which start as theirs do.
- The policy's head starts from U(-0.001, 0.001) there, 0.003 here, and its first layer from 1 / sqrt(units) there,
  1 / sqrt(inputs) here.
- Their density has 1e-6 inside the logarithm of tanh's slope.
- Their maximum over ten next actions (`max_q_backup`, on pen-cloned) is left out.

Their critics and eta: halfcheetah and walker2d 10 and 1 (medium-expert 10 and 5), hopper 50 and 1; pen-human 20 and
1000 with --rewards standardize, actor_lr and alpha_lr 3e-5, 200k steps. SAC-N's critics: halfcheetah 10, walker2d 20,
hopper 200 to 500.

Metrics: critic_loss (without eta ES, summed over critics), diversity (ES; not in SAC-N), q (mean over critics, at the
data's actions), actor_loss, entropy (mean -log pi in [-1, 1]^A), alpha, gradients' norms of policy and critics.

    python -m deeprl.offline.edac --dataset halfcheetah_medium-v2.hdf5 --seeds 0-3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad

from deeprl import nets
from deeprl.config import PerAgent, PerAgentOrAuto, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, OfflineConfig, no_facts
from deeprl.errors import DeeprlError
from deeprl.nets import functional_call, sample_tanh_normal
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks, output_shape


@dataclass(frozen=True)
class Config(OfflineConfig):
    """EDAC. Defaults: snu-mllab/EDAC, scripts/sac.py."""

    steps: int = 3_000_000
    """Gradient steps of each agent."""
    # --- learning ---
    eta: PerAgent = per_agent(1.0, 0.0, 1e6)
    """Weight of the critics' diversity; 0 is SAC-N, which beside agents of other values costs as much as they do."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of the normalised action; `auto` is -A."""
    # --- networks ---
    hidden: tuple[int, ...] = layers(256, 256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(10)  # targets and the policy take their minimum

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diversified and self.critics < 2:
            raise DeeprlError(f"critics: at least 2 can differ, not {self.critics}; eta 0 needs no more than one")

    @property
    def diversified(self) -> bool:
        """Whether any agent of the population has an eta above 0."""
        return any(v > 0.0 for v in (self.eta if isinstance(self.eta, tuple) else (self.eta,)))


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> qs [E, B]; where eta is above 0
    also critic(obs [E, B, O], action [E, B, A], per_critic=True), one batch for each critic. critics: E.
    """

    actor: nn.Module
    critic: nn.Module
    spec: EnvSpec
    remake: nets.Remake
    critics: int


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """Policy and critics of the authors' code: three ReLU layers of 256 each, small heads."""
    sizes = spec.obs_dim, spec.action_dim, config.hidden
    actor = nets.TanhGaussianActor(*sizes, log_std_range=(-5.0, 2.0), start="small-head")
    return actor, nets.CriticEnsemble(*sizes, config.critics, start="small-head")


class _PerCritic(nn.Module):
    """Critics as they are called with a batch for each of them: what own networks are tried as."""

    def __init__(self, critic: nn.Module):
        super().__init__()
        self.critic = critic

    def forward(self, obs: Float[Tensor, "E B O"], action: Float[Tensor, "E B A"]) -> Any:
        return self.critic(obs, action, per_critic=True)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "edac", make_net, spec, config, custom, device, actor="tanh_normal", critic=0
    )
    inputs = (torch.zeros(3, *spec.obs_shape, device=device), torch.zeros(3, spec.action_dim, device=device))
    critics = output_shape(critic, *inputs)[0]
    if config.diversified:
        each = output_shape(_PerCritic(critic), *(x.expand(critics, -1, -1) for x in inputs))
        if each != (critics, 3):
            raise DeeprlError(f"net: the critic must return {(critics, 3)} for inputs of each critic, not {each}")
    return Net(actor, critic, spec, remake, critics)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Scalar
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    facts: Facts
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    hparams, own = config.hparams(target_entropy=-float(net.spec.action_dim)), facts or no_facts(net.spec)
    return learning.new_state(State, net, key, hparams, facts=own, log_alpha=torch.zeros(()))


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net, seen = nets.bound(net, state.fixed), state.facts.see(obs)
    return nets.act_tanh_normal(net.actor, state.actor, seen, key, explore), carry


def alpha_loss(log_alpha: Scalar, log_prob: Scalar, target_entropy: Scalar) -> Scalar:
    """Raises the temperature where the entropy is below its target. log_prob: mean over the batch."""
    return -log_alpha * (log_prob + target_entropy)


def actor_loss(
    actor: Params, net: Net, critic: Params, alpha: Scalar, obs: Float[Tensor, "B O"], key: rng.Key
) -> Scalar:
    """Entropy-regularised value of the policy's own actions by the most pessimistic critic, negated."""
    action, log_prob = sample_tanh_normal(net.actor, actor, obs, key)
    q = functional_call(net.critic, critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean()


def action_slopes(critic: Params, net: Net, batch: Batch) -> tuple[Float[Tensor, "E B A"], Float[Tensor, "E B"]]:
    """grad_a Q_i(s, a) of every critic at the data's actions, in one pass back; and Q_i(s, a)."""
    obs, action = (x.expand(net.critics, -1, -1) for x in (batch.obs, batch.action))

    def total(action: Float[Tensor, "E B A"]) -> tuple[Scalar, Float[Tensor, "E B"]]:
        qs = functional_call(net.critic, critic, (obs, action), {"per_critic": True}).to(batch.reward.dtype)
        return qs.sum(), qs

    slopes, qs = grad(total, has_aux=True)(action)
    return slopes, qs


def alignment(slopes: Float[Tensor, "E B A"]) -> Scalar:
    """ES: cosines of the slopes of all ordered pairs of critics, summed, by E - 1; mean over the batch."""
    unit = slopes / (torch.linalg.vector_norm(slopes, dim=-1, keepdim=True) + 1e-10)
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))
    return pairs.mean() / (len(slopes) - 1)


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"], eta: Scalar | None
) -> tuple[Scalar, Metrics]:
    """Squared error to the target, summed over the critics, and eta ES; None leaves that out."""
    if eta is None:
        qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    else:
        slopes, qs = action_slopes(critic, net, batch)
    td_loss = (qs - td_target).square().mean(-1).sum()
    metrics = {"critic_loss": td_loss, "q": qs.mean()}
    if eta is None:
        return td_loss, metrics
    metrics["diversity"] = alignment(slopes)
    return td_loss + eta * metrics["diversity"], metrics


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of temperature, policy and critics, and one soft update of the targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    actor_key, next_key = rng.split(key, 2)

    log_prob = sample_tanh_normal(net.actor, state.actor, batch.obs, actor_key)[1].mean()
    entropy = (log_prob, h["target_entropy"])
    temperature = descend(alpha_loss, state.log_alpha, state.alpha_moments, h["alpha_lr"], *entropy)
    alpha = temperature.params.exp()

    policy = (net, state.critic, alpha, batch.obs, actor_key)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy)

    next_action, next_log_prob = sample_tanh_normal(net.actor, actor.params, batch.next_obs, next_key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    next_q = next_q.to(batch.reward.dtype).amin(0)
    td_target = batch.reward + batch.discount * (next_q - alpha * next_log_prob)
    values = (net, batch, td_target, h["eta"] if config.diversified else None)
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], *values)

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        log_alpha=temperature.params,
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        alpha_moments=temperature.moments,
        step=state.step + 1,
    )
    metrics = critic.aux | {"actor_loss": actor.loss, "entropy": -log_prob, "alpha": alpha}
    return new, metrics | {"actor_grad_norm": actor.grad_norm, "critic_grad_norm": critic.grad_norm}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("edac", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        learner = agents.learner(update)
        while run.running():
            for i in agents.updates_due():
                agents.learn(learner, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("edac")
