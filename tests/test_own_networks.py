"""Own networks as parts of an agent: their buffers and frozen parameters, how they start, what is refused at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import batch_of
from run_helpers import config
from torch import Tensor, nn

import deeprl
from deeprl import nets
from deeprl.core import rng
from deeprl.core.population import Execution, stack
from deeprl.core.spec import EnvSpec
from deeprl.errors import DeeprlError
from deeprl.nets import CriticEnsemble
from deeprl.online import dqn, sac, simba_v2, td3
from deeprl.run import checkpoint
from deeprl.run.own_networks import try_out, with_fixed

SPEC = EnvSpec((3,), 2, (-1.0,) * 2, (1.0,) * 2)
PENDULUM = EnvSpec((3,), 1, (-2.0,), (2.0,))
FEW: dict[str, Any] = {"steps": 45, "learning_starts": 30, "eval_episodes": 0}
FEW_RUN: dict[str, Any] = {"env": "Pendulum-v1", "learning_starts": 10, "batch_size": 4, "eval_episodes": 0}
FEW_RUN |= {"compile": "off", "threads": 1, "tensorboard": False}
OBS = np.array([1.0, 0.0, 0.5])


class Actor(nn.Module):
    """A frozen layer, a random projection, a mask with an infinite entry, a trained layer and log sigma of its own."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.encoder = nn.Linear(obs_dim, 4).requires_grad_(False)
        self.register_buffer("projection", torch.randn(obs_dim, 4))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)
        self.head = nn.Linear(8, action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), -1.0))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([torch.relu(self.encoder(obs)), obs @ self.projection], -1)
        mean = self.head(x) + torch.softmax(self.mask, -1)[1]
        return mean, self.log_std.expand_as(mean)


