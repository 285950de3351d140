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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import grad, grad_and_value

from deeprl import nets, rng
from deeprl.config import PerAgent, PerAgentOrAuto, per_agent
from deeprl.custom import check_critic, make_modules, output_shape
from deeprl.data.offline import Facts, OfflineConfig, no_facts, open_data
from deeprl.errors import DeeprlError
from deeprl.evaluate import greedy_policy
from deeprl.nets import functional_call
from deeprl.optim import Moments, adam, global_norm, init_moments, polyak
from deeprl.population import freezing, new_agents, over_agents
from deeprl.replay import Stored
from deeprl.run import Callback, Run
from deeprl.samplers import sample
from deeprl.spaces import require
from deeprl.spec import Batch, EnvSpec, Metrics, Params


@dataclass(frozen=True)
class Config(OfflineConfig):
    """EDAC. Defaults: snu-mllab/EDAC, scripts/sac.py."""

    steps: int = 3_000_000
    """Gradient steps of each agent."""
    # --- learning ---
    eta: PerAgent = per_agent(1.0)
    """Weight of the critics' diversity; 0 is SAC-N, which beside agents of other values costs as much as they do."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    target_entropy: PerAgentOrAuto = per_agent("auto")
    """In nats of the normalised action; `auto` is -A."""
    # --- networks ---
    hidden: tuple[int, ...] = (256, 256, 256)  # units of each hidden layer, in all networks
    critics: int = 10  # targets and the policy take their minimum

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("critics")
        for name in ("actor_lr", "critic_lr", "alpha_lr", "discount", "tau"):
            self.require_within(name, 0.0, 1.0)
        self.require_within("eta", 0.0, 1e6)
        self.require_within("target_entropy", -1e6, 1e6)
        self.require_layers("hidden")
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
    critics: int
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


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
    require("edac", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    obs, action = torch.zeros(3, *spec.obs_shape), torch.zeros(3, spec.action_dim)
    if (shapes := output_shape(actor, obs)) != [(3, spec.action_dim)] * 2:
        raise DeeprlError(f"net: the actor must return mean and log_std of {(3, spec.action_dim)} each, not {shapes}")
    check_critic(critic, spec)
    critics = output_shape(critic, obs, action)[0]
    if config.diversified:
        each = output_shape(_PerCritic(critic), *(x.expand(critics, -1, -1) for x in (obs, action)))
        if each != (critics, 3):
            raise DeeprlError(f"net: the critic must return {(critics, 3)} for inputs of each critic, not {each}")
    return Net(actor.to(device), critic.to(device), critics, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Float[Tensor, ""]
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    facts: Facts
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    (actor, critic), fixed = nets.init_networks(net, ("actor", "critic"), rng.bits(key, (2,)).tolist())
    hparams = config.scalars("eta", "actor_lr", "critic_lr", "alpha_lr", "discount", "tau")
    automatic = config.target_entropy == "auto"
    hparams |= {"target_entropy": -float(net.spec.action_dim)} if automatic else config.scalars("target_entropy")
    log_alpha = torch.zeros(())
    return State(
        actor=actor,
        critic=critic,
        target_critic={k: p.clone() for k, p in critic.items()},
        log_alpha=log_alpha,
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        alpha_moments=init_moments({"log_alpha": log_alpha}),
        facts=facts or no_facts(net.spec),
        hparams={k: torch.tensor(v) for k, v in hparams.items()},
        step=torch.zeros((), dtype=torch.int64),
        fixed=fixed,
    )


def policy(
    net: Net, params: Params, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """A sampled action in [-1, 1] and its log probability."""
    mean, log_std = (x.to(obs.dtype) for x in functional_call(net.actor, params, (obs,)))  # bf16 under autocast
    noise = rng.normal(key, mean.shape, mean.dtype)
    pre_tanh = mean + torch.exp(log_std) * noise
    return torch.tanh(pre_tanh), nets.tanh_normal_log_prob(noise, log_std, pre_tanh)


def act(
    net: Net,
    config: Config,
    state: State,
    carry: tuple[()],
    obs: Float[Tensor, "N O"],
    is_first: Bool[Tensor, " N"],
    key: rng.Key,
    *,
    explore: bool,
) -> tuple[Float[Tensor, "N A"], tuple[()]]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net = nets.bound(net, state.fixed)
    seen = state.facts.see(obs)
    if explore:
        return policy(net, state.actor, seen, key)[0], carry
    return torch.tanh(functional_call(net.actor, state.actor, (seen,))[0].to(obs.dtype)), carry


def alpha_loss(
    log_alpha: Float[Tensor, ""], log_prob: Float[Tensor, ""], target_entropy: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Raises the temperature where the entropy is below its target. log_prob: mean over the batch."""
    return -log_alpha * (log_prob + target_entropy)


