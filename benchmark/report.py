"""Reports: what a rule kept and what it threw away, as one page for people.

exp_dir/report/index.html    the page; pictures and plots stand inside it, and it links to nothing
exp_dir/report/score-*.png   the plots, for use elsewhere
exp_dir/report/report.json   what the page was made from

A report is derived: where its inputs changed it is made anew. Planted labels are shown here and never handed to a
filter. Whatever a stranger typed is escaped, and whatever a stranger drew is decoded and drawn again.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmark.assets import find_assets
from benchmark.experiment import ENTRY_NAME, open_experiment, refuse_changed
from benchmark.filtering import Rule, RuleReport, planted_path, run_filters
from benchmark.options import filter_defaults, make_rule
from benchmark.order import keyed_uint64
from benchmark.pool import Pool
from benchmark.registry import FILTERS_DIR, STRATEGIES, Strategy
from benchmark.samples import SampleReader, decode_image
from benchmark.scales import Scale
from benchmark.stage import (
    Json,
    Record,
    cost,
    digest,
    locked,
    read_record,
    remove_temporary,
    say,
    sha256_of,
    write_bytes,
    write_record,
)
from benchmark.subset import Subset, load_subset
from benchmark.uids import count_of, format_uids, parse_uids, sort_uids, unique_uids

if TYPE_CHECKING:
    from leaderboard.entries import Board, Entry

REPORT_VERSION = 1
REPORT_DIR_NAME = "report"
PAGE_NAME = "index.html"
RECORD_NAME = "report.json"

SCORE_COLUMNS = ("clip_l14_similarity_score", "clip_b32_similarity_score")
SCORE_EDGES = np.round(np.linspace(-1, 1, 201), 2)  # cosine similarities, in steps of 0.01
BUCKET_BINS = (5, 10, 20)  # bins per bucket: the first of them that makes no more than MAX_BUCKETS
MAX_BUCKETS = 16
CAPTION_WORDS = (0, 1, 2, 3, 5, 8, 13, 21)  # where each bucket begins
SHORTER_SIDE = (0, 50, 100, 200, 400, 800)  # pixels, before any resizing

SHEET_SAMPLES = 48
SHEET_STREAM = 101  # of the hash that draws a sheet's samples; apart from every recipe's streams
THUMBNAIL = 112  # pixels of the longer side
MAX_CAPTION = 240  # characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Group:
    """Rows of the pool that have something in common, and how many of them were kept."""

    label: str
    rows: int
    kept: int


@dataclass(frozen=True)
class Grouping:
    """One way to part the pool's rows."""

    title: str
    groups: list[Group]


@dataclass(frozen=True)
class ScoreHistogram:
    """How a score is distributed over kept and dropped rows."""

    column: str
    kept: np.ndarray  # (bins,) int64, between SCORE_EDGES
    dropped: np.ndarray  # (bins,) int64
    lowest_kept: float | None
    highest_dropped: float | None
    num_missing: int

    @property
    def is_cut(self) -> bool:
        """Tell whether this score alone separates kept from dropped rows, ties aside."""
        return (
            self.lowest_kept is not None
            and self.highest_dropped is not None
            and self.highest_dropped <= self.lowest_kept
        )

    @property
    def bins(self) -> slice:
        """Return the part of SCORE_EDGES' bins that holds anything, one bin more on either side."""
        filled = np.flatnonzero(self.kept + self.dropped)
        if len(filled) == 0:
            return slice(0, 0)
        return slice(max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, len(self.kept)))


@dataclass(frozen=True)
class SheetSample:
    """One sample of a contact sheet."""

    uid: str
    picture: bytes | None  # a JPEG of our own making; None where the sample's cannot be decoded
    caption: str
    notes: list[str]


@dataclass(frozen=True)
class Sheet:
    """Some of the kept, or of the dropped samples."""

    title: str
    samples: list[SheetSample]
    num_present: int
    num_absent: int  # rows without an image in the pool


@dataclass(frozen=True)
class Overlap:
    """What two subsets share, in uids."""

    name: str
    cut: str
    size: int
    shared: int
    only_this: int  # uids of the experiment's subset alone
    only_that: int

    @property
    def jaccard(self) -> float:
        """Return shared uids over all uids of either subset."""
        return self.shared / (self.shared + self.only_this + self.only_that)


