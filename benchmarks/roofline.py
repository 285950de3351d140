"""How near an update comes to the rate at which the machine multiplies matrices: part of benchmarks/speed.py.

python benchmarks/speed.py --agents 8 --what loop,update --roofline benchmarks/results/roofline.csv

flops_per_update            floating-point operations of the matrix products and convolutions of one agent's update,
                            counted by PyTorch while it runs once, eagerly (2 for a multiplication and an addition;
                            elementwise work is not counted). Of an update that comes in kinds, the mean.
matmul_flops_per_s          what the same launch mode reaches in products alone (matmul.py), measured in turn
                            with the others, in the same precision.
ceiling_updates_per_s       matmul_flops_per_s / flops_per_update: no implementation with these products passes it.
fraction                    updates_per_s / ceiling_updates_per_s within each round, then the median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from speed_rows import Rounds, Row, conditions, rates, span
from speed_tasks import OFFLINE, task
from speed_worker import make_config

COLUMNS = ["algorithm", "env", "agents", "variant", "includes", "flops_per_update", "updates_per_s", "flops_per_s"]
COLUMNS += ["matmul_flops_per_s", "ceiling_updates_per_s", "fraction", "cores", "threads", "precision", "device"]
COLUMNS += ["versions", "command"]
KEY = ("algorithm", "env", "agents", "variant", "precision", "device")


def count_flops(function: Any, *args: Any, **kwargs: Any) -> int:
    """Operations of the matrix products and convolutions in one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


def flops_per_update(args: argparse.Namespace) -> float:
    """Of one agent, with the settings that deeprl's worker takes from the same command line."""
    kind = task(args.algorithm, args.env, args.size)
    single = argparse.Namespace(**vars(args) | {"agents": 1, "seed": 0, "threads": 1, "device": "cpu"})
    with tempfile.TemporaryDirectory() as out:
        return update_flops(args.algorithm, make_config(single, kind, out))


def update_flops(algorithm: str, config: Any) -> float:
    """Of one agent with these settings."""
    import torch

    from deeprl.api import algorithm_module
    from deeprl.core import rng
    from deeprl.core.spec import Batch
    from deeprl.data.datasets import load_dataset
    from deeprl.envs.make import make_env
    from deeprl.envs.spaces import env_spec

    module = algorithm_module(algorithm)
    if algorithm in OFFLINE:
        spec = load_dataset(config.dataset, outline=True).spec
    else:
        env = make_env(config.env)
        spec = env_spec(env)
        env.close()
    size = config.batch_size
    obs = torch.zeros(size, *spec.obs_shape, dtype=getattr(torch, spec.obs_dtype))
    action = torch.zeros(size, dtype=torch.int64) if spec.discrete else torch.zeros(size, spec.action_dim)
    batch = Batch(obs, action, torch.zeros(size), torch.zeros(size), obs.clone())
    net = module.build_net(spec, config)
    state = module.init(net, config, rng.key(0, "init"))
    if algorithm == "dqn":
        return count_flops(module.update, net, config, state, batch)
    key = rng.key(0, "update")
    if algorithm == "td3":
        some, every = (count_flops(module.update, net, config, state, batch, key, policy=p) for p in (False, True))
        return some + (every - some) / config.policy_delay
    return count_flops(module.update, net, config, state, batch, key)


def table(args: argparse.Namespace, rounds: Rounds, flops: float) -> list[Row]:
    """A row of each mode of deeprl for which products were measured in the same launch mode."""
    ceilings = {mode.processes: mode for mode in rounds if mode.library == "matmul"}
    rows = []
    for mode in rounds:
        if mode.library != "deeprl" or mode.processes not in ceilings:
            continue
        first = rounds[mode][0]
        updates = [rate / mode.every for rate in rates(rounds, mode)]
        products = [result["flops_per_s"] for result in rounds[ceilings[mode.processes]]]
        fractions = [u * flops / p for u, p in zip(updates, products, strict=True)]
        extent = f"fraction: median of {len(fractions)} rounds of {args.seconds:g} s, range {span(fractions, '.3f')}"
        rows.append(
            {
                "algorithm": args.algorithm,
                "env": args.env,
                "agents": str(mode.agents),
                "variant": mode.name,
                "includes": f"{first['includes']}; {extent}",
                "flops_per_update": f"{flops:.0f}",
                "updates_per_s": f"{statistics.median(updates):.1f}",
                "flops_per_s": f"{statistics.median(updates) * flops:.4g}",
                "matmul_flops_per_s": f"{statistics.median(products):.4g}",
                "ceiling_updates_per_s": f"{statistics.median(products) / flops:.1f}",
                "fraction": f"{statistics.median(fractions):.3f}",
            }
            | conditions(args, mode, first, first["versions"])
        )
    return rows


def sentence(one: Row) -> str:
    """A row in words."""
    flops, products = (float(one[name]) / 1e9 for name in ("flops_per_update", "matmul_flops_per_s"))
    return (
        f"{one['variant']}, {one['agents']} agents: {flops:.4g} GFLOP an update, matrix products at {products:.4g}"
        f" GFLOP/s: at most {one['ceiling_updates_per_s']} updates/s; {one['updates_per_s']} is"
        f" {float(one['fraction']):.0%} of it"
    )
