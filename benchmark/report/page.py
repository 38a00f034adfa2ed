"""The report's page: one HTML file that fetches nothing and runs nothing, with whatever a stranger typed escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from benchmark.pool.pool import Pool
from benchmark.report.groups import Grouping
from benchmark.report.overlaps import StrategyOverlap
from benchmark.report.rule_scores import FractionCurves
from benchmark.report.sheets import Sheet
from benchmark.report.standing import Standing, TaskStanding
from benchmark.report.survey import Survey
from benchmark.runtime.records import Record
from benchmark.selection.engine import RuleReport

MAX_CAPTION = 240  # characters
MANY_KINDS = 3  # groups that the summary names at either end
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1rem 4rem; background: #fff; color: #23211e;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid #e4dfd6; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.small, figcaption { font-size: .8rem; color: #6b655c; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eeeae2; }
th { font-weight: 600; color: #6b655c; vertical-align: bottom; }
.left { text-align: left; }
.own { background: #eef4f8; font-weight: 600; }
.bar { display: inline-block; position: relative; width: 7rem; height: .7rem; background: #e9e4da; }
.bar i { display: block; height: 100%; background: #2a6f97; }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px; background: #b23a48; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 0 2rem; }
.pair > div { min-width: 0; }
.pair th, .pair td { padding: .2rem .5rem; }
.pair .bar { width: 5rem; }
.summary { margin: .6rem 0; padding: .6rem 1rem .6rem 2rem; background: #f5f2ec; }
.summary li { margin: .15rem 0; }
.note { font-style: italic; color: #6b655c; }
@media (max-width: 32rem) { th, td { padding: .2rem .4rem; } .bar { width: 4rem; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { color: #6b655c; }
dd { margin: 0; overflow-wrap: anywhere; }
.plot { display: block; max-width: 100%; height: auto; margin: .5rem 0; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); gap: .8rem; }
figure { margin: 0; min-width: 0; }
.picture { height: 7rem; display: flex; align-items: center; justify-content: center; background: #f5f2ec;
  color: #6b655c; font-size: .8rem; text-align: center; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
figcaption bdi { display: block; max-height: 5.2em; overflow: hidden; color: #23211e; line-height: 1.3;
  overflow-wrap: anywhere; }
"""
# Nothing is fetched and nothing runs, whatever gets past the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_page(contents: PageContents, pool: Pool) -> str:
    """Spell the page, in the order in which a researcher asks."""
    record, survey = contents.record, contents.survey
    name = experiment_name(record)
    sections = [
        f"<h1>{_text(name)}</h1>",
        _summary_html(contents),
        _facts_html(contents, pool),
        _rules_html(contents),
        _kinds_html(survey),
        *[_sheet_html(sheet) for sheet in survey.sheets],
        "" if survey.sheets else "<h2>Samples</h2><p>The pool has no shards here, so there are no images to show.</p>",
        _curves_html(contents),
        _overlaps_html(contents),
        "<h2>On the board</h2>",
        contents.standing.html,
        _tasks_html(contents),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(name)} - Winnow report</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            *[section for section in sections if section],
            "</body>\n</html>\n",
        ]
    )


def experiment_name(record: Record) -> str:
    """Name an experiment after its rules."""
    names = [rule["name"] for rule in record.inputs["filters"]]
    return " + ".join(names) or f"subset {record.inputs['subset'][:8]}"


def _summary_html(contents: PageContents) -> str:
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
            f"The filters saw the {_rows(candidates)} of an earlier subset (within) alone; the other "
            f"{rows - candidates:,} count as dropped here, and are among the dropped samples shown."
        )
    reports = [RuleReport(**report) for report in result["rules"]]
    if len(reports) > 1:
        most = max(reports, key=lambda report: report.dropped)
        alone = max(reports, key=lambda report: report.only_dropped)
        told = f"{most.name} dropped most: {_rows(most.dropped)}, {most.only_dropped:,} of them alone"
        if alone.only_dropped > most.only_dropped:
            told += f"; {alone.name} alone dropped {alone.only_dropped:,}"
        sentences.append(f"{told}.")
    planted = next((grouping for grouping in survey.groupings if grouping.is_planted), None)
    if planted is not None and len(planted.groups) > 1:
        ranked = sorted(planted.groups, key=lambda group: -group.kept / group.rows)
        count = min(MANY_KINDS, len(ranked) // 2)
        top, bottom = (
            ", ".join(f"{group.label} {_percent(group.kept, group.rows, 0)}" for group in part)
            for part in (ranked[:count], ranked[::-1][:count])
        )
        sentences.append(f"Of the planted kinds it kept most of {top}; least of {bottom}.")
    own_name = experiment_name(contents.record)
    if others := [overlap for overlap in contents.overlaps if overlap.name != own_name]:
        nearest = max(others, key=lambda overlap: overlap.jaccard)
        known = "" if not contents.unknown else f" of the {len(others)} whose subset is known"
        share = f"Jaccard of uids {nearest.jaccard:.2f}"
        sentences.append(f"The nearest shipped strategy{known} is {nearest.name} ({share}).")
    if contents.standing.summary:
        sentences.append(contents.standing.summary)
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    note = f'<p class="note">{_text(contents.standing.note)}</p>' if contents.standing.note else ""
    return f'<ul class="summary">{items}</ul>{note}'


def _facts_html(contents: PageContents, pool: Pool) -> str:
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
        facts.append(("", f"they stand on {survey.num_kept:,} rows; below, a row is kept where its uid is"))
    if result["reference"]:
        facts.append(("reference", "knows the planted labels: not ranked, cannot be submitted, no ceiling"))
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts) + "</dl>"