@dataclass(frozen=True)
class Survey:
    """Everything that a report counts and shows of a pool and a subset."""

    num_kept: int  # rows of the pool whose uid is in the subset
    histograms: list[ScoreHistogram]
    groupings: list[Grouping]
    sheets: list[Sheet]  # empty where the pool has no images


def report_stage(exp_dir: Path, pool: Pool, scale: Scale) -> Path:
    """Make the experiment's report, or reuse the one that is there and fits; return the page's path.

    Raises FileNotFoundError or ValueError where there is no subset, or where it or the entry is not what its record
    says.
    """
    subset_path, record = open_experiment(exp_dir, pool)
    refuse_changed(subset_path, record.result["sha256"])
    board_html = _board_html(exp_dir, record, scale)
    rules, skipped = comparable_rules(pool)
    descriptions, cut_columns = _descriptions(record), _cut_columns(record)
    made_from: dict[str, Json] = {
        "subset": record.result["sha256"],
        "filter": record.hash,
        "pool": pool.identity.as_json() if pool.has_images else {"fingerprint": pool.fingerprint},
        "planted": sha256_of(planted_path(pool)) if planted_path(pool).exists() else None,
        "entry": sha256_of(exp_dir / ENTRY_NAME) if (exp_dir / ENTRY_NAME).exists() else None,
        "board": digest(board_html),
        "compared": [rule.as_json(pool.dir) for rule in rules],
        "descriptions": digest([descriptions, cut_columns]),
    }
    report_dir = exp_dir / REPORT_DIR_NAME
    page_path, record_path = report_dir / PAGE_NAME, report_dir / RECORD_NAME
    with locked(report_dir):
        remove_temporary(report_dir)
        there = read_record(record_path)
        wanted = Record("report", REPORT_VERSION, made_from, {})
        if there is not None and there.hash == wanted.hash and _has_files(report_dir, there):
            say(f"report: as before, {page_path}")
            return page_path
        with cost(exp_dir, "report"):
            # First of all, so that no record ever stands beside another report's files.
            record_path.unlink(missing_ok=True)
            for path in report_dir.glob("*.png"):
                path.unlink()
            subset = load_subset(subset_path)
            survey = survey_pool(pool, subset)
            overlaps, failures = overlaps_with(pool, subset, rules)
            plots = {
                f"score-{each.column}.png": plot_scores(each, has_cut=each.is_cut or each.column in cut_columns)
                for each in survey.histograms
                if each.bins.stop
            }
            page = _page(record, descriptions, pool, survey, plots, overlaps, skipped | failures, board_html)
            files = {**plots, PAGE_NAME: page.encode(errors="replace")}
            for name, data in files.items():
                write_bytes(report_dir / name, data)
            result = {"files": {name: sha256_of(report_dir / name) for name in files}}
            write_record(record_path, Record("report", REPORT_VERSION, made_from, result))
    say(f"report: {page_path}" + ("" if there is None else f" (made anew: {_changes(there, wanted)})"))
    return page_path


def comparable_rules(pool: Pool) -> tuple[list[Rule], dict[str, str]]:
    """Return the shipped filters that the pool can run, at their declared cuts, and why other strategies are not."""
    rules, skipped = [], {}
    for name in sorted(STRATEGIES):
        strategy = STRATEGIES[name]
        if strategy.source_path.parent != FILTERS_DIR:
            continue
        if reason := _why_not(pool, strategy):
            skipped[name] = reason
        else:
            rules.append(make_rule(name, filter_defaults(strategy)))
    return rules, skipped


def overlaps_with(pool: Pool, subset: Subset, rules: Sequence[Rule]) -> tuple[list[Overlap], dict[str, str]]:
    """Compare the subset with what each rule alone chooses from the pool; return also the rules that chose nothing."""
    own, _ = unique_uids(np.asarray(subset.uids))
    overlaps, failures = [], {}
    for rule in rules:
        try:
            chosen = run_filters(pool, [rule]).subset
        except (ValueError, FileNotFoundError) as error:
            failures[rule.name] = str(error)
            continue
        other, _ = unique_uids(chosen.uids)
        shared = int((count_of(other, own) > 0).sum())
        cut = "" if rule.cut is None else f"{rule.cut.kind} {rule.cut.value:g}"
        overlaps.append(Overlap(rule.name, cut, len(other), shared, len(own) - shared, len(other) - shared))
    return overlaps, failures