def make(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
    return Actor(spec.obs_dim, spec.action_dim), CriticEnsemble(spec.obs_dim, spec.action_dim, (8,))


def final(directory: Path) -> dict[str, Tensor]:
    found = checkpoint.load_checkpoint(directory / "checkpoints")
    assert found is not None
    return found[1]["agents"]


# --- they belong to the agent ---


def test_fixed_tensors_are_drawn_from_the_seed_alone_and_kept_apart_from_the_trained_ones() -> None:
    net = sac.build_net(SPEC, sac.Config(), make)
    torch.manual_seed(123)
    one = sac.init(net, sac.Config(), rng.key(5, "init"))
    torch.manual_seed(321)
    again, other = (sac.init(net, sac.Config(), rng.key(seed, "init")) for seed in (5, 6))
    assert set(one.fixed) == {"actor"}
    assert set(one.fixed["actor"]) == {"encoder.weight", "encoder.bias", "projection", "mask"}
    assert set(one.actor) == set(one.actor_moments.m) == {"head.weight", "head.bias", "log_std"}
    for name in ("projection", "encoder.weight"):
        assert torch.equal(one.fixed["actor"][name], again.fixed["actor"][name])
        assert not torch.equal(one.fixed["actor"][name], other.fixed["actor"][name])
    assert torch.equal(one.actor["head.weight"], again.actor["head.weight"])
    assert not torch.equal(one.actor["head.weight"], other.actor["head.weight"])
    assert one.actor["log_std"].tolist() == [-1.0, -1.0]  # a parameter without reset_parameters is as it was made


def test_own_networks_start_as_their_constructor_leaves_them() -> None:
    # Weights that were trained before, or an initialisation of one's own, are not drawn anew.
    def pretrained(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
        actor, critic = make(spec, settings)
        nn.init.constant_(actor.head.weight, 0.25)
        nn.init.constant_(actor.encoder.weight, 7.0)
        return actor, critic

    state = sac.init(sac.build_net(SPEC, sac.Config(), pretrained), sac.Config(), rng.key(5, "init"))
    assert bool((state.actor["head.weight"] == 0.25).all())
    assert bool((state.fixed["actor"]["encoder.weight"] == 7.0).all())


def test_fixed_tensors_of_a_trained_population_stay_are_saved_and_come_back(tmp_path: Path) -> None:
    run = sac.train(config(tmp_path / "run", seeds=(3, 4), snapshot_every=40, **FEW), net=make)
    first, last = (deeprl.load(run.directory, seed=4, net=make, step=s).modules()["actor"] for s in (40, 45))
    assert not torch.equal(first.head.weight, last.head.weight)
    assert torch.equal(first.encoder.weight, last.encoder.weight)
    assert not last.encoder.weight.requires_grad
    saved = final(run.directory)["state.fixed.actor.projection"]
    assert torch.equal(saved[1], last.projection)
    own = sac.init(sac.build_net(PENDULUM, sac.Config(), make), sac.Config(), rng.key(4, "init"))
    assert torch.equal(saved[1], own.fixed["actor"]["projection"])
    policies = [deeprl.load(run.directory, seed=4, net=make) for _ in range(2)]
    assert policies[0](OBS) == policies[1](OBS)
    mean, _ = policies[0].modules()["actor"](torch.tensor(OBS, dtype=torch.float32))
    assert policies[0](OBS) == pytest.approx(2.0 * torch.tanh(mean).detach().numpy())
    assert run.frozen == []  # the mask is infinite, and nobody diverged


def test_population_with_fixed_tensors_equals_single_runs_and_resumes_exactly(tmp_path: Path) -> None:
    together = sac.train(config(tmp_path / "both", seeds=(3, 4), backend="loop", **FEW), net=make)
    sac.train(config(tmp_path / "alone", seeds=(4,), backend="loop", **FEW), net=make)
    both, alone = final(together.directory), final(tmp_path / "alone")
    unequal = [k for k in alone if not torch.equal(both[k][1:], alone[k])]
    assert unequal == []
    cut = config(tmp_path / "cut", seeds=(3, 4), backend="loop", **FEW)
    sac.train(cut, net=make, callback=lambda run: run.step >= 40)
    sac.train(cut, net=make)
    resumed = final(tmp_path / "cut")
    assert [k for k in both if not torch.equal(both[k], resumed[k])] == []


def test_frozen_layers_of_simba_v2_get_no_projection_and_no_decay() -> None:
    # Rows of length 5 that an optimizer's step would take back to length 1.
    def own(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
        actor = nets.SimbaV2Actor(spec.obs_dim, spec.action_dim, 8)
        actor.encoder[0].linear.weight.data.mul_(5.0)
        actor.encoder[0].linear.weight.requires_grad_(False)
        return actor, nets.SimbaV2Critic(spec.obs_dim, spec.action_dim, 8, 1, 101, 2)

    settings = simba_v2.Config()
    net = simba_v2.build_net(SPEC, settings, own)
    state = simba_v2.init(net, settings, rng.key(0, "init"))
    new, _, _ = simba_v2.update(net, settings, state, batch_of(8), rng.key(0, "update"))
    name = "encoder.0.linear.weight"
    assert torch.equal(new.fixed["actor"][name], state.fixed["actor"][name])
    assert new.fixed["actor"][name].norm(dim=1).tolist() == pytest.approx([5.0] * 8)
    assert name not in new.actor
    assert not torch.equal(new.actor["encoder.1.expand.weight"], state.actor["encoder.1.expand.weight"])


def test_discrete_agents_keep_their_buffers() -> None:
    class Q(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.randperm(3))
            self.layer = nn.Linear(3, 2)

        def forward(self, obs: Tensor) -> Tensor:
            return self.layer(obs[..., self.order])

    net = dqn.build_net(EnvSpec((3,), 0, (), (), actions=2), dqn.Config(), lambda spec, settings: Q())
    state = dqn.init(net, dqn.Config(), rng.key(1, "init"))
    obs, first = torch.randn(5, 3), torch.zeros(5, dtype=torch.bool)
    turned, layer = obs[:, state.fixed["q"]["order"]], (state.params["layer.weight"], state.params["layer.bias"])
    values = nn.functional.linear(turned, *layer)
    action, _ = dqn.act(net, dqn.Config(), state, (), obs, first, rng.key(0, "eval"), explore=False)
    assert torch.equal(action, values.argmax(-1))


# --- checkpoints without them ---


def test_older_checkpoints_give_what_they_had_trained_and_the_constructors_constants() -> None:
    def constant(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
        actor, critic = make(spec, settings)
        actor.projection.fill_(2.0)
        return actor, critic

    net = sac.build_net(SPEC, sac.Config(), constant)
    state = stack([sac.init(net, sac.Config(), rng.key(seed, "init")) for seed in (0, 1)])
    trained = torch.ones(2, 4, 3)
    older = {"state.actor.encoder.weight": trained, "state.actor.encoder.bias": torch.ones(2, 4)}
    found = with_fixed(older, net, state.fixed, "state.")
    assert torch.equal(found["state.fixed.actor.encoder.weight"], trained)
    assert bool((found["state.fixed.actor.projection"] == 2.0).all())
    random = sac.build_net(SPEC, sac.Config(), make)
    with pytest.raises(DeeprlError, match=r"^net: projection of the actor is random, and the checkpoint does not"):
        with_fixed(older, random, state.fixed, "state.")


def older(agents: dict[str, Tensor], key: str, network: str) -> dict[str, Tensor]:
    """What an earlier version would have saved: a frozen parameter as if it were trained, and no fixed tensors."""
    value = agents[f"state.fixed.{network}.{key}"]
    places = network, f"{network}_moments.m", f"{network}_moments.v"
    kept = {name: leaf for name, leaf in agents.items() if not name.startswith("state.fixed.")}
    return kept | {f"state.{place}.{key}": torch.full_like(value, 3.0) for place in places}


class Frozen(nn.Module):
    """An actor with a frozen layer, a constant buffer where there is to be one, and as many layers between."""

    def __init__(self, layers: int = 1, width: int = 4, scale: bool = False):
        super().__init__()
        self.encoder = nn.Linear(3, 4).requires_grad_(False)
        self.middle = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))
        self.scale = 1.0
        if scale:
            del self.scale
            self.register_buffer("scale", torch.full((), 2.0))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(obs)
        for layer in self.middle:
            x = torch.relu(layer(x))
        mean, log_std = (self.head(x) * self.scale).chunk(2, -1)
        return mean, log_std.clamp(-5.0, 2.0)


def frozen(spec: EnvSpec, settings: Any, **other: Any) -> tuple[nn.Module, nn.Module]:
    return Frozen(**other), CriticEnsemble(spec.obs_dim, spec.action_dim, (8,))


def test_checkpoints_in_which_frozen_layers_had_been_trained_load_and_resume(tmp_path: Path) -> None:
    """The layer is that of the checkpoint; what was kept for its training is left out."""
    out = tmp_path / "run"
    deeprl.train("sac", net=frozen, **FEW_RUN | {"steps": 40}, out=str(out))
    step, content = checkpoint.load_checkpoint(out / "checkpoints") or (0, {})
    content["agents"] = older(content["agents"], "encoder.weight", "actor")
    content["agents"] |= {"state.actor.encoder.bias": torch.zeros(1, 4)}
    checkpoint.save(out / "checkpoints", step, content)
    weight = deeprl.load(out, net=frozen).modules()["actor"].encoder.weight
    assert bool((weight == 3.0).all())
    deeprl.train("sac", net=frozen, **FEW_RUN | {"steps": 40}, out=str(out))  # goes on, and is at its end


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"layers": 0}, "left over: actor.middle.0.weight, actor.middle.0.bias, actor_moments.m.middle.0.weight and 3"),
        ({"layers": 2}, "missing there: actor.middle.1.weight, actor.middle.1.bias, actor_moments.m.middle.1.weight"),
        ({"width": 8}, "of another shape: actor.head.0.weight, actor.head.0.bias, actor.head.1.weight and 6 more"),
        ({"scale": True}, "missing there: fixed.actor.scale"),
    ],
)
def test_networks_that_are_not_those_of_the_checkpoint_are_refused(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """By `load`, by `load_population` of a snapshot, and where the run goes on; in both directions."""
    out = tmp_path / "run"

    def changed(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
        return frozen(spec, settings, **other)

    changed.__qualname__, changed.__module__ = frozen.__qualname__, frozen.__module__
    few = FEW_RUN | {"steps": 40, "snapshot_every": 20}
    deeprl.train("sac", net=frozen, callback=lambda run: run.step >= 30, **few, out=str(out))
    loads: list[Callable[[], Any]] = [
        lambda: deeprl.load(out, net=changed),
        lambda: deeprl.api.load_population(out, net=changed, step=20),
    ]
    with pytest.raises(DeeprlError, match="net"):
        deeprl.train("sac", net=changed, **few, out=str(out))
    for load in loads:
        with pytest.raises(DeeprlError) as error:
            load()
        assert f"these networks do not fit the checkpoint ({said}" in str(error.value)
        assert "\n" not in str(error.value)


# --- what is refused at the start ---


class Impure(nn.Module):
    kind: ClassVar[str] = ""
    count = 0

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.body, self.head = nn.Linear(obs_dim, 8), nn.Linear(8, 2 * action_dim)
        if self.kind == "gru":
            self.rnn = nn.GRU(8, 8, batch_first=True)
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.shift = np.random.default_rng().random() if self.kind == "number" else 0.0
        if self.kind == "numpy":
            self.head.weight.data.fill_(np.random.default_rng().random())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "in place":
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        if self.kind == "assigned":
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        h = torch.relu(self.body(x - self.mean + self.shift))
        if self.kind == "dropout":
            h = nn.functional.dropout(h, 0.5, self.training)
        if self.kind == "noise":
            h = h + 0.1 * torch.randn(8)
        if self.kind == "counter":
            self.count += 1
            h = h * self.count
        if self.kind == "gru":
            h = self.rnn(h[:, None])[0][:, 0]
        if self.kind == "branch" and h.sum() <= 1:
            h = h + 1
        mean, log_std = self.head(h).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)


def tried(kind: str, execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Impure, "kind", kind)

    def own(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
        return Impure(spec.obs_dim, spec.action_dim), CriticEnsemble(spec.obs_dim, spec.action_dim, (8,))

    net = sac.build_net(SPEC, sac.Config(), own)
    try_out(net, stack([sac.init(net, sac.Config(), rng.key(s, "init")) for s in (0, 1)]), execution)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dropout", r"the actor \(Impure\) gives another output at a second call: it draws random numbers"),
        ("noise", "gives another output at a second call"),
        ("counter", "gives another output at a second call"),
        ("in place", "changes its mean when it is called"),
        ("assigned", "changes its mean when it is called"),
        ("numpy", "head.weight of the actor differs from call to call: draw from torch's generator"),
        ("number", "shift of the actor is random, but would not be saved: use register_buffer"),
    ],
)
def test_impure_networks_are_refused_on_both_backends(
    kind: str, message: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeeprlError, match=f"^net: .*{message}"):
        tried(kind, Execution(backend), monkeypatch)


