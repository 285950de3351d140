"""The report of a sweep: statistics over seeds, learning curves, one HTML page that needs nothing from the net.

    deeprl report DIR [--published FILE]

Every number is explained on the page itself (`METHOD`); the statistics are those of `deeprl.reporting.stats`.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.envs.units import repeats
from deeprl.reporting.cells import Cell
from deeprl.reporting.curves import figure, read_published
from deeprl.reporting.frequency import drawn_by_period, score, steady
from deeprl.reporting.read import Pairs, RunRecord, group, read_runs, unit_name
from deeprl.reporting.record import write_record
from deeprl.reporting.remarks import remarks
from deeprl.reporting.stats import bootstrap_interval, iqm, mean_interval
from deeprl.run.targets import begin_report

Rows = list[dict[str, Any]]

METHOD = (
    "The value of a seed is the mean return over the episodes of the last evaluation of its agent (the one at the "
    "largest step): the final policy, never the best one.",
    "A cell holds agents that differ in their seed alone: algorithm, environment or dataset, networks and all settings "
    "are the same, whichever runs they were trained in. Its settings are those that tell it from the others here; its "
    "key in summary.csv stands for all of them. How they were executed (threads, compiling, device) and versions may "
    "differ; a note names cells of several versions.",
    "Mean: over the seeds of a cell, with a 95 % Student t interval; std is the sample standard deviation (n - 1) over "
    "seeds. With one seed there is no interval.",
    "IQM: interquartile mean, floor(n / 4) seeds cut from each end; below four seeds it is the mean. Its interval is "
    "the 95 % percentile bootstrap over seeds (50,000 resamples, seed 0; Agarwal et al. 2021). Below about 10 seeds "
    "that interval is too narrow: go by the t interval (Colas et al. 2018).",
    "Curves: thick line, mean over seeds at the steps that all seeds of the cell have reached; band, its 95 % Student "
    "t interval at each step; thin lines, single seeds, which are all that is drawn where no step is common to them. "
    "Steps are those of one agent: in the simulator, where a repeated action is several; decisions in Atari games; of "
    "the gradient for agents that learn from a dataset. Published curves are grey, with the same interval over their "
    "seeds, in the unit of ours.",
    "Agents that began from others which had learned offline: left of zero is what these had recorded until they were "
    "taken over, in gradient steps, right of it their own run; below it are the Q-values, the mean over each batch: of "
    "the dataset left, of what the run learns from right. All statistics are of online steps alone.",
    "Decision periods: returns of agents that look only every so many steps of the environment and meanwhile hold "
    "their action, or carry out their plan (`deeprl evaluate --decision-periods`). FAS: the frequency-averaged score, "
    "the area under these returns from 1 to 30, by the rule and constants of Patel & Siegelmann (2025); its mean and "
    "sample standard deviation over seeds.",
    "Score: the return of the mean, normalised as in D4RL, 100 (return - random) / (expert - random), with the same "
    "interval, where reference returns of the environment are published.",
    "Agents that diverged (a loss, gradient, parameter, observation or reward was not finite) are frozen: their values "
    "are shown and stay in every statistic. A run whose agents have all diverged ends there.",
    "Wall time is that of the whole run, shared by the agents trained together in it; for a cell spread over several "
    "runs it is their sum. Speed counts the updates of all agents of a run per second of the whole loop from the first "
    "update on, which is done after the seconds named (random steps, compiling); for several runs, the mean.",
)

CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --warn: #f59e0b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { background: var(--soft); } td.n { text-align: right; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; } figure { margin: 1rem 0; }
.notes { border-left: 4px solid var(--warn); padding: .2rem 1rem; background: var(--soft); }
"""

SUMMARY_HEADER = (
    *("Environment", "Cell", "Seeds", "Steps", "Mean return", "95 % t interval", "Std", "IQM", "95 % bootstrap"),
    *("Score", "95 % t interval", "Episodes", "Wall s", "Agent-updates/s", "Frozen seeds"),
)
SEED_HEADER = ("Environment", "Cell", "Seed", "Steps", "Return", "Episodes", "Remark", "Run")
_RUN = ("Run", "State", "Agents", "Wall s", "First update s", "Agent-updates/s")
PERIOD_HEADER = ("Environment", "Cell", "Seeds", "FAS", "Std", "Return at 1", "At 8", "At 16", "At random, 1 to 16")
RUN_HEADER = (*_RUN, "Device", "Commit", "Hash", "Versions", "Command")