def survey_pool(pool: Pool, subset: Subset) -> Survey:
    """Count and show what the subset keeps of the pool; metadata is read shard by shard, and of it what is needed.

    A row counts as kept where its uid is in the subset.
    """
    uids = np.concatenate([pool.read_uids(path) for path in pool.metadata_paths])
    is_kept = count_of(uids, subset.uids) > 0
    drawn = _draw_sheets(pool, uids, is_kept) if pool.has_images else []
    notes: dict[str, list[str]] = {uid: [] for each in drawn for uid in format_uids(uids[each.rows])}

    columns = [name for name in (*SCORE_COLUMNS, "text", "original_width", "original_height") if _has(pool, name)]
    scores = {name: _ScoreCounts() for name in SCORE_COLUMNS if name in columns}
    words, sides = _BucketCounts(CAPTION_WORDS), _BucketCounts(SHORTER_SIDE)
    has_sizes = {"original_width", "original_height"} <= set(columns)
    start = 0
    for path in pool.metadata_paths:
        rows = pool.read_columns(path, columns)
        end = start + len(rows)
        kept = is_kept[start:end]
        for name, counts in scores.items():
            counts.add(rows[name].to_numpy(dtype=float, na_value=np.nan), kept)
        if "text" in columns:
            words.add(rows["text"].map(_num_words, na_action="ignore").to_numpy(dtype=float, na_value=np.nan), kept)
        if has_sizes:
            sizes = rows[["original_width", "original_height"]].to_numpy(dtype=float, na_value=np.nan)
            sides.add(sizes.min(axis=1), kept)
        for each in drawn:
            for row in each.rows[(each.rows >= start) & (each.rows < end)].tolist():
                shown = [f"{_short_name(name)} {rows[name].iloc[row - start]:.3f}" for name in scores]
                notes[format_uids(uids[row : row + 1])[0]] += shown
        start = end

    groupings = _planted_groupings(pool, subset, notes)
    histograms = [counts.histogram(name) for name, counts in scores.items()]
    for histogram in histograms:
        groupings.append(Grouping(f"By {_short_name(histogram.column)} similarity", _score_groups(histogram)))
    if "text" in columns:
        groupings.append(Grouping("By caption length (words)", words.groups("no caption")))
    if has_sizes:
        groupings.append(Grouping("By original size (shorter side, pixels)", sides.groups("unknown")))
    sheets = [_sheet(pool, each, uids, notes) for each in drawn]
    return Survey(int(is_kept.sum()), histograms, groupings, sheets)


def plot_scores(histogram: ScoreHistogram, *, has_cut: bool) -> bytes:
    """Draw kept against dropped rows as a PNG, with the lowest kept score where a rule cuts this score."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's style would change the bytes
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        bins = histogram.bins
        edges, kept = SCORE_EDGES[bins.start : bins.stop + 1], histogram.kept[bins]
        axes.stairs(kept, edges, fill=True, color="#2a6f97", label="kept")
        axes.stairs(kept + histogram.dropped[bins], edges, baseline=kept, fill=True, color="#d4cdc1", label="dropped")
        if has_cut and histogram.lowest_kept is not None:
            text = "cut" if histogram.is_cut else "lowest kept"
            label = f"{text}: {histogram.lowest_kept:.3f}"
            axes.axvline(histogram.lowest_kept, color="#b23a48", linewidth=1.2, linestyle="--", label=label)
        axes.set_xlabel(histogram.column)
        axes.set_ylabel("rows")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# --- Counting ------------------------------------------------------------------------------------------------------


class _ScoreCounts:
    """A histogram that grows shard by shard."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, len(SCORE_EDGES) - 1), dtype=np.int64)  # (dropped and kept, bins)
        self.lowest_kept, self.highest_dropped = np.inf, -np.inf
        self.num_missing = 0

    def add(self, scores: np.ndarray, is_kept: np.ndarray) -> None:
        is_known = ~np.isnan(scores)
        self.num_missing += int((~is_known).sum())
        for side in (0, 1):
            chosen = scores[is_known & (is_kept == bool(side))]
            self.counts[side] += np.histogram(np.clip(chosen, SCORE_EDGES[0], SCORE_EDGES[-1]), SCORE_EDGES)[0]
        self.lowest_kept = min(self.lowest_kept, scores[is_known & is_kept].min(initial=np.inf))
        self.highest_dropped = max(self.highest_dropped, scores[is_known & ~is_kept].max(initial=-np.inf))

    def histogram(self, column: str) -> ScoreHistogram:
        lowest, highest = float(self.lowest_kept), float(self.highest_dropped)
        return ScoreHistogram(
            column,
            kept=self.counts[1],
            dropped=self.counts[0],
            lowest_kept=lowest if np.isfinite(lowest) else None,
            highest_dropped=highest if np.isfinite(highest) else None,
            num_missing=self.num_missing,
        )


