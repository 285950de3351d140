"""SAC, TD3 and DQN in the usual script style: the peer that stands for single-file libraries.

    python benchmarks/eager.py eager --algorithm sac --seconds 20 --threads 2

One environment, `nn.Module`s, `torch.optim.Adam`, `.backward()`, a replay buffer of NumPy arrays, no compilation.
`eager-medium` is the same after `torch.set_float32_matmul_precision("medium")`. Written from the papers named in
deeprl's own files, with the settings of speed_tasks.py; its numbers are those of stopwatch.py, its turns those of
peers.py.
"""

from __future__ import annotations

from stopwatch import Stopwatch, parse, say, versions  # first: it reads the clock

import argparse  # isort: skip
import contextlib
import copy
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from speed_tasks import CLIP, EPSILON, LEARNING_STARTS, POLICY_DELAY, TARGET_EVERY, Task, includes, task
from torch import Tensor, nn
from torch.nn import functional

GAMMA, TAU = 0.99, 0.005
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
PACKAGES = ("torch", "gymnasium", "mujoco", "minatar", "numpy")


class Buffer:
    """A ring of transitions."""

    def __init__(self, env: gym.Env, size: int, device: str):
        obs, action = env.observation_space, env.action_space
        assert obs.shape is not None
        assert action.shape is not None
        self.device, self.size = device, size
        self.obs = np.zeros((size, *obs.shape), obs.dtype if obs.dtype == np.bool_ else np.float32)
        self.next_obs = np.zeros_like(self.obs)
        self.action = np.zeros((size, *action.shape), np.float32 if action.shape else np.int64)
        self.reward = np.zeros(size, np.float32)
        self.terminated = np.zeros(size, np.float32)
        self.added = 0

    def add(self, obs: Any, action: Any, reward: float, terminated: bool, next_obs: Any) -> None:
        row = self.added % self.size
        self.obs[row], self.action[row], self.reward[row] = obs, action, reward
        self.terminated[row], self.next_obs[row] = terminated, next_obs
        self.added += 1

    def sample(self, count: int) -> list[Tensor]:
        rows = np.random.randint(0, min(self.added, self.size), count)
        arrays = (self.obs, self.action, self.reward, self.terminated, self.next_obs)
        return [torch.as_tensor(array[rows], device=self.device) for array in arrays]


class Agent(Protocol):
    def act(self, obs: Any) -> Any: ...

    def update(self, batch: list[Tensor]) -> None: ...


def layers(*units: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(units):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Critic(nn.Module):
    def __init__(self, obs: int, actions: int, hidden: tuple[int, ...]):
        super().__init__()
        self.layers = layers(obs + actions, *hidden, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([obs, action], 1)).squeeze(-1)


def move(target: nn.Module, online: nn.Module) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.data.copy_(TAU * new.data + (1 - TAU) * old.data)


class Policy(nn.Module):
    """SAC's: a Gaussian through tanh."""

    def __init__(self, obs: int, actions: int, hidden: tuple[int, ...]):
        super().__init__()
        self.torso = nn.Sequential(layers(obs, *hidden), nn.ReLU())
        self.mean, self.log_std = nn.Linear(hidden[-1], actions), nn.Linear(hidden[-1], actions)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """An action and its log probability."""
        x = self.torso(obs)
        normal = torch.distributions.Normal(self.mean(x), self.log_std(x).clamp(LOG_STD_MIN, LOG_STD_MAX).exp())
        u = normal.rsample()
        slope = 2 * (math.log(2) - u - functional.softplus(-2 * u))  # log of tanh's derivative
        return torch.tanh(u), (normal.log_prob(u) - slope).sum(1)


class SAC:
    def __init__(self, env: gym.Env, kind: Task, device: str):
        sizes = (env.observation_space.shape[0], env.action_space.shape[0], kind.hidden)  # type: ignore[index]
        self.device = device
        self.policy = Policy(*sizes).to(device)
        self.critics = nn.ModuleList(Critic(*sizes) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.zeros(1, requires_grad=True, device=device)
        self.target_entropy = -float(sizes[1])
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), kind.lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), kind.lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], kind.lr)

    def act(self, obs: Any) -> Any:
        with torch.no_grad():
            return self.policy(torch.as_tensor(obs[None], dtype=torch.float32, device=self.device))[0][0].cpu().numpy()

    def update(self, batch: list[Tensor]) -> None:
        obs, action, reward, terminated, next_obs = batch
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_action, next_log_prob = self.policy(next_obs)
            next_q = torch.minimum(*(q(next_obs, next_action) for q in self.targets))
            target = reward + GAMMA * (1 - terminated) * (next_q - alpha * next_log_prob)
        loss: Tensor = sum(0.5 * functional.mse_loss(q(obs, action), target) for q in self.critics)  # type: ignore
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()

        new, log_prob = self.policy(obs)
        policy_loss = (alpha * log_prob - torch.minimum(*(q(obs, new) for q in self.critics))).mean()
        self.policy_optimizer.zero_grad()
        policy_loss.backward()
        self.policy_optimizer.step()

        alpha_loss = (-self.log_alpha.exp() * (log_prob.detach() + self.target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        move(self.targets, self.critics)


class TD3:
    def __init__(self, env: gym.Env, kind: Task, device: str):
        obs, actions = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
        self.device, self.updates = device, 0
        self.policy = nn.Sequential(layers(obs, *kind.hidden, actions), nn.Tanh()).to(device)
        self.critics = nn.ModuleList(Critic(obs, actions, kind.hidden) for _ in range(2)).to(device)
        self.target_policy, self.targets = copy.deepcopy(self.policy), copy.deepcopy(self.critics)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), kind.lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), kind.lr)

    def act(self, obs: Any) -> Any:
        with torch.no_grad():
            action = self.policy(torch.as_tensor(obs[None], dtype=torch.float32, device=self.device))[0]
            return (action + 0.1 * torch.randn_like(action)).clamp(-1, 1).cpu().numpy()

    def update(self, batch: list[Tensor]) -> None:
        obs, action, reward, terminated, next_obs = batch
        self.updates += 1
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            next_action = (self.target_policy(next_obs) + noise).clamp(-1, 1)
            next_q = torch.minimum(*(q(next_obs, next_action) for q in self.targets))
            target = reward + GAMMA * (1 - terminated) * next_q
        loss: Tensor = sum(functional.mse_loss(q(obs, action), target) for q in self.critics)  # type: ignore
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        if self.updates % POLICY_DELAY == 0:
            policy_loss = -self.critics[0](obs, self.policy(obs)).mean()
            self.policy_optimizer.zero_grad()
            policy_loss.backward()
            self.policy_optimizer.step()
            move(self.target_policy, self.policy)
            move(self.targets, self.critics)