def write_report(directory: str | Path, out: str | Path | None = None, published: str | Path | None = None) -> Path:
    """Write `index.html`, one `curve_<env>.png` per environment, `summary.csv` and JSON files; return the HTML path.

    Args:
        directory: a sweep, or a single run: every run directory at or below it is read.
        out: where to write; `<directory>/report` if None. Files of an earlier report are replaced.
        published: curves of others to draw beside these (`deeprl.reporting.curves.read_published`).

    Raises:
        DeeprlError: no run there; a file that cannot be read, named with its row; `out` holds something else than an
            earlier report.
    """
    runs = read_runs(directory)
    cells = group(runs)
    folder = Path(out) if out is not None else Path(directory) / "report"
    others = read_published(published) if published is not None else {}
    begin_report(folder)
    pngs: list[tuple[str, bytes]] = []
    names: list[str] = []
    figures = _figures(cells)
    order = sorted({cell.name for here in figures.values() for cell in here})
    notes = remarks(runs, cells)
    for (env, _), here in figures.items():
        drawn, left_out = figure(env, here, order, others.get(env, {}))
        pngs.append((env, drawn))
        notes += left_out
        names.append(_file_name(env, names))
        (folder / names[-1]).write_bytes(drawn)
    by_period = _by_period(cells)
    notes += [
        f"{run.name}: it was evaluated at decision periods before its last step, which is left out here."
        for run in runs
        if run.has_older_periods()
    ]
    for env, curves in by_period.items():
        returns = {name: [steady(means) for means in agents] for name, agents in curves.items()}
        if any(any(agents) for agents in returns.values()):
            pngs.append((f"{env} by decision period", drawn_by_period(env, returns)))
            names.append(_file_name(f"{env}_by_decision_period", names))
            (folder / names[-1]).write_bytes(pngs[-1][1])
    if others and not {env for env, _ in figures} & set(others):
        notes.append(f"Published: {published} has no curve of these environments; it has {', '.join(sorted(others))}.")
    summary = [summarise(cell, pairs) for cell, pairs in cells.items()]
    _write_summary(folder / "summary.csv", summary)
    configs = [{"run": run.name, **run.info, "status": run.status} for run in runs]
    (folder / "config.json").write_text(json.dumps(configs, indent=1), encoding="utf-8")
    page = _page(Path(directory).resolve().name, runs, cells, summary, pngs, notes, _period_rows(by_period))
    (folder / "index.html").write_text(page, encoding="utf-8")
    write_record(folder, Path(directory).resolve().name, runs, cells, summary)
    return folder / "index.html"


def _figures(cells: Mapping[Cell, Pairs]) -> dict[tuple[str, str], dict[Cell, Pairs]]:
    """Cells by what they are drawn in: the environment that they act in, or their dataset; and the unit of their steps.

    Those that act in an environment and learn from a dataset as well have it in their name there.
    """
    figures: dict[tuple[str, str], dict[Cell, Pairs]] = {}
    for cell, pairs in cells.items():
        env = pairs[0][0].env or cell.env
        figures.setdefault((env, unit_name(pairs)), {})[cell._replace(name=_name_in(env, cell))] = pairs
    return figures


def _name_in(env: str, cell: Cell) -> str:
    """The name of a cell among others of an environment, with its dataset if it has one."""
    return cell.name if env == cell.env else f"{cell.name}, {cell.env}"