@pytest.mark.parametrize("kind", ["gru", "branch"])
def test_what_cannot_be_vectorised_is_refused_by_vmap_and_taken_by_loop(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DeeprlError, match=r"^net: the actor \(Impure\) cannot be run for a population .*--backend loop"
    ):
        tried(kind, Execution("vmap"), monkeypatch)
    tried(kind, Execution("loop"), monkeypatch)


@pytest.mark.compiled
def test_what_cannot_be_compiled_is_refused_before_a_compiled_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeeprlError, match=r"^net: the actor \(Impure\) cannot be compiled .*--compile off"):
        tried("branch", Execution("loop", compile=True), monkeypatch)
    tried("", Execution("vmap", compile=True), monkeypatch)


def test_a_run_with_impure_networks_ends_before_its_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impure, "kind", "noise")
    with pytest.raises(DeeprlError, match="gives another output"):
        sac.train(config(tmp_path / "run"), net=lambda spec, c: (Impure(3, 1), CriticEnsemble(3, 1, (8,))))
    assert not (tmp_path / "run").exists()


def shared(spec: EnvSpec, settings: Any) -> tuple[nn.Module, nn.Module]:
    body = nn.Linear(5, 5)
    return nn.Sequential(body, nn.Linear(5, 2)), nn.Sequential(nn.ReLU(), body)