class _BucketCounts:
    """Rows per bucket of whole numbers, growing shard by shard; the last bucket is for missing values."""

    def __init__(self, begins: Sequence[int]) -> None:
        self.begins = begins
        self.counts = np.zeros((2, len(begins) + 1), dtype=np.int64)  # (dropped and kept, buckets)

    def add(self, values: np.ndarray, is_kept: np.ndarray) -> None:
        buckets = np.where(np.isnan(values), len(self.begins), np.maximum(np.digitize(values, self.begins) - 1, 0))
        for side in (0, 1):
            self.counts[side] += np.bincount(buckets[is_kept == bool(side)], minlength=self.counts.shape[1])

    def groups(self, missing: str) -> list[Group]:
        ends = [next_begin - 1 for next_begin in self.begins[1:]]
        labels = [
            str(begin) if begin == end else f"{begin} to {end}"
            for begin, end in zip(self.begins[:-1], ends, strict=True)
        ]
        return _groups([*labels, f"{self.begins[-1]} and more", missing], self.counts)


def _groups(labels: Sequence[str], counts: np.ndarray) -> list[Group]:
    """Return the groups that have rows; `counts` are (dropped and kept, groups)."""
    rows = counts.sum(axis=0)
    return [Group(label, int(rows[i]), int(counts[1, i])) for i, label in enumerate(labels) if rows[i]]


def _score_groups(histogram: ScoreHistogram) -> list[Group]:
    counts = np.stack([histogram.dropped, histogram.kept])
    groups: list[Group] = []
    for num_bins in BUCKET_BINS:
        edges = SCORE_EDGES[::num_bins].tolist()
        labels = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
        groups = _groups(labels, counts.reshape(2, -1, num_bins).sum(axis=2))
        if len(groups) <= MAX_BUCKETS:
            break
    return groups


def _planted_groupings(pool: Pool, subset: Subset, notes: dict[str, list[str]]) -> list[Grouping]:
    """Count rows per planted kind, where there are labels, and note the kinds of the samples that are shown."""
    path = planted_path(pool)
    if not path.exists():
        return []
    file = pq.ParquetFile(path)
    kinds = [field.name for field in file.schema_arrow if pa.types.is_boolean(field.type)]
    counts = np.zeros((2, len(kinds)), dtype=np.int64)
    for batch in file.iter_batches(batch_size=1 << 20, columns=["uid", *kinds]):
        kept = count_of(parse_uids(batch.column("uid"), str(path)), subset.uids) > 0
        labels = batch.select(kinds).to_pandas().to_numpy(dtype=bool)  # (rows, kinds)
        counts += np.stack([labels[~kept].sum(axis=0), labels[kept].sum(axis=0)])
        for row in np.flatnonzero(pd.Series(batch.column("uid").to_pylist()).isin(list(notes)).to_numpy()).tolist():
            uid = batch.column("uid")[row].as_py()
            notes[uid] += [kind for kind, planted in zip(kinds, labels[row], strict=True) if planted]
    return [Grouping("By planted kind (a row may have several; no filter sees them)", _groups(kinds, counts))]