def _by_period(cells: Mapping[Cell, Pairs]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Mean returns by decision period of each agent that has some, by the environment of single steps and by cell."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for cell, pairs in cells.items():
        recorded = {run.name: run.periods() for run, _ in pairs}
        for run, agent in pairs:
            if own := recorded[run.name].get(agent.member):
                place = run.info.get("evaluated_in") or run.info["config"]
                others = [name for name in place.get("wrappers") or () if not repeats(name)]
                env = " ".join([str(place["env"]), *others])
                means = {period: float(np.mean(returns)) for period, returns in own.items()}
                found.setdefault(env, {}).setdefault(_name_in(str(place["env"]), cell), []).append(means)
    return found


def _period_rows(by_period: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Iterable[Sequence[Any]]:
    for env, curves in by_period.items():
        for name, agents in curves.items():
            scores = np.array([score(means, env) for means in agents])
            std = float(scores.std(ddof=1)) if len(scores) > 1 else math.nan
            returns = (float(np.mean([m.get(p, math.nan) for m in agents])) for p in ("1", "8", "16", "1 to 16"))
            yield env, name, len(agents), float(scores.mean()), std, *returns


def summarise(cell: Cell, pairs: Pairs) -> dict[str, Any]:
    """One row of `summary.csv`: the final policies of the agents of a cell. Statistics of non-finite values are NaN."""
    finals = [agent.final for _, agent in pairs]
    values = np.array([final.mean for final in finals])
    mean = std = middle = math.nan
    interval = boot = (math.nan, math.nan)
    if np.isfinite(values).all():
        mean, interval, middle = float(values.mean()), mean_interval(values), iqm(values)
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        boot = bootstrap_interval(values)
    runs = {run.name: run for run, _ in pairs}.values()
    episodes = sorted({len(final.returns) for final in finals})
    return {
        **{"algorithm": cell.algorithm, "env": cell.env, "label": cell.label, "settings": cell.settings},
        **{"cell": cell.key, "unit": unit_name(pairs)},
        "seeds": len(values),
        "step": max(final.step for final in finals),
        "step_min": min(final.step for final in finals),
        **{"mean": mean, "mean_lo": interval[0], "mean_hi": interval[1], "std": std},
        **{"iqm": middle, "iqm_lo": boot[0], "iqm_hi": boot[1]},
        **dict(zip(("score", "score_lo", "score_hi"), (_score(pairs, x) for x in (mean, *interval)), strict=True)),
        "values": " ".join(f"{agent.seed}:{agent.final.mean!r}" for _, agent in pairs),
        "episodes": "/".join(map(str, episodes)),
        "wall_s": sum(run.number("wall_s") for run in runs),
        "updates_per_s": float(np.mean([run.number("updates_per_s") for run in runs])),
        "frozen_seeds": " ".join(str(agent.seed) for _, agent in pairs if agent.frozen is not None),
    }


def _score(pairs: Pairs, ret: float) -> float:
    """The score of a return; NaN where there is none, or where the runs of a cell have others."""
    alike = len({run.references for run, _ in pairs}) == 1
    score = pairs[0][0].score(ret) if alike else None
    return math.nan if score is None else score


def _write_summary(path: Path, summary: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(summary[0] if summary else [])
        for row in summary:
            writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()])


def _file_name(env: str, taken: Iterable[str]) -> str:
    stem = "curve_" + re.sub(r"[^\w.-]+", "-", env)
    lowered = {name.lower() for name in taken}
    names = (f"{stem}{suffix}.png" for suffix in ("", *(f"_{k}" for k in range(2, len(lowered) + 3))))
    return next(name for name in names if name.lower() not in lowered)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}" if math.isnan(value) else str(value)
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _interval(low: float, high: float) -> str:
    return "\N{EN DASH}" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def _td(value: Any) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{_number(value) if isinstance(value, float) else format(value, ",")}</td>'
    return f"<td>{escape(str(value))}</td>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(map(_td, row)) + "</tr>\n"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _summary_rows(cells: Mapping[Cell, Pairs], summary: Rows) -> Iterable[Sequence[Any]]:
    for cell, row in zip(cells, summary, strict=True):
        steps = f"{row['step']:,}" if row["step"] == row["step_min"] else f"{row['step_min']:,} to {row['step']:,}"
        steps = f"{steps} {row['unit']}"
        mean = (row["mean"], _interval(row["mean_lo"], row["mean_hi"]), row["std"])
        middle = (row["iqm"], _interval(row["iqm_lo"], row["iqm_hi"]))
        rest = (row[key] for key in ("episodes", "wall_s", "updates_per_s", "frozen_seeds"))
        score = (row["score"], _interval(row["score_lo"], row["score_hi"]))
        yield cell.env, cell.name, row["seeds"], steps, *mean, *middle, *score, *rest


def _run_rows(runs: Sequence[RunRecord]) -> Iterable[Sequence[Any]]:
    for run in runs:
        info = run.info
        versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
        where = (info.get("device", ""), info.get("commit", ""), info.get("config_hash", ""), versions)
        times = (run.number(key) for key in ("wall_s", "first_update_s", "updates_per_s"))
        yield run.name, run.status.get("state", "none"), len(run.agents), *times, *where, info.get("command", "")


def _seed_rows(cells: Mapping[Cell, Pairs]) -> Iterable[Sequence[Any]]:
    for cell, pairs in cells.items():
        for run, agent in pairs:
            remark = ""
            if agent.frozen is not None:
                at = f"{agent.frozen['step']:,} {run.unit.name}"
                remark = f"diverged, frozen after {at}: {agent.frozen.get('cause', '?')}"
            final = agent.final
            steps = f"{final.step:,} {run.unit.name}"
            yield cell.env, cell.name, str(agent.seed), steps, final.mean, len(final.returns), remark, run.name


def _page(
    title: str,
    runs: Sequence[RunRecord],
    cells: Mapping[Cell, Pairs],
    summary: Rows,
    pngs: Sequence[tuple[str, bytes]],
    told: Iterable[str],
    periods: Iterable[Sequence[Any]] = (),
) -> str:
    rows = list(periods)
    by_period = f"<h2>Decision periods</h2>\n{_table(PERIOD_HEADER, rows)}\n" if rows else ""
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in told)
    images = ""
    for env, png in pngs:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        images += f'<figure><img src="{source}" alt="Learning curves on {escape(env)}"></figure>\n'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: deeprl report</title><style>{CSS}</style></head><body>
<h1>{escape(title)}</h1>
<p>{len(runs)} runs, {sum(len(run.agents) for run in runs)} agents, {len(cells)} cells.</p>
{f'<div class="notes"><ul>{notes}</ul></div>' if notes else ""}
<h2>Final policies</h2>
{_table(SUMMARY_HEADER, _summary_rows(cells, summary))}
<h2>Learning curves</h2>
{images}{by_period}<h2>Seeds</h2>
{_table(SEED_HEADER, _seed_rows(cells))}
<h2>Runs</h2>
{_table(RUN_HEADER, _run_rows(runs))}
<h2>How the numbers were computed</h2>
<ul>{"".join(f"<li>{escape(text)}</li>" for text in METHOD)}</ul>
</body></html>
"""