class Channels(nn.Module):
    """Boolean images [B, H, W, C] as floats [B, C, H, W]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).movedim(-1, 1)


class DQN:
    def __init__(self, env: gym.Env, kind: Task, device: str):
        shape, self.actions = env.observation_space.shape, int(env.action_space.n)  # type: ignore[attr-defined]
        assert shape is not None
        self.device = device
        if kind.minatar:
            torso: Iterable[nn.Module] = (Channels(), nn.Conv2d(shape[2], 16, 3), nn.ReLU(), nn.Flatten())
            features = (shape[0] - 2) * (shape[1] - 2) * 16
        else:
            torso, features = (), shape[0]
        self.q = nn.Sequential(*torso, layers(features, *kind.hidden, self.actions)).to(device)
        self.target = copy.deepcopy(self.q)
        self.optimizer = torch.optim.Adam(self.q.parameters(), kind.lr)

    def act(self, obs: Any) -> Any:
        if np.random.random() < EPSILON:
            return np.random.randint(self.actions)
        with torch.no_grad():
            return int(self.q(torch.as_tensor(obs[None], device=self.device)).argmax(1).item())

    def update(self, batch: list[Tensor]) -> None:
        obs, action, reward, terminated, next_obs = batch
        with torch.no_grad():
            target = reward + GAMMA * (1 - terminated) * self.target(next_obs).max(1).values
        q = self.q(obs).gather(1, action[:, None]).squeeze(1)
        loss = functional.smooth_l1_loss(q, target)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q.parameters(), CLIP)
        self.optimizer.step()

    def copy_target(self) -> None:
        self.target.load_state_dict(self.q.state_dict())


AGENTS: dict[str, Callable[[gym.Env, Task, str], Agent]] = {"sac": SAC, "td3": TD3, "dqn": DQN}


def make_env(kind: Task) -> gym.Env:
    if kind.minatar:
        import minatar.gym

        minatar.gym.register_envs()
    return gym.wrappers.RecordEpisodeStatistics(gym.make(kind.env))


def train(args: argparse.Namespace, kind: Task, env: gym.Env, watch: Stopwatch) -> None:
    """The loop, until the window of the watch is over; with `--what update`, updates alone after the random steps."""
    buffer, agent = Buffer(env, kind.buffer, args.device), AGENTS[args.algorithm](env, kind, args.device)
    env.action_space.seed(args.seed)
    obs, _ = env.reset(seed=args.seed)
    steps = updates = 0
    alone = args.what == "update"
    while not (alone and steps == LEARNING_STARTS):
        action = env.action_space.sample() if steps < LEARNING_STARTS else agent.act(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(obs, action, float(reward), terminated, next_obs)
        obs = env.reset()[0] if terminated or truncated else next_obs
        steps += 1
        if steps > LEARNING_STARTS and (steps - LEARNING_STARTS) % args.every == 0:
            agent.update(buffer.sample(kind.batch))
            updates += 1
        if isinstance(agent, DQN) and steps % TARGET_EVERY == 0:
            agent.copy_target()
        if not alone and watch.tick(steps, updates):
            return
    while not watch.tick(updates, updates):
        agent.update(buffer.sample(kind.batch))
        updates += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("eager", "eager-medium"))
    args = parse(parser)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium" if args.peer == "eager-medium" else "highest")
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    kind = task(args.algorithm, args.env, args.size)
    env = make_env(kind)
    loop = args.what == "loop"
    sync = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    warm_at = args.warmup_steps + (LEARNING_STARTS if loop else 0)
    watch = Stopwatch(warm_at, args.seconds, args.wait, sync, 1 / args.every if loop else 1.0)
    with contextlib.redirect_stdout(sys.stderr):
        train(args, kind, env, watch)
    about = {
        "peer": args.peer,
        "agents": 1,
        "threads": args.threads,
        "device": args.device,
        "precision": "float32, matmul medium" if args.peer == "eager-medium" else "float32",
        "versions": versions(PACKAGES),
        "includes": includes(args.algorithm, kind, args.what, args.every, "no log"),
    }
    say(json.dumps(about | watch.result()))


if __name__ == "__main__":
    main()
