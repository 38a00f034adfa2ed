"""The report's page: one HTML file that fetches nothing and runs nothing, with whatever a stranger typed escaped.

`templates/report.html.j2` lays it out, in the order in which a researcher asks; this file says what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.pool.pool import Pool
from benchmark.report.groups import Grouping
from benchmark.report.overlaps import StrategyOverlap
from benchmark.report.rule_scores import FractionCurves
from benchmark.report.sheets import Sheet
from benchmark.report.standing import Standing, TaskStanding
from benchmark.report.survey import Survey
from benchmark.runtime.html_pages import data_url, render
from benchmark.runtime.records import Record
from benchmark.selection.engine import RuleReport

TEMPLATES_DIR = Path(__file__).parent / "templates"
MAX_CAPTION = 240  # characters
MANY_KINDS = 3  # groups that the summary names at either end


@dataclass(frozen=True)
class PageContents:
    """All that stands on a page."""

    record: Record  # of the filter stage
    descriptions: list[str]  # a line per rule
    survey: Survey
    histograms: dict[str, bytes]  # name of the score -> PNG
    curves: list[tuple[FractionCurves, bytes]]
    overlaps: list[StrategyOverlap]
    unknown: list[str]  # strategies whose subset is not known yet
    left_out: dict[str, str]  # strategies, and why
    unscored: dict[str, str]  # rules whose scores cannot be had again, and why
    standing: Standing
    tasks_plot: bytes | None


def make_page(contents: PageContents, pool: Pool) -> str:
    """Spell the page."""
    record, survey, standing = contents.record, contents.survey, contents.standing
    overall = survey.num_kept / survey.num_rows if survey.num_rows else 0.0
    return render(
        TEMPLATES_DIR,
        "report.html.j2",
        name=experiment_name(record),
        summary=_summary(contents),
        facts=_facts(contents, pool),
        about_rules=_about_rules(record),
        rule_rows=[_rule_row(report, record.result["rows"]) for report in _rule_reports(record)],
        histograms=[_histogram(contents, each.name, each.num_missing) for each in survey.histograms],
        unscored=contents.unscored | survey.failures,
        share_kept=_percent(survey.num_kept, survey.num_rows),
        overall=overall,
        groupings=[_grouping(each) for each in survey.groupings],
        sheets=[_sheet(each) for each in survey.sheets],
        curves=[
            {"rule": each.rule, "title": each.title[:1].lower() + each.title[1:], "source": data_url(plot, "png")}
            for each, plot in contents.curves
        ],
        about_overlaps=ABOUT_OVERLAPS,
        overlap_rows=_overlap_rows(contents),
        unknown_command=f"winnow filter filters={contents.unknown[0]}" if contents.unknown else "",
        left_out="; ".join(f"{name}, {why}" for name, why in contents.left_out.items()),
        standing=standing,
        tasks_source=data_url(contents.tasks_plot, "png") if contents.tasks_plot is not None else "",
        about_tasks=_about_tasks(standing.tasks),
        task_header=_task_header(standing.tasks),
        task_rows=[_task_row(each) for each in standing.tasks],
    )


def experiment_name(record: Record) -> str:
    """Name an experiment after its rules."""
    names = [rule["name"] for rule in record.inputs["filters"]]
    return " + ".join(names) or f"subset {record.inputs['subset'][:8]}"


def _summary(contents: PageContents) -> list[str]:
    """Say the most important in a few sentences."""
    survey, result = contents.survey, contents.record.result
    kept, rows = survey.num_kept, survey.num_rows
    sentences = [f"Kept {kept:,} of {_rows(rows)} ({_percent(kept, rows)}), dropped {rows - kept:,}."]
    if survey.num_sampled is not None:
        sentences.append(
            f"Histograms, kept shares and the samples shown are from a sample of {survey.num_sampled:,} of "
            f"{_rows(rows)}, chosen by a hash of the uid; how many were kept, dropped and shared is exact."
        )
    if contents.record.inputs["within"]:
        candidates = result["rows"]
        sentences.append(
            f"The filters saw the {_rows(candidates)} of an earlier subset (within) only; the other "
            f"{rows - candidates:,} count as dropped here and are among the dropped samples shown."
        )
    reports = _rule_reports(contents.record)
    if len(reports) > 1:
        most = max(reports, key=lambda report: report.dropped)
        alone = max(reports, key=lambda report: report.only_dropped)
        told = f"{most.name} dropped most: {_rows(most.dropped)}, {most.only_dropped:,} of which no other rule dropped"
        if alone.only_dropped > most.only_dropped:
            told += f"; only {alone.name} dropped {alone.only_dropped:,}"
        sentences.append(f"{told}.")
    planted = next((grouping for grouping in survey.groupings if grouping.is_planted), None)
    if planted is not None and len(planted.groups) > 1:
        ranked = sorted(planted.groups, key=lambda group: -group.kept / group.rows)
        count = min(MANY_KINDS, len(ranked) // 2)
        top, bottom = (
            ", ".join(f"{group.label} {_percent(group.kept, group.rows, 0)}" for group in part)
            for part in (ranked[:count], ranked[::-1][:count])
        )
        sentences.append(f"Of the planted kinds it kept most of {top} and least of {bottom}.")
    own_name = experiment_name(contents.record)
    if others := [overlap for overlap in contents.overlaps if overlap.name != own_name]:
        nearest = max(others, key=lambda overlap: overlap.jaccard)
        known = "" if not contents.unknown else f" of the {len(others)} whose subset is known"
        share = f"Jaccard of uids {nearest.jaccard:.2f}"
        sentences.append(f"The nearest shipped strategy{known} is {nearest.name} ({share}).")
    if contents.standing.summary:
        sentences.append(contents.standing.summary)
    return sentences


def _facts(contents: PageContents, pool: Pool) -> list[tuple[str, str]]:
    """Say what was run on what."""
    survey, inputs, result = contents.survey, contents.record.inputs, contents.record.result
    facts: list[tuple[str, str]] = []
    for rule, description in zip(inputs["filters"], contents.descriptions, strict=True):
        options = [f"{key}={value}" for key, value in {**rule["options"], **(rule["cut"] or {})}.items()]
        facts.append(("filter", f"{rule['name']} ({', '.join(options)})" if options else rule["name"]))
        if description:
            facts.append(("", description))
    if inputs["subset"]:
        facts.append(("subset", f"a file taken as it is, sha256 {inputs['subset'][:12]}"))
    if inputs["within"]:
        facts.append(("within", f"an earlier subset, sha256 {inputs['within'][:12]}, of {result['rows']:,} rows"))
    present = f", {pool.ensure_index().num_present:,} samples present" if pool.has_images else ", no images here"
    facts.append(("pool", f"{inputs['pool'][:12]}: {pool.count_rows():,} rows{present}"))
    copies = "" if result["size"] == result["distinct"] else f"; {result['size']:,} with copies"
    facts.append(
        ("kept", f"{result['distinct']:,} uids, {_percent(result['distinct'], pool.count_rows())} of the pool{copies}")
    )
    if survey.num_kept != result["distinct"]:
        facts.append(
            ("", f"they are the uids of {survey.num_kept:,} rows; below, a row counts as kept where its uid is")
        )
    if result["reference"]:
        facts.append(("oracle", "it knows the planted labels: not ranked, cannot be submitted, not an upper bound"))
    return facts


def _rule_reports(record: Record) -> list[RuleReport]:
    return [RuleReport.from_json(report) for report in record.result["rules"]]


def _about_rules(record: Record) -> str:
    about = (
        f"Each rule votes on all {record.result['rows']:,} rows. Only it dropped: rows that every other rule would "
        "have kept. Unscored rows have no value and are dropped."
    )
    for each in _rule_reports(record):
        if each.tied:
            about += (
                f" At the cut of {each.name}, {_rows(each.tied)} had the same score; it kept the "
                f"{each.tied_kept:,} with the smallest uids."
            )
    return about


def _rule_row(report: RuleReport, num_rows: int) -> list[str]:
    counts = (report.kept, report.dropped, report.only_dropped, report.missing)
    return [report.name, *(f"{count:,}" for count in counts), _percent(report.dropped, num_rows)]


def _histogram(contents: PageContents, name: str, num_missing: int) -> dict[str, str]:
    plot = contents.histograms.get(name)
    source = "" if plot is None else data_url(plot, "png")
    return {"name": name, "source": source, "missing": _rows(num_missing) if num_missing else ""}


def _grouping(grouping: Grouping) -> dict[str, Any]:
    groups = grouping.groups
    rows = [[each.label, f"{each.rows:,}", f"{each.kept:,}", _percent(each.kept, each.rows)] for each in groups]
    return {"title": grouping.title, "rows": rows, "bars": [each.kept / each.rows for each in groups]}


def _sheet(sheet: Sheet) -> dict[str, Any]:
    about = f"{len(sheet.samples):,} of {sheet.num_present:,} samples, drawn by a hash of the uid."
    if sheet.num_absent:
        about += f" Not shown, because the pool has no image of them: {_rows(sheet.num_absent)}."
    samples = [
        {
            "source": "" if sample.picture is None else data_url(sample.picture, "jpeg"),
            "caption": sample.caption[:MAX_CAPTION] + ("…" if len(sample.caption) > MAX_CAPTION else ""),
            "notes": ", ".join(sample.notes),
        }
        for sample in sheet.samples
    ]
    return {"title": sheet.title, "about": about, "samples": samples}


ABOUT_OVERLAPS = (
    "This subset (this), and what each shipped strategy keeps of the whole pool by itself, with its defaults (that), "
    "in uids: one with several copies counts once. Jaccard of uids: those shared, over those of either; `winnow subset "
    "overlap` prints it too, beside the Jaccard of copies."
)


def _overlap_rows(contents: PageContents) -> list[list[str]]:
    rows = [
        [
            each.name,
            each.cut,
            f"{each.size:,}",
            f"{each.shared:,}",
            f"{each.only_this:,}",
            f"{each.only_that:,}",
            f"{each.jaccard:.3f}",
        ]
        for each in contents.overlaps
    ]
    rows += [[name, "", "not known yet", "", "", "", ""] for name in contents.unknown]
    return sorted(rows, key=lambda row: row[0])


def _about_tasks(standings: Sequence[TaskStanding]) -> str:
    if not standings or standings[0].own.half_width is None:
        return "Seed noise is not known here (too few seeds, or they did not differ), so there are no intervals."
    tuned = " Rules may be tuned on the tasks marked dev; the reporting average is over the others."
    return (
        "Means over training seeds with 95 % intervals: where a mean would lie with other seeds, by the seed noise of "
        "all runs shown. The band is this run's interval; a hollow mark is an oracle's, which knows the planted "
        "labels. What a seed does to all runs alike cancels between runs on the same seeds, so the table finds smaller "
        "differences than the intervals show: it counts entries pair by pair (95 %, not adjusted for the number of "
        "comparisons)."
    ) + (tuned if standings[0].half else "")


def _task_header(standings: Sequence[TaskStanding]) -> list[str]:
    half = ["half"] if standings and standings[0].half else []
    return ["task", *half, "score", "95 % interval", "entries better", "entries worse", "not distinguishable"]


def _task_row(standing: TaskStanding) -> list[str]:
    own = standing.own
    task = [standing.task, standing.half] if standing.half else [standing.task]
    if own.half_width is None or standing.num_better is None or standing.num_worse is None:
        return [*task, f"{own.mean:.3f}", "-", "-", "-", "-"]
    low, high = own.interval
    interval = f"{low:.3f} to {high:.3f}"
    unclear = len(standing.scores) - 1 - standing.num_better - standing.num_worse
    return [*task, f"{own.mean:.3f}", interval, str(standing.num_better), str(standing.num_worse), str(unclear)]


def _percent(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