def _rules_html(contents: PageContents) -> str:
    record, survey = contents.record, contents.survey
    reports = [RuleReport(**report) for report in record.result["rules"]]
    parts = []
    if reports:
        rows = [
            [
                each.name,
                f"{each.kept:,}",
                f"{each.dropped:,}",
                f"{each.only_dropped:,}",
                f"{each.no_verdict:,}",
                _percent(each.dropped, record.result["rows"]),
            ]
            for each in reports
        ]
        table = _table_html(["rule", "kept", "dropped", "only it dropped", "no verdict", "share dropped"], rows)
        about = (
            f"Each rule votes on all {record.result['rows']:,} rows. Only it dropped: rows that every other rule would "
            "have kept. Rows without a verdict are dropped."
        )
        for each in reports:
            if each.tied:
                about += (
                    f" At the cut of {each.name}, {_rows(each.tied)} had the same score; it kept the "
                    f"{each.tied_kept:,} with the smallest uids."
                )
        parts.append(f"<h2>Rule by rule</h2><p>{_text(about)}</p>{table}")
    unscored = contents.unscored | survey.failures
    if survey.histograms or unscored:
        parts.append("<h2>Scores</h2>")
    for histogram in survey.histograms:
        plot = contents.histograms.get(histogram.name)
        if plot is not None:
            parts.append(_plot_html(plot, f"Histogram of {histogram.name}, kept against dropped rows"))
        if histogram.num_missing:
            parts.append(f"<p>Without {_text(histogram.name)}: {_rows(histogram.num_missing)}.</p>")
    for name, why in unscored.items():
        parts.append(f'<p class="small">No scores of {_text(name)} here: {_text(why)}.</p>')
    return "\n".join(parts)


def _kinds_html(survey: Survey) -> str:
    if not survey.groupings:
        return ""
    about = f"The line in each bar is the share kept of all rows, {_percent(survey.num_kept, survey.num_rows)}."
    overall = survey.num_kept / survey.num_rows
    tables = [f"<div>{_grouping_html(grouping, overall)}</div>" for grouping in survey.groupings]
    return f'<h2>What was kept</h2><p>{about}</p>\n<div class="pair">\n' + "\n".join(tables) + "\n</div>"


def _grouping_html(grouping: Grouping, overall: float) -> str:
    rows = [
        [group.label, f"{group.rows:,}", f"{group.kept:,}", _percent(group.kept, group.rows)]
        for group in grouping.groups
    ]
    bars = [group.kept / group.rows for group in grouping.groups]
    return f"<h3>{_text(grouping.title)}</h3>" + _table_html(["", "rows", "kept", "share kept"], rows, bars, overall)


def _curves_html(contents: PageContents) -> str:
    if not contents.curves:
        return ""
    about = (
        "What each scoring rule alone would keep at other fractions of the whole pool. The grey line is a cut "
        "that does not look; the dashed line is the cut of this experiment."
    )
    parts = [f"<h2>Kept share over fraction</h2><p>{about}</p>"]
    for curves, plot in contents.curves:
        parts.append(f"<h3>{_text(curves.rule)}: {_text(curves.title[:1].lower() + curves.title[1:])}</h3>")
        parts.append(_plot_html(plot, f"Share kept over fraction by {curves.rule}, one panel per group"))
    return "\n".join(parts)


