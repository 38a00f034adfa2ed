"""Learning curves: a model's scores over the samples it had seen, as a table and as a plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.evaluation.tasks import Suite
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import write_bytes
from benchmark.runtime.text_tables import (
    averaged_over,
    counted,
    listed,
    markdown_table,
    page,
    score,
    signed,
    text_table,
)
from leaderboard.score_rows import Evaluation
from leaderboard.score_sentences import MANY, first_of
from leaderboard.score_sets import ScoreSet
from leaderboard.score_table import WIDTH, make_evaluation, to_frame

BAND = 2  # standard errors


def render_curve(points: Sequence[tuple[int, ScoreSet]], suite: Suite, style: str = "text") -> str:
    """Spell a learning curve: a line per checkpoint, given as samples seen and scores, fewest samples first.

    Where a checkpoint lacks a task, it has no average over that task; a group or average that no checkpoint has is left
    out. Raises ValueError for two checkpoints of the same samples seen.
    """
    evaluations = _evaluations(points, suite)
    last = evaluations[-1][1]
    names = [row.name for row in last.rows]
    first = names.index("average")
    order = [first, *(place for place in range(len(names)) if place != first)]
    order = [place for place in order if place == first or any(each.rows[place].score for _, each in evaluations)]
    header = ["samples seen", *(names[place].replace("_", "\n").replace(" ", "\n", 1) for place in order)]
    cells = []
    for samples, each in evaluations:
        line = [f"{samples:,}"]
        for place in order:
            found = each.rows[place].score
            error = "" if found is None or found.error is None or place != first else f" ± {score(found.error)}"
            line.append("-" if found is None else score(found.value) + error)
        cells.append(line)
    title = f"{last.ours.name}: suite {suite.name}, version {suite.version}, over samples seen"
    sentences = _sentences(evaluations)
    spell = markdown_table if style == "markdown" else text_table
    table = spell(header, cells, ())
    if style == "markdown":
        return page(title, [table], sentences, style)
    told = [textwrap.fill(sentence, WIDTH, break_on_hyphens=False) for sentence in sentences]
    return page(title, [table, told], (), style).rstrip("\n") + "\n"


def curve_frame(points: Sequence[tuple[int, ScoreSet]], suite: Suite) -> pd.DataFrame:
    """Return the lines of `winnow leaderboard compare --tasks --format csv` for every checkpoint, samples seen first.

    Raises ValueError as `render_curve` does.
    """
    frames = []
    for seen, evaluation in _evaluations(points, suite):
        frame = to_frame(evaluation, with_tasks=True)
        frame.insert(0, "samples_seen", seen)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def plot_curve(points: Sequence[tuple[int, ScoreSet]], suite: Suite, path: Path) -> None:
    """Draw a learning curve as a PNG: the average with ± 2 standard errors from the test samples, and the groups.

    Several training seeds are thin lines beside their mean. The same points give the same bytes. Raises ValueError as
    `render_curve` does.
    """
    # Here, as these load matplotlib.
    from benchmark.runtime.plots import FAINT, INK, plain, png

    evaluations = _evaluations(points, suite)
    last = evaluations[-1][1]
    groups = [row.name for row in last.rows if row.kind == "group"]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for number, group in enumerate(groups):
            x, y, _ = _line(evaluations, group)
            if not x:
                continue
            label = group.replace("_", " ")
            axes.plot(x, y, color=f"C{number % 10}", linewidth=1.1, marker=".", alpha=0.75, label=label)
        seeds = list(last.ours.seeds) if len(last.ours.seeds) > 1 else []
        for seed in seeds:
            of_seed = [(seen, each.ours.seeds[seed]) for seen, each in evaluations if seed in each.ours.seeds]
            x, y, _ = _line(_evaluations(of_seed, suite), "average")
            label = f"average of each of {len(seeds)} seeds"
            axes.plot(x, y, color=FAINT, linewidth=0.7, label=label if seed == seeds[0] else None)
        x, y, errors = _line(evaluations, "average")
        if not any(math.isnan(error) for error in errors):
            ends = [[v + sign * BAND * e for v, e in zip(y, errors, strict=True)] for sign in (-1, 1)]
            axes.fill_between(x, *ends, color=INK, alpha=0.15, linewidth=0, label=f"± {BAND} standard errors")
        axes.plot(x, y, color=INK, linewidth=2.2, marker="o", markersize=4, label="average")
        axes.set_xlim(left=0)
        axes.set_xlabel("samples seen")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylabel(f"score on suite {suite.name}")
        axes.grid(color="#eeeae2")
        axes.set_axisbelow(True)
        figure.legend(frameon=False, loc="outside right upper")
        plain(axes)

    write_bytes(path, png((8.4, 4.2), draw))


def _evaluations(points: Sequence[tuple[int, ScoreSet]], suite: Suite) -> list[tuple[int, Evaluation]]:
    if not points:
        raise UserError("a learning curve needs at least one checkpoint with scores", code="results-missing")
    seen = [samples for samples, _ in points]
    if repeated := sorted({samples for samples in seen if seen.count(samples) > 1}):
        raise UserError(f"two checkpoints have seen the same number of samples: {repeated}", code="results-differ")
    return [(s, make_evaluation(scores, suite)) for s, scores in sorted(points, key=lambda point: point[0])]


def _line(evaluations: Sequence[tuple[int, Evaluation]], name: str) -> tuple[list[int], list[float], list[float]]:
    """Return samples seen, scores and standard errors (NaN where not known) of a line, checkpoints without it aside."""
    rows = [(seen, next(row for row in each.rows if row.name == name)) for seen, each in evaluations]
    known = [(seen, row.score) for seen, row in rows if row.score is not None]
    errors = [math.nan if found.error is None else found.error for _, found in known]
    return [seen for seen, _ in known], [found.value for _, found in known], errors


def _sentences(evaluations: Sequence[tuple[int, Evaluation]]) -> list[str]:
    seen, last = evaluations[-1]
    sentences = []
    for samples, each in evaluations:
        if missing := [row.task.name for row in each.tasks if row.score is None]:
            told = (f"{len(missing)} of {len(each.tasks)} tasks: " if len(missing) > MANY else "") + first_of(missing)
            sentences.append(f"After {samples:,} samples there is no score of {told}.")
        if each.ours.seeds and set(each.ours.seeds) != set(last.ours.seeds):
            sentences.append(
                f"After {samples:,} samples the seeds are {listed([str(s) for s in each.ours.seeds])} alone."
            )
    odd = {row.task.name: None for _, each in evaluations for row in each.tasks if row.is_odd}
    if odd:
        sentences.append(f"Not evaluated on all samples or classes that the task is known to have: {', '.join(odd)}.")
    if len(evaluations) > 1:
        before, earlier = evaluations[-2]
        change = make_evaluation(last.ours, last.suite, earlier.ours).average.change
        if change is not None:
            interval = change.interval
            told = f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else ""
            sentences.append(
                f"From {before:,} to {seen:,} samples the average changed by {signed(change.value)}{told}."
            )
    suite = last.suite
    sentences.append(f"average is the mean over {averaged_over(len(suite.headline), len(suite.development))}.")
    whose = counted(max(1, len(last.ours.seeds)), "training seed")
    if any(row.score is not None and row.score.error is not None for row in last.rows):
        sentences.append(
            f"± is the standard error, [ ] the 95 % interval, over the choice of test samples alone, of {whose}."
        )
    return sentences
