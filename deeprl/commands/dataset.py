"""`deeprl dataset ...`: what the command line does with datasets. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from deeprl.errors import DeeprlError
from deeprl.run.progress import show

if TYPE_CHECKING:
    from deeprl.data.datasets import Dataset

_KINDS = """kinds:
  random         uniformly random actions
  medium         the policy whose return is nearest to a third of the way from random actions to the expert
  expert         the policy of the highest return
  medium-expert  medium, then expert, half of the transitions each
  medium-replay  equal shares of all policies whose return is not above the medium one's
  full-replay    equal shares of all policies

examples:
  deeprl dataset create hopper/random-v0 --env Hopper-v5 --kind random --steps 100_000
  deeprl dataset create sac.hdf5 --run runs/demo/sac/Pendulum-v1 --kind expert --steps 100_000
  deeprl dataset create hopper/medium-v0 --env Hopper-v4 --kind medium --policy trpo_hopper.npz --steps 200_000
"""


def add_commands(commands: Any) -> None:
    """Add the group `dataset` to the subparsers of the command line."""
    text = "make datasets of transitions, download them, corrupt them, look at them"
    group = commands.add_parser("dataset", help=text, description=text)
    inner = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_info(inner)
    _add_create(inner)
    _add_corrupt(inner)
    _add_download(inner)


def _add_info(commands: Any) -> None:
    text = "check a dataset, and tell its returns, its coverage and its problems"
    info = commands.add_parser("info", help=text, description=text)
    info.add_argument("source", help="a file .npz, .hdf5 or .h5 of D4RL's layout, or the id of a local Minari dataset")
    _add_reading(info)
    info.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    from deeprl.data.info import describe

    print(describe(_read(options)))
    return 0


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How a dataset is read."""
    option = command.add_argument
    option("--env", default="", help="the environment, where the dataset names none or another is wanted")
    option("--env-kwargs", metavar="JSON", help="arguments of the environment, instead of those that the dataset names")
    option("--wrappers", nargs="+", default=[], metavar="MODULE:CLASS", help="what the environment is wrapped in")
    option("--clip-actions", action="store_true", help="clip actions beyond the bounds instead of refusing them")


def _read(options: argparse.Namespace) -> Dataset:
    from deeprl.data.datasets import load_dataset

    env_kwargs = None if options.env_kwargs is None else _kwargs(options.env_kwargs)
    return load_dataset(options.source, options.env, env_kwargs, options.clip_actions, wrappers=options.wrappers)


def _kwargs(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DeeprlError(f"--env-kwargs: expected a JSON object, not {text}")
    return found


def _add_create(commands: Any) -> None:
    text = "make a dataset from trained agents or from policies in files, in the manner of D4RL"
    create = commands.add_parser(
        "create", help=text, description=text, epilog=_KINDS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    create.set_defaults(run=_create)
    option = create.add_argument
    option("target", metavar="ID_OR_FILE", help="a Minari id such as hopper/medium-v0, or FILE.hdf5 for D4RL's layout")
    option("--env", default="", help="environment id (default: that of --run)")
    option("--env-kwargs", default="{}", metavar="JSON", help="arguments of the environment")
    option("--kind", required=True, help="what stands below")
    option("--policy", action="append", default=[], metavar="FILE", help="a .npz file of a policy; may be repeated")
    option("--run", action="append", default=[], dest="runs", metavar="RUN_DIR", help="a run; may be repeated")
    option("--agent-seed", type=int, metavar="S", help="of the runs, only agents of this seed")
    option("--medium", default="", metavar="NAME", help="the medium policy: 500 of a file, seed_0_step_5000 of a run")
    option("--expert", default="", metavar="NAME", help="the expert policy (default for both: by measured returns)")
    option("--mean-action", action="store_true", help="act without the noise of the policies")
    option("--steps", type=int, required=True, help="transitions")
    option("--seed", type=int, default=0, help="of all randomness (default 0)")


def _create(options: argparse.Namespace) -> int:
    from deeprl.make_data.collect import Request, create

    request = Request(
        options.target,
        options.env,
        options.kind,
        options.steps,
        options.seed,
        tuple(options.policy),
        tuple(options.runs),
        options.agent_seed,
        options.medium,
        options.expert,
        options.mean_action,
        _kwargs(options.env_kwargs),
    )
    summary = create(request)
    show(f"policies: {', '.join(summary.sources)}")
    show(str(summary))
    return 0


def _add_corrupt(commands: Any) -> None:
    text = "corrupt a dataset as the RIQL paper does (arXiv 2310.12955), and remember where"
    corrupt = commands.add_parser("corrupt", help=text, description=text)
    corrupt.set_defaults(run=_corrupt)
    option = corrupt.add_argument
    option("source", help="a clean dataset: a file, or the id of a local Minari dataset")
    option("out", metavar="OUT.hdf5", help="the file to write, which must not be there yet")
    option("--attack", default="random", help="random (default) or adversarial")
    option(
        "--element", action="append", default=[], dest="elements", metavar="NAME",
        help="observation, action, reward or dynamics; may be repeated",
    )  # fmt: skip
    option("--rate", type=float, default=0.3, help="probability of each row (default 0.3)")
    option("--scale", type=float, default=1.0, help="size in standard deviations (default 1)")
    option("--mode", default="transition", help="transition (default) or trajectory: a state changes in both its rows")
    option("--seed", type=int, default=0, help="of all randomness (default 0)")
    option("--adversary", metavar="RUN_DIR", help="a run of edac on the clean dataset, for adversarial attacks")
    option("--adversary-member", type=int, metavar="N", help="which agent of that run (default 0)")
    option("--device", help="where the adversary computes: cpu (default), cuda, cuda:N or auto")
    _add_reading(corrupt)


def _corrupt(options: argparse.Namespace) -> int:
    from deeprl.make_data.adversary import load_adversary
    from deeprl.make_data.corruption import corrupt, write_hdf5
    from deeprl.make_data.writers import check_file

    check_file(options.out)
    for name in ("adversary_member", "device"):
        if options.adversary is None and getattr(options, name) is not None:
            raise DeeprlError(f"--{name.replace('_', '-')}: does nothing without --adversary")
    dataset, device = _read(options), options.device or "cpu"
    adversary = None
    if options.adversary is not None:
        adversary = load_adversary(options.adversary, dataset, options.adversary_member or 0, device)
    how = (options.attack, options.elements, options.rate, options.scale, options.mode, options.seed)
    made = corrupt(dataset, *how, adversary=adversary, device=device)
    write_hdf5(made, options.out)
    shares = ", ".join(f"{element} of {int(rows.sum()):,}" for element, rows in made.rows.items())
    show(f"{options.out}: {shares} of {len(dataset):,} rows corrupted")
    return 0


def _add_download(commands: Any) -> None:
    text = "download a dataset of Minari's server (needs huggingface_hub)"
    download = commands.add_parser("download", help=text, description=text)
    download.set_defaults(run=_download)
    download.add_argument("id", help="such as D4RL/door/human-v2; it comes below MINARI_DATASETS_PATH, or ~/.minari")


def _download(options: argparse.Namespace) -> int:
    from deeprl.data.minari import download

    show(f"{options.id}: {download(options.id)}")
    return 0