CACHED = nn.Linear(3, 2), CriticEnsemble(3, 2, (8,))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (shared, "^net: actor and critic share 1.weight, but each is trained by its own loss: give each a copy"),
        (
            lambda spec, settings: (nn.LazyLinear(2), CriticEnsemble(3, 2, (8,))),
            "^net: weight of the actor has no sizes yet",
        ),
        (
            lambda spec, settings: (nn.Linear(3, 2).requires_grad_(False), CriticEnsemble(3, 2, (8,))),
            "^net: no parameter of the actor is to be trained",
        ),
    ],
)
def test_networks_that_cannot_be_agents_are_refused(own: Callable[..., Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=message):
        td3.build_net(SPEC, td3.Config(), own)


def test_the_same_modules_at_every_call_are_refused() -> None:
    net = td3.build_net(SPEC, td3.Config(), lambda spec, settings: CACHED)
    state = stack([td3.init(net, td3.Config(), rng.key(0, "init"))])
    with pytest.raises(DeeprlError, match=r"^net: returns the same actor at every call: build new modules"):
        try_out(net, state, Execution())


# --- threads ---


def test_agents_made_in_two_threads_at_once_start_as_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    net = sac.build_net(SPEC, sac.Config(hidden=(64, 64)))
    alone = [sac.init(net, sac.Config(), rng.key(seed, "init")) for seed in range(24)]
    found: dict[int, Any] = {}

    def work(seeds: range) -> None:
        for seed in seeds:
            found[seed] = sac.init(net, sac.Config(), rng.key(seed, "init"))

    threads = [threading.Thread(target=work, args=(range(i, 24, 3),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, state in enumerate(alone):
        assert torch.equal(state.actor["trunk.0.weight"], found[seed].actor["trunk.0.weight"]), seed
    assert torch.equal(torch.random.get_rng_state(), before)  # the program's own generator
