"""How the numbers of a report were computed: what stands at its end."""

from __future__ import annotations

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
    "First table: the seeds of a cell are listed under Seeds, its other columns are folded below it.",
    "Over all tasks: normalised scores of all runs on the tasks that all algorithms named there have; stratified "
    "bootstrap over runs, tasks fixed (50,000 resamples, of profiles 2,000). Median and mean are those of the means of "
    "tasks; the IQM cuts a quarter of all runs from each end; optimality gap: how far runs fall short of 1 on average, "
    "what is beyond 1 counted as 1. Profile: the share of runs above each score; efficiency: the IQM at the "
    "steps that all these runs have in common (Agarwal et al. 2021).",
    "Beside others: the greatest step that all seeds of the other have recorded and that ours have reached; of ours "
    "the last evaluation up to it. Difference of the means with Welch's 95 % t interval (Colas et al. 2018). A verdict "
    "needs an interval without 0 and a p value that is at most 0.05 after Holm's correction for the number of rows.",
    "Curves: thick line, mean over seeds at the steps that all seeds of the cell have reached; band, its 95 % Student "
    "t interval at each step; thin lines, single seeds, which are all that is drawn where no step is common to them. "
    "Where it is known what returns can be, the band ends there; intervals in tables do not. "
    "Steps are those of one agent: in the simulator, where a repeated action is several; decisions in Atari games; of "
    "the gradient for agents that learn from a dataset. Curves of others are grey, with the same interval over their "
    "seeds, in the unit of ours; training returns of theirs are means over the last 100 episodes.",
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