def _tasks_html(contents: PageContents) -> str:
    standings = contents.standing.tasks
    if not standings or contents.tasks_plot is None:
        return ""
    is_known = standings[0].own.half_width is not None
    about = (
        "Means over training seeds with 95 % intervals: where a mean would lie with other seeds, by the seed "
        "noise of all runs shown. The band is this run's interval; a hollow mark knows the planted labels. What a seed "
        "does to all runs alike cancels between runs on the same seeds, so the table tells finer differences than the "
        "intervals do: it counts entries pair by pair (95 %, not adjusted for the number of comparisons)."
        if is_known
        else "Seed noise is not known here (too few seeds, or they did not differ), so there are no intervals."
    )
    half = ["half"] if standings[0].half else []
    header = ["task", *half, "score", "95 % interval", "entries better", "entries worse", "not clear"]
    rows = [_task_row(standing) for standing in standings]
    plot = _plot_html(contents.tasks_plot, "Score per task, this run among the board's entries")
    note = f'<p class="note">{_text(contents.standing.note)}</p>'
    return f"<h3>Task by task</h3><p>{about}</p>{plot}<h3>This run by task</h3>{_table_html(header, rows)}{note}"


def _task_row(standing: TaskStanding) -> list[str]:
    own = standing.own
    task = [standing.task, standing.half] if standing.half else [standing.task]
    if own.half_width is None or standing.num_better is None or standing.num_worse is None:
        return [*task, f"{own.mean:.3f}", "-", "-", "-", "-"]
    low, high = own.interval
    interval = f"{low:.3f} to {high:.3f}"
    unclear = len(standing.scores) - 1 - standing.num_better - standing.num_worse
    return [*task, f"{own.mean:.3f}", interval, str(standing.num_better), str(standing.num_worse), str(unclear)]


def _sheet_html(sheet: Sheet) -> str:
    shown = len(sheet.samples)
    about = f"{shown:,} of {sheet.num_present:,} samples, drawn by a hash of the uid."
    if sheet.num_absent:
        about += f" Not shown, because the pool has no image of them: {_rows(sheet.num_absent)}."
    figures = []
    for sample in sheet.samples:
        picture = (
            "cannot be decoded" if sample.picture is None else f'<img alt="" src="{_data_url(sample.picture, "jpeg")}">'
        )
        caption = sample.caption[:MAX_CAPTION] + ("…" if len(sample.caption) > MAX_CAPTION else "")
        figures.append(
            f'<figure><div class="picture">{picture}</div><figcaption><bdi>{_text(caption)}</bdi>'
            f"{_text(', '.join(sample.notes))}</figcaption></figure>"
        )
    return f'<h2>{_text(sheet.title)}</h2><p>{about}</p>\n<div class="sheet">\n' + "\n".join(figures) + "\n</div>"


def _overlaps_html(contents: PageContents) -> str:
    header = ["strategy", "cut", "its uids", "shared", "only this", "only that", "Jaccard of uids"]
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
    rows.sort(key=lambda row: row[0])
    about = (
        "This subset (this), and what each shipped strategy alone keeps of the whole pool with its defaults (that), in "
        "uids: one with several copies counts once. Jaccard of uids: those shared, over those of either; winnow subset "
        "overlap prints it too, beside the Jaccard of copies."
    )
    notes = ""
    if contents.unknown:
        command = f"winnow filter filters={contents.unknown[0]}"
        notes += (
            '<p class="small">Not known yet: a strategy that may take long is not run for a report. An experiment of '
            f"it beside this one ({_text(command)}), or the report of one elsewhere, fills its row.</p>"
        )
    if contents.left_out:
        told = "; ".join(f"{name}, {why}" for name, why in contents.left_out.items())
        notes += f'<p class="small">Left out: {_text(told)}.</p>'
    table = _table_html(header, rows) if rows else ""
    return f"<h2>Overlap with the shipped strategies</h2><p>{about}</p>{table}{notes}"


def _plot_html(plot: bytes, alt: str) -> str:
    return f'<img class="plot" alt="{_text(alt)}" src="{_data_url(plot, "png")}">'


def _table_html(
    header: Sequence[str], rows: Iterable[Sequence[str]], bars: Sequence[float] = (), mark: float = 0
) -> str:
    """Spell a table, its first column to the left; `bars` are shares, drawn in a last column with a line at `mark`."""

    def line(tag: str, cells: Sequence[str], more: str = "") -> str:
        first, *others = [_text(cell) for cell in cells]
        inner = f'<{tag} class="left">{first}</{tag}>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in others)
        return f"<tr>{inner}{more}</tr>"

    line_at = f'<b style="left:{100 * mark:.1f}%"></b>'
    ends = [f'<td><span class="bar"><i style="width:{100 * bar:.1f}%"></i>{line_at}</span></td>' for bar in bars]
    head = line("th", header, "<th></th>" if bars else "")
    body = "\n".join(line("td", row, ends[number] if bars else "") for number, row in enumerate(rows))
    return f'<div class="wide"><table>\n{head}\n{body}\n</table></div>'


def _text(value: str) -> str:
    """Escape for text and quoted attributes; control characters, which no page needs, become U+FFFD."""
    return escape(CONTROL.sub("\ufffd", value))


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _percent(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
