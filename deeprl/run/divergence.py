"""Diverged agents: frozen for data or parameters that are not finite, and recorded with step and cause.

`population.freezing` stops an agent, within the compiled update, at the first metric that is not finite. Here is what
the host sees beside that: observations, actions and rewards (`PopulationEnvs.pop_faults`) at every step, and the whole
state of every agent when a row is logged and at the end, at steps that no interruption moves. All is per agent: no
other agent's numbers change. An agent that is frozen goes on acting, with the parameters that it has kept, and is
evaluated like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deeprl.core.population import Agents, cause_code, cause_name
from deeprl.core.tree import flatten

# member, seed, update (the first that it did not take), step (at which it was noticed), cause
Record = dict[str, Any]

_DATA = ("observation", "reward")  # what no parameter is to blame for


def freeze(agents: Agents, faults: Mapping[int, str]) -> None:
    """Freeze members, {member: cause}, in place before their next update; those frozen already stay as they are."""
    for member, cause in faults.items():
        if agents.frozen_at[member] < 0:
            agents.frozen_at[member] = agents.state.step[member]
            agents.cause[member] = cause_code(cause)


def look(agents: Agents) -> None:
    """Freeze, in place, the agents with a leaf of the state that is not finite; its name is their cause.

    Also of those that a metric or an action froze, which only followed from it.
    """
    leaves = {name: leaf for name, leaf in flatten(agents.state).items() if leaf.is_floating_point()}
    leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("fixed.")}  # a mask may be infinite
    if torch.stack([leaf.sum() for leaf in leaves.values()]).isfinite().all():  # much faster than what follows
        return
    finite = torch.stack([leaf.isfinite().reshape(len(leaf), -1).all(1) for leaf in leaves.values()])
    names = list(leaves)
    data = {cause_code(cause) for cause in _DATA}
    for member in (~finite.all(0)).nonzero().flatten().tolist():
        if int(agents.cause[member]) not in data:
            cause = f"parameter {names[finite[:, member].tolist().index(False)]}"
            freeze(agents, {member: cause})
            agents.cause[member] = cause_code(cause)  # also of one that was frozen before


def found(agents: Agents, seeds: Sequence[int], step: int, known: Sequence[Record]) -> list[Record]:
    """What is to be said of agents that have been frozen, `look` included, and are not known yet.

    step: the steps of each agent so far.
    """
    look(agents)
    members = {record["member"] for record in known}
    frozen_at, cause = agents.frozen_at.tolist(), agents.cause.tolist()
    return [
        {"member": i, "seed": seed, "update": frozen_at[i], "step": step, "cause": cause_name(cause[i])}
        for i, seed in enumerate(seeds)
        if frozen_at[i] >= 0 and i not in members
    ]


def causes(agents: Agents) -> list[str]:
    """The names of the causes of all frozen agents, for `know` in the session that goes on from here."""
    return [cause_name(code) for code in agents.cause.tolist() if code >= 0]


def know(names: Sequence[str]) -> None:
    """Learn the names of causes that an earlier session recorded."""
    for name in names:
        cause_code(name)


def sentence(record: Record) -> str:
    """A record as a line for the log."""
    step, update = record["step"], record["update"]
    seen_at_once = f"step {step}, before update {update}"
    when = seen_at_once if record["cause"] in _DATA else f"update {update}, noticed at step {step}"
    who = f"seed {record['seed']} (member {record['member']})"
    return f"{who} diverged: {record['cause']} was not finite at {when}; it is frozen, the others go on"