# --- Contact sheets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    title: str
    rows: np.ndarray  # of the pool, (samples,)
    num_present: int
    num_absent: int


def _draw_sheets(pool: Pool, uids: np.ndarray, is_kept: np.ndarray) -> list[_Drawn]:
    """Draw the samples to show by a hash of their uid, so that neither files nor their order matter."""
    is_present = count_of(uids, sort_uids(pool.index.uids)) > 0
    drawn = []
    for title, mask in (("Kept", is_kept), ("Dropped", ~is_kept)):
        present = np.flatnonzero(mask & is_present)
        keys = keyed_uint64(SHEET_STREAM, uids["f0"][present], uids["f1"][present])
        rows = present[np.argsort(keys, kind="stable")]
        is_first = np.ones(len(rows), dtype=bool)  # a uid on several rows is shown once
        is_first[1:] = uids[rows[1:]] != uids[rows[:-1]]
        rows = rows[is_first][:SHEET_SAMPLES]
        drawn.append(_Drawn(title, rows, len(present), int(mask.sum()) - len(present)))
    return drawn


def _sheet(pool: Pool, drawn: _Drawn, uids: np.ndarray, notes: dict[str, list[str]]) -> Sheet:
    index = pool.index
    wanted = uids[drawn.rows]
    near = np.flatnonzero(np.isin(index.uids["f0"], wanted["f0"]))  # a few; compared in full below
    places = [int(near[index.uids[near] == uid][0]) for uid in wanted]
    reader = SampleReader(index, np.array(places, dtype=np.int64))
    samples = []
    for number, uid in enumerate(format_uids(wanted)):
        data, text = reader.read(number)
        image = decode_image(data)
        picture = None if image is None else thumbnail(np.asarray(image))
        samples.append(SheetSample(uid, picture, text.decode(errors="replace"), notes[uid]))
    return Sheet(drawn.title, samples, drawn.num_present, drawn.num_absent)


