"""The sentences under a score table: what is missing, what changed and how surely, and what each number is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmark import registry
from benchmark.evaluation.tasks import Suite
from benchmark.runtime.text_tables import averaged_over, counted, listed, signed
from leaderboard.score_cells import change_text, nearer_end, seed_change_text, shown_rows, shown_tasks
from leaderboard.score_rows import NEITHER, ODD_MARK, PAIRED, SHOWN, UNPAIRED, Evaluation, ScoreEstimate, TaskScoreRow
from leaderboard.score_sets import ScoreSet
from leaderboard.statistics import LEAST_DF, RunDifference

MANY, FIRST = 10, 6  # of more missing tasks than MANY only the first are named


def score_sentences(evaluation: Evaluation, bounds: frozenset[str], *, with_tasks: bool) -> list[str]:
    """Return what is to be said under the table, the most important first."""
    ours, reference, suite, tasks = evaluation.ours, evaluation.reference, evaluation.suite, evaluation.tasks
    change = evaluation.average.change
    sentences = _about_missing(ours, reference, suite)
    if reference is not None:
        sentences += _about_change(ours, reference, suite, tasks, change, evaluation.average.over_seeds)
        if (over_seeds := _about_seeds(evaluation)) is not None:
            sentences.append(over_seeds)
    if ours.scores:
        sentences.append(_about_errors(evaluation))
    if about_averages := _about_averages(evaluation, bounds, with_tasks=with_tasks):
        sentences.append(about_averages)
    if unscored := [name for name in ours.unscored if name in registry.TASKS and name not in suite.tasks]:
        titles = ", ".join(registry.TASKS[name].title for name in unscored)
        places = ", ".join(dict.fromkeys(ours.metrics_at[name] for name in unscored if name in ours.metrics_at))
        sentences.append(f"Without a score: {titles}{f' (their metrics: {places})' if places else ''}.")
    for side in (ours, reference) if reference else (ours,):
        sentences += side.notes
        mark = f"{ODD_MARK} " if side is ours else f"{side.name}: "
        if odd := [name for name in suite.tasks if name in side.odd_sizes]:
            told = ", ".join(
                f"{registry.TASKS[name].title} {side.odd_sizes[name].found:,} of {side.odd_sizes[name].expected:,}"
                for name in odd
            )
            sentences.append(f"{mark}Not the number of samples that the task is known to have: {told}.")
        if odd := [name for name in suite.tasks if name in side.odd_classes]:
            told = ", ".join(f"{registry.TASKS[name].title} has {side.odd_classes[name]:,}" for name in odd)
            sentences.append(f"{mark}Not the number of classes that the task is known to have: {told}.")
        if side.unknown:
            sentences.append(f"{side.name} has results that no task here is called by: {', '.join(side.unknown)}.")
    return sentences


def _about_missing(ours: ScoreSet, reference: ScoreSet | None, suite: Suite) -> list[str]:
    sentences = []
    for side in (ours, reference) if reference else (ours,):
        missing = [name for name in suite.tasks if name not in side.scores]
        if len(missing) == len(suite.tasks):
            sentences.append(f"{side.name} has no score of any task of suite {suite.name}.")
        elif missing:
            verb = "has" if len(missing) == 1 else "have"
            sentences.append(
                f"{len(missing)} of {len(suite.tasks)} tasks {verb} no score of {side.name}, and averages over them "
                f"are left out: {first_of(missing)}."
            )
    return sentences


def first_of(names: Sequence[str]) -> str:
    """Spell a list of missing tasks, of a long one the first and how many more there are."""
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[:FIRST])} and {len(names) - FIRST} more"


def _about_change(
    ours: ScoreSet,
    reference: ScoreSet,
    suite: Suite,
    tasks: Sequence[TaskScoreRow],
    change: ScoreEstimate | None,
    over_seeds: RunDifference | None,
) -> list[str]:
    sentences = []
    if change is not None:
        interval = change.interval
        if interval is None:
            told = "whether that is more than the choice of test samples is not known"
        elif interval[0] > 0 or interval[1] < 0:
            told = f"more than the choice of test samples explains{_beside_seeds(over_seeds)}"
        else:
            told = "no more than the choice of test samples may explain"
        sentence = f"The average is {signed(change.value)} from {reference.name}: {told}."
        sign = math.copysign(1, change.value)
        against = [r for r in tasks if r.task.name in suite.headline and r.change and sign * r.change.value < 0]
        if against:
            most = max(against, key=lambda row: abs(row.change.value) if row.change else 0.0)
            assert most.change is not None
            sentence += f" Most against it: {most.task.title} {change_text(most.change)}."
        sentences.append(sentence)
    by = {how: [row.task.title for row in tasks if row.change and row.compared == how] for how in _HOW}
    parts = [f"{counted(len(titles), 'task')} {_HOW[how]}" for how, titles in by.items() if titles]
    if parts:
        sentence = f"Compared: {'; '.join(parts)}."
        if by[PAIRED] and (others := [*by[UNPAIRED], *by[NEITHER]]):
            sentence += f" Not sample by sample: {', '.join(others)}."
        sentences.append(sentence)
    if other_data := [r.task.title for r in tasks if r.change and _has_other_data(r.task.name, ours, reference)]:
        sentences.append(
            f"Not evaluated on the same files as {reference.name}: {', '.join(other_data)}. Other images, class names "
            "or templates change a score too."
        )
    return sentences


def _beside_seeds(over_seeds: RunDifference | None) -> str:
    if over_seeds is None:
        return "; another training seed may move it as much or more"
    if over_seeds.is_significant:
        return ", and more than training seeds do"
    return ", but no more than another training seed may"


def _has_other_data(name: str, ours: ScoreSet, reference: ScoreSet) -> bool:
    return name in ours.data and name in reference.data and ours.data[name] != reference.data[name]


_HOW = {
    PAIRED: "sample by sample",
    UNPAIRED: "by both standard errors, as if of different samples, since not both have predictions of the same ones",
    NEITHER: "without an interval, as a standard error is missing",
}


def _about_seeds(evaluation: Evaluation) -> str | None:
    """Say what training seeds allow to be said of the average, and by whose noise; None without seeds."""
    seeds = evaluation.seeds
    if seeds is None or evaluation.average.change is None:
        return None
    ours, theirs = seeds.ours.seeds, seeds.reference.seeds
    told = f"Over training seeds ({counted(len(ours), 'seed')} against {len(theirs)})"
    found = evaluation.average.over_seeds
    if found is None:
        return (
            f"{told} no interval of the change is known: {seeds.why_alone}, and these seeds alone tell noise by fewer "
            f"than {LEAST_DF} degrees of freedom (one run of three seeds, or two of two, are the least). Train more "
            "seeds."
        )
    dev = next((row.over_seeds for row in evaluation.rows if row.name == "dev"), None)
    change = seed_change_text(found) + (f", of dev {seed_change_text(dev)}" if dev is not None else "")
    alike = "" if set(ours) == set(theirs) else ", as if both were on the same seeds"
    if seeds.why_alone:
        by = f"the noise of these two runs' own seeds alone ({found.df:.0f} degrees of freedom), as {seeds.why_alone}"
    else:
        by = f"the noise of {seeds.whose} and of these two runs, as in `winnow leaderboard table`"
    return f"{told} the change of the average is {change} (95 %{alike}), by {by}."


def _about_errors(evaluation: Evaluation) -> str:
    ours, reference, tasks = evaluation.ours, evaluation.reference, evaluation.tasks
    if not any(row.score is not None and row.score.error is not None for row in tasks):
        return f"No standard errors: {ours.name} has neither predictions nor records that state them."
    where = " in the column of test samples" if evaluation.has_seed_changes else ""
    what = "± is the standard error" + (f", [ ]{where} the 95 % interval" if reference else "")
    if len(ours.seeds) < 2:
        whose, but = "one training seed", "it says nothing about another training seed"
    else:
        whose, but = f"the mean over these {len(ours.seeds)} training seeds", "it says nothing about other seeds"
    sentence = f"{what}, of {whose} over the choice of test samples alone; {but}."
    if any(row.score is not None and nearer_end(row.score) for row in tasks):
        sentence += (
            " Where all samples of a task came out alike it would be 0, which it counts as in averages; in its place "
            "stands how far the 95 % interval goes, as (to ...) or (from ...)."
        )
    if lacking := [row.task.title for row in tasks if row.score is not None and row.score.error is None]:
        sentence += f" Not known of {listed(lacking)}, nor of averages over {'it' if len(lacking) == 1 else 'them'}."
    return sentence


def _about_averages(evaluation: Evaluation, bounds: frozenset[str], *, with_tasks: bool) -> str:
    """Say what the averages and the column "from chance" are, as far as they are shown; empty where none is."""
    suite, tasks = evaluation.suite, evaluation.tasks
    shown = {row.name for row in shown_rows(evaluation) if row.kind == "average"}
    has_column = bool(shown_tasks(evaluation, with_tasks=with_tasks))
    parts = []
    if "average" in shown:
        parts.append(f"average is the mean over {averaged_over(len(suite.headline), len(suite.development))}")
        parts.append(
            f"chance-normalised the mean over the {'reporting half' if suite.development else 'same'} of "
            "(score - chance) / (1 - chance)"
            + (", which is a task's from chance: 0 % is guessing, 100 % is perfect" if has_column else "")
            + ("" if has_column else ": 0 is guessing, 1 is perfect")
        )
    if any(f"informative at {scale}" in shown for scale in suite.informative):
        verb = "" if parts else "is "
        parts.append(
            f"informative at a scale {verb}the mean over the tasks, fixed beforehand, that tell its runs apart"
        )
    if has_column and "average" not in shown:
        parts.append("from chance is (score - chance) / (1 - chance): 0 % is guessing, 100 % is perfect")
    if not parts:
        return ""
    sentence = "; ".join(parts)
    if unknown := [row.task.title for row in tasks if row.score is not None and row.chance is None]:
        sentence += f". Chance is not known, or 1, of {listed(unknown)}"
    if bounded := [row.task.title for row in tasks if row.score is not None and row.task.name in bounds]:
        sentence += f". Without predictions an upper bound stands for the chance of {listed(bounded)}"
    return sentence + "."


def slowest_sentence(ours: ScoreSet) -> str | None:
    """Say which tasks took longest; None where no times are known."""
    if not ours.costs:
        return None
    costs = sorted(ours.costs.items(), key=lambda item: (-item[1].seconds, item[0]))
    told = []
    for name, cost in costs[:SHOWN]:
        speed = f", {cost.images / cost.seconds:,.0f} images/s" if cost.seconds > 0 else ""
        told.append(
            f"{registry.TASKS[name].title if name in registry.TASKS else name} {_seconds(cost.seconds)} s{speed}"
        )
    total = math.fsum(cost.seconds for cost in ours.costs.values())
    return f"Slowest: {'; '.join(told)}. {counted(len(costs), 'task')} took {_seconds(total)} s."


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"