def actor_loss(
    actor: Params, net: Net, critic: Params, alpha: Float[Tensor, ""], obs: Float[Tensor, "B O"], key: rng.Key
) -> Float[Tensor, ""]:
    """Entropy-regularised value of the policy's own actions by the most pessimistic critic, negated."""
    action, log_prob = policy(net, actor, obs, key)
    q = functional_call(net.critic, critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean()


def action_slopes(critic: Params, net: Net, batch: Batch) -> tuple[Float[Tensor, "E B A"], Float[Tensor, "E B"]]:
    """grad_a Q_i(s, a) of every critic at the data's actions, in one pass back; and Q_i(s, a)."""
    obs, action = (x.expand(net.critics, -1, -1) for x in (batch.obs, batch.action))

    def total(action: Float[Tensor, "E B A"]) -> tuple[Float[Tensor, ""], Float[Tensor, "E B"]]:
        qs = functional_call(net.critic, critic, (obs, action), {"per_critic": True}).to(batch.reward.dtype)
        return qs.sum(), qs

    slopes, qs = grad(total, has_aux=True)(action)
    return slopes, qs


def alignment(slopes: Float[Tensor, "E B A"]) -> Float[Tensor, ""]:
    """ES: cosines of the slopes of all ordered pairs of critics, summed, by E - 1; mean over the batch."""
    unit = slopes / (torch.linalg.vector_norm(slopes, dim=-1, keepdim=True) + 1e-10)
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))
    return pairs.mean() / (len(slopes) - 1)


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"], eta: Float[Tensor, ""] | None
) -> tuple[Float[Tensor, ""], Metrics]:
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

    # --- temperature ---
    log_prob = policy(net, state.actor, batch.obs, actor_key)[1].mean()
    slope = grad(alpha_loss)(state.log_alpha, log_prob, h["target_entropy"])
    temperature, alpha_moments = adam(
        {"log_alpha": state.log_alpha}, {"log_alpha": slope}, state.alpha_moments, h["alpha_lr"]
    )
    alpha = temperature["log_alpha"].exp()

    # --- actor ---
    a_grads, a_loss = grad_and_value(actor_loss)(state.actor, net, state.critic, alpha, batch.obs, actor_key)
    actor, actor_moments = adam(state.actor, a_grads, state.actor_moments, h["actor_lr"])

    # --- critics ---
    next_action, next_log_prob = policy(net, actor, batch.next_obs, next_key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    next_q = next_q.to(batch.reward.dtype).amin(0)
    td_target = batch.reward + batch.discount * (next_q - alpha * next_log_prob)
    eta = h["eta"] if config.diversified else None
    c_grads, (_, metrics) = grad_and_value(critic_loss, has_aux=True)(state.critic, net, batch, td_target, eta)
    critic, critic_moments = adam(state.critic, c_grads, state.critic_moments, h["critic_lr"])

    new = state._replace(
        actor=actor,
        critic=critic,
        target_critic=polyak(state.target_critic, critic, h["tau"]),
        log_alpha=temperature["log_alpha"],
        actor_moments=actor_moments,
        critic_moments=critic_moments,
        alpha_moments=alpha_moments,
        step=state.step + 1,
    )
    metrics |= {"actor_loss": a_loss, "entropy": -log_prob, "alpha": alpha}
    return new, metrics | {"actor_grad_norm": global_norm(a_grads), "critic_grad_norm": global_norm(c_grads)}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    with Run("edac", config, config.steps * len(config.seeds), net, callback) as run:
        data = open_data(run)
        device = run.execution.device
        modules = build_net(data.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        states = [init(modules, config.member(i), key, data.facts[i]) for i, key in enumerate(keys)]
        agents = new_agents(states, device)
        run.restore(net=modules, agents=agents, data=data)

        learn = over_agents(freezing(learner(modules, config)), run.execution, shared=(1,), donate=True)
        greedy = greedy_policy(functools.partial(act, modules, config, explore=False), agents.state, run.execution)
        metrics: Metrics = {}

        run.evaluate(greedy)  # if the session before was stopped in it
        while run.running():
            run.advance()
            for i in run.updates_due(1.0, after=0):
                sample_key, update_key = run.keys("sample", i), run.keys("update", i)
                metrics, _ = learn(agents, data.arrays, data.first, data.size, sample_key, update_key)
            run.end_step(metrics, greedy)
    return run


def learner(net: Net, config: Config) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, compiled together."""

    def learn(
        state: State, data: Stored, first: Tensor, size: Tensor, sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams["discount"], first)
        return update(net, config, state, batch, update_key)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("edac")