def thumbnail(pixels: np.ndarray) -> bytes:
    """Encode an image (height, width, 3) uint8 as a small JPEG; of the sample's file nothing but the pixels is kept."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


# --- The page ------------------------------------------------------------------------------------------------------

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
.bar { display: inline-block; width: 7rem; height: .7rem; background: #e9e4da; }
.bar i { display: block; height: 100%; background: #2a6f97; }
@media (max-width: 32rem) { th, td { padding: .2rem .4rem; } .bar { width: 4rem; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { color: #6b655c; }
dd { margin: 0; overflow-wrap: anywhere; }
.plot { max-width: 100%; height: auto; }
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


def _page(
    record: Record,
    descriptions: Sequence[str],
    pool: Pool,
    survey: Survey,
    plots: dict[str, bytes],
    overlaps: Sequence[Overlap],
    skipped: dict[str, str],
    board_html: str,
) -> str:
    name = _experiment_name(record)
    sections = [
        f"<h1>{_text(name)}</h1>",
        _facts_html(record, descriptions, pool, survey),
        "<h2>On the board</h2>",
        board_html,
        _rules_html(record),
        _scores_html(survey, plots),
        "<h2>What was kept</h2>" if survey.groupings else "",
        *[_grouping_html(grouping) for grouping in survey.groupings],
        *[_sheet_html(sheet) for sheet in survey.sheets],
        "" if survey.sheets else "<h2>Samples</h2><p>The pool has no shards here, so there are no images to show.</p>",
        _overlaps_html(overlaps, skipped),
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


def _facts_html(record: Record, descriptions: Sequence[str], pool: Pool, survey: Survey) -> str:
    made_from, result = record.made_from, record.result
    facts: list[tuple[str, str]] = []
    for rule, description in zip(made_from["filters"], descriptions, strict=True):
        options = [f"{key}={value}" for key, value in {**rule["options"], **(rule["cut"] or {})}.items()]
        facts.append(("filter", f"{rule['name']} ({', '.join(options)})" if options else rule["name"]))
        if description:
            facts.append(("", description))
    if made_from["subset"]:
        facts.append(("subset", f"a file taken as it is, sha256 {made_from['subset'][:12]}"))
    if made_from["within"]:
        facts.append(("within", f"an earlier subset, sha256 {made_from['within'][:12]}, of {result['rows']:,} rows"))
    present = f", {len(pool.index):,} samples present" if pool.has_images else ", no images here"
    facts.append(("pool", f"{made_from['pool'][:12]}: {pool.num_rows:,} rows{present}"))
    copies = "" if result["size"] == result["distinct"] else f"; {result['size']:,} with copies"
    facts.append(
        ("kept", f"{result['distinct']:,} uids, {_percent(result['distinct'], pool.num_rows)} of the pool{copies}")
    )
    if survey.num_kept != result["distinct"]:
        facts.append(("", f"they stand on {survey.num_kept:,} rows; below, a row is kept where its uid is"))
    if result["reference"]:
        facts.append(("reference", "knows the planted labels: not ranked, cannot be submitted, no ceiling"))
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts) + "</dl>"


def _rules_html(record: Record) -> str:
    reports = [RuleReport(**report) for report in record.result["rules"]]
    if not reports:
        return ""
    rows = [
        [each.name, f"{each.kept:,}", f"{each.dropped:,}", f"{each.only_dropped:,}", f"{each.no_verdict:,}"]
        for each in reports
    ]
    table = _table_html(["rule", "kept", "dropped", "only it dropped", "no verdict"], rows)
    about = f"Each rule votes on all {record.result['rows']:,} rows. Rows without a verdict are dropped."
    return f"<h2>Rule by rule</h2><p>{_text(about)}</p>{table}"


def _scores_html(survey: Survey, plots: dict[str, bytes]) -> str:
    parts = []
    for histogram in survey.histograms:
        plot = plots.get(f"score-{histogram.column}.png")
        if plot is not None:
            alt = f"Histogram of {histogram.column}, kept against dropped rows"
            parts.append(f'<img class="plot" alt="{_text(alt)}" src="{_data_url(plot, "png")}">')
        if histogram.num_missing:
            parts.append(f"<p>Without {_text(histogram.column)}: {_rows(histogram.num_missing)}.</p>")
    return "<h2>Scores</h2>" + "".join(parts) if parts else ""


def _grouping_html(grouping: Grouping) -> str:
    rows = [
        [group.label, f"{group.rows:,}", f"{group.kept:,}", _percent(group.kept, group.rows)]
        for group in grouping.groups
    ]
    bars = [f"{100 * group.kept / group.rows:.1f}" for group in grouping.groups]
    return f"<h3>{_text(grouping.title)}</h3>" + _table_html(["", "rows", "kept", "share kept"], rows, bars)


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


def _overlaps_html(overlaps: Sequence[Overlap], skipped: dict[str, str]) -> str:
    header = ["strategy", "cut", "its uids", "shared", "only this", "only that", "Jaccard"]
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
        for each in overlaps
    ]
    about = "This subset (this), and what each shipped strategy alone keeps of the whole pool at its cut (that)."
    notes = "".join(f'<p class="small">Left out: {_text(name)}, {_text(why)}.</p>' for name, why in skipped.items())
    table = _table_html(header, rows) if rows else ""
    return f"<h2>Overlap with the shipped strategies</h2><p>{about}</p>{table}{notes}"


def _table_html(header: Sequence[str], rows: Iterable[Sequence[str]], bars: Sequence[str] = ()) -> str:
    """Spell a table, its first column to the left; `bars` are percentages, drawn in a last column."""

    def line(tag: str, cells: Sequence[str], more: str = "") -> str:
        first, *others = [_text(cell) for cell in cells]
        inner = f'<{tag} class="left">{first}</{tag}>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in others)
        return f"<tr>{inner}{more}</tr>"

    ends = [f'<td><span class="bar"><i style="width:{bar}%"></i></span></td>' for bar in bars]
    head = line("th", header, "<th></th>" if bars else "")
    body = "\n".join(line("td", row, ends[number] if bars else "") for number, row in enumerate(rows))
    return f'<div class="wide"><table>\n{head}\n{body}\n</table></div>'


def _text(value: str) -> str:
    """Escape for text and quoted attributes; control characters, which no page needs, become U+FFFD."""
    return escape(CONTROL.sub("\ufffd", value))


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _num_words(caption: str) -> int:
    return len(caption.split())


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _short_name(column: str) -> str:
    return column.removeprefix("clip_").removesuffix("_similarity_score")


# --- Inputs --------------------------------------------------------------------------------------------------------


def _experiment_name(record: Record) -> str:
    names = [rule["name"] for rule in record.made_from["filters"]]
    return " + ".join(names) or f"subset {record.made_from['subset'][:8]}"


def _descriptions(record: Record) -> list[str]:
    """Return the one-line summary of each rule, empty where its file is not loaded."""
    known = [STRATEGIES.get(rule["name"]) for rule in record.made_from["filters"]]
    return ["" if strategy is None else strategy.summary for strategy in known]


def _cut_columns(record: Record) -> list[str]:
    """Return the columns that the experiment's rules with a cut read, as far as their files are loaded."""
    columns = set()
    for rule in record.made_from["filters"]:
        strategy = STRATEGIES.get(rule["name"])
        if strategy is not None and rule["cut"]:
            columns |= set(strategy.needed_columns(rule["options"]))
    return sorted(columns)


def _why_not(pool: Pool, strategy: Strategy) -> str:
    """Say why the pool cannot run a strategy with its defaults; empty where it can."""
    if strategy.kind == "selector":
        return "it sees the whole pool at once, which may take minutes"
    if strategy.images:
        return "it looks at every image, which may take minutes"
    if strategy.reference:
        return "a reference"
    required = [option.name for option in strategy.options.values() if option.is_required]
    if required:
        return f"its option {required[0]!r} has no default"
    options = {option.name: option.default for option in strategy.options.values()}
    lacking = [column for column in strategy.needed_columns(options) if not _has(pool, column)]
    for feature in strategy.needed_features(options):
        try:
            pool.check_features([feature], strategy.name)
        except (ValueError, FileNotFoundError):
            lacking.append(feature)
    if lacking:
        return f"the pool lacks {', '.join(lacking)}"
    try:
        find_assets(strategy, options, pool.dir)
    except FileNotFoundError:
        # Without the folders' paths: the page is the same wherever the pool lies.
        return f"it needs {' and '.join(strategy.needed_assets(options).values())}"
    return ""


def _has(pool: Pool, column: str) -> bool:
    try:
        pool.check_columns([column], "report")
    except ValueError:
        return False
    return True


def _board_html(exp_dir: Path, record: Record, scale: Scale) -> str:
    """Return the board's table with this experiment in it, or what can be said without one."""
    from leaderboard.entries import BOARDS_DIR, RULES_NAME, read_board, read_entries, read_entry, read_other_pools
    from leaderboard.table import make_table, render_html

    entry_path = exp_dir / ENTRY_NAME
    entry: Entry | None = read_entry(entry_path) if entry_path.exists() else None
    if entry is not None and entry.subset.sha256 != record.result["sha256"]:
        raise ValueError(
            f"{entry_path} is about another subset than {exp_dir} has; run `winnow evaluate exp_dir={exp_dir}` again"
        )
    board_dir = BOARDS_DIR / (scale.name if entry is None else entry.scale)
    board: Board | None = read_board(board_dir) if (board_dir / RULES_NAME).is_file() else None
    if entry is not None and board is not None:
        return render_html(make_table(read_entries(board), board, entry, read_other_pools(board)))
    why = "There is no board for this scale." if board is None else "No seed has been scored on the whole suite yet."
    return f"<p>{why}</p>" + ("" if board is None else f"<p>{_text(board.rules.note)}</p>")


def _has_files(report_dir: Path, record: Record) -> bool:
    files: dict[str, str] = record.result["files"]
    return all((report_dir / name).is_file() and sha256_of(report_dir / name) == files[name] for name in files)


def _changes(there: Record, wanted: Record) -> str:
    """Say what changed since a report was made."""
    changed = [key for key, value in wanted.made_from.items() if there.made_from.get(key) != value]
    if there.version != wanted.version:
        changed.append("the report's version")
    return f"{', '.join(changed)} changed" if changed else "its files were changed or lost"
