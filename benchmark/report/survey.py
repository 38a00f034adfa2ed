"""What a report counts and shows of a pool and a subset: groups of rows, distributions of scores, drawn samples.

Metadata is read shard by shard, and of it what is needed. A row counts as kept where its uid is in the subset.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from benchmark.pool.pool import Pool, planted_path
from benchmark.pool.samples import SampleReader, decode_image
from benchmark.pool.subset import Subset
from benchmark.pool.uids import UID_DTYPE, count_of, format_uids, sort_uids
from benchmark.runtime.keyed import keyed_uint64
from benchmark.runtime.tables import read_parquet
from benchmark.selection.rules import Cut, ResolvedRule
from benchmark.selection.scoring import score_pool, top_fraction
from benchmark.toolbox.language import language_of, load_language_model

SCORE_COLUMNS = ("clip_l14_similarity_score", "clip_b32_similarity_score")
SCORE_EDGES = np.round(np.linspace(-1, 1, 201), 2)  # cosine similarities, in steps of 0.01
BUCKET_BINS = (5, 10, 20)  # bins per bucket: the first of them that makes no more than MAX_BUCKETS
MAX_BUCKETS = 16
CAPTION_WORDS = (0, 1, 2, 3, 5, 8, 13, 21)  # where each bucket begins
SHORTER_SIDE = (0, 50, 100, 200, 400, 800)  # pixels, before any resizing
MAX_LANGUAGES = 10  # that have a line of their own
LANGUAGE_ROWS = 100_000  # of larger pools the languages of about so many rows are looked at
MAX_PLANTED_VALUES = 20  # a planted column of text is a grouping if it has at most so many values

FRACTIONS = np.round(np.arange(1, 21) / 20, 2)  # of the curves: 0.05 to 1.0
RULE_BINS = 80  # of a rule's histogram
OUTLIERS = 0.0005  # share of scores on either side that the outermost bins gather

SHEET_SAMPLES = 48
SHEET_STREAM, LANGUAGE_STREAM = 101, 102  # of the hashes that draw samples; apart from every recipe's streams
THUMBNAIL = 112  # pixels of the longer side


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
    is_planted: bool = False  # by labels that only an embedded pool has


@dataclass(frozen=True)
class Histogram:
    """How a score is distributed over kept and dropped rows."""

    name: str  # of the score: a metadata column, or a rule
    edges: np.ndarray  # (bins + 1,)
    kept: np.ndarray  # (bins,) int64
    dropped: np.ndarray  # (bins,) int64
    dropped_by_others: np.ndarray | None  # (bins,) int64; rows that this rule would have kept
    cut_score: float | None  # the lowest score that the rule lets pass
    num_missing: int

    @property
    def num_rows(self) -> int:
        """Return how many rows have a score."""
        others = 0 if self.dropped_by_others is None else self.dropped_by_others.sum()
        return int(self.kept.sum() + self.dropped.sum() + others)


@dataclass(frozen=True)
class FractionCurves:
    """What one rule alone would keep of each group at other fractions of the pool."""

    rule: str
    title: str  # of the groups
    is_planted: bool
    labels: list[str]
    rows: list[int]  # per group
    shares: np.ndarray  # (groups, FRACTIONS)
    cut_fraction: float | None  # the share of the pool that the rule's own cut lets pass


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
class Survey:
    """Everything that a report counts and shows of a pool and a subset."""

    num_rows: int
    num_kept: int  # rows of the pool whose uid is in the subset
    histograms: list[Histogram]
    groupings: list[Grouping]
    curves: list[FractionCurves]
    sheets: list[Sheet]  # empty where the pool has no images
    failures: dict[str, str]  # rules whose scores could not be had again, and why


def survey_pool(pool: Pool, subset: Subset, rules: Sequence[ResolvedRule] = (), *, is_within: bool = False) -> Survey:
    """Count and show what the subset keeps of the pool.

    Of a pool of shards alone these are its samples and their pictures: there are no columns to count by.

    `rules` are the filters with a cut that chose it; their scores are computed again. `is_within` says that they chose
    inside an earlier subset, so that the place of a fraction's cut among the pool's scores is not known.
    """
    uids = np.concatenate([np.empty(0, dtype=UID_DTYPE), *pool.uid_parts()])
    is_kept = count_of(uids, subset.uids) > 0
    drawn = _draw_sheets(pool, uids, is_kept) if pool.has_images else []
    notes: dict[str, list[str]] = {uid: [] for each in drawn for uid in format_uids(uids[each.rows])}

    columns = [name for name in (*SCORE_COLUMNS, "text", "original_width", "original_height") if has_column(pool, name)]
    scores = {name: _ScoreCounts() for name in SCORE_COLUMNS if name in columns}
    words, sides = _BucketCounts(CAPTION_WORDS), _BucketCounts(SHORTER_SIDE)
    languages = _Languages(uids) if "text" in columns else None
    has_sizes = {"original_width", "original_height"} <= set(columns)
    start = 0
    for path in pool.metadata_paths:
        rows = pool.read_columns(path, columns)
        end = start + len(rows)
        kept = is_kept[start:end]
        for name, counts in scores.items():
            counts.add(rows[name].to_numpy(dtype=float, na_value=np.nan), kept)
        if languages is not None:
            words.add(rows["text"].map(_num_words, na_action="ignore").to_numpy(dtype=float, na_value=np.nan), kept)
            languages.add(rows["text"], start)
        if has_sizes:
            sizes = rows[["original_width", "original_height"]].to_numpy(dtype=float, na_value=np.nan)
            sides.add(sizes.min(axis=1), kept)
        for each in drawn:
            for row in each.rows[(each.rows >= start) & (each.rows < end)].tolist():
                shown = [f"{short_name(name)} {rows[name].iloc[row - start]:.2f}" for name in scores]
                notes[format_uids(uids[row : row + 1])[0]] += shown
        start = end

    partitions = _planted_partitions(pool, uids, notes)
    if languages is not None:
        partitions.append(languages.partition())
    groupings = [each.grouping(is_kept) for each in partitions]
    histograms, curves, failures = _score_rules(pool, uids, is_kept, rules, partitions, is_within)
    cut_columns = {column for rule in rules for column in rule.columns}
    for name, counts in scores.items():
        groupings.append(Grouping(f"By {short_name(name)} similarity", counts.groups()))
        if name not in cut_columns or failures:
            histograms.append(counts.histogram(name))
    if languages is not None:
        groupings.append(Grouping("By caption length (words)", words.groups("no caption")))
    if has_sizes:
        groupings.append(Grouping("By original size (shorter side, pixels)", sides.groups("unknown")))
    sheets = [_sheet(pool, each, uids, notes) for each in drawn]
    groupings = [each for each in groupings if each.groups]
    return Survey(len(uids), int(is_kept.sum()), histograms, groupings, curves, sheets, failures)


def kept_at_fractions(
    scores: np.ndarray, is_judged: np.ndarray, uids: np.ndarray, members: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the share of each group that a cut at each of FRACTIONS keeps: (groups, fractions).

    `members` are masks of the rows; a fraction counts all rows, as `filtering.top_fraction` does.
    """
    judged = np.flatnonzero(is_judged)
    order = judged[np.lexsort((uids["f1"][judged], uids["f0"][judged], -scores[judged].astype(np.float64)))]
    wanted = [round(fraction * len(uids)) for fraction in FRACTIONS.tolist()]
    shares = np.zeros((len(members), len(FRACTIONS)))
    for number, is_member in enumerate(members):
        places = np.flatnonzero(is_member[order])  # of the group's rows, best first
        shares[number] = np.searchsorted(places, wanted) / max(int(is_member.sum()), 1)
    return shares


def has_column(pool: Pool, column: str) -> bool:
    """Tell whether every metadata shard has the column, in a type that can be read; a pool of shards alone has none."""
    if not pool.metadata_paths:
        return False
    try:
        pool.check_columns([column], "report")
    except ValueError:
        return False
    return True


def short_name(column: str) -> str:
    """Spell a similarity's column for people."""
    return column.removeprefix("clip_").removesuffix("_similarity_score")


# --- Counting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Partition:
    """Groups of rows by mask; a row may be in several, or in none."""

    title: str
    labels: list[str]
    members: list[np.ndarray]  # each (rows,) bool
    is_planted: bool = False

    def grouping(self, is_kept: np.ndarray) -> Grouping:
        groups = [
            Group(label, int(is_member.sum()), int((is_member & is_kept).sum()))
            for label, is_member in zip(self.labels, self.members, strict=True)
        ]
        return Grouping(self.title, [group for group in groups if group.rows], self.is_planted)


class _ScoreCounts:
    """A histogram that grows shard by shard."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, len(SCORE_EDGES) - 1), dtype=np.int64)  # (dropped and kept, bins)
        self.num_missing = 0

    def add(self, scores: np.ndarray, is_kept: np.ndarray) -> None:
        is_known = ~np.isnan(scores)
        self.num_missing += int((~is_known).sum())
        for side in (0, 1):
            chosen = scores[is_known & (is_kept == bool(side))]
            self.counts[side] += np.histogram(np.clip(chosen, SCORE_EDGES[0], SCORE_EDGES[-1]), SCORE_EDGES)[0]

    def histogram(self, column: str) -> Histogram:
        """Return the bins that hold anything, one bin more on either side."""
        filled = np.flatnonzero(self.counts.sum(axis=0))
        low, high = (0, 0) if len(filled) == 0 else (max(int(filled[0]) - 1, 0), int(filled[-1]) + 2)
        edges = SCORE_EDGES[low : high + 1]
        dropped, kept = self.counts[:, low : low + len(edges) - 1]
        return Histogram(column, edges, kept, dropped, None, None, self.num_missing)

    def groups(self) -> list[Group]:
        groups: list[Group] = []
        for num_bins in BUCKET_BINS:
            edges = SCORE_EDGES[::num_bins].tolist()
            labels = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
            groups = _groups(labels, self.counts.reshape(2, -1, num_bins).sum(axis=2))
            if len(groups) <= MAX_BUCKETS:
                break
        return groups


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


class _Languages:
    """The language of every caption, or of a sample that a hash of the uid draws; grows shard by shard."""

    def __init__(self, uids: np.ndarray) -> None:
        self.is_drawn = np.ones(len(uids), dtype=bool)
        if len(uids) > LANGUAGE_ROWS:
            below = np.uint64(LANGUAGE_ROWS / len(uids) * 2**64)
            self.is_drawn = keyed_uint64(LANGUAGE_STREAM, uids["f0"], uids["f1"]) < below
        self.model = load_language_model(None, option="report")
        self.codes = np.full(len(uids), -1, dtype=np.int16)  # places in names; -1 where no caption is known
        self.names: dict[str, int] = {}

    def add(self, captions: pd.Series, start: int) -> None:
        is_wanted = captions.notna().to_numpy() & self.is_drawn[start : start + len(captions)]
        for row, caption in zip(np.flatnonzero(is_wanted).tolist(), captions[is_wanted], strict=True):
            name = language_of(self.model, caption)
            self.codes[start + row] = self.names.setdefault(name, len(self.names))

    def partition(self) -> _Partition:
        counts = {name: int((self.codes == code).sum()) for name, code in self.names.items()}
        own = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_LANGUAGES]
        own_codes = [self.names[name] for name in own]
        is_missing = self.is_drawn & (self.codes < 0)
        members = [self.codes == code for code in own_codes]
        members += [(self.codes >= 0) & ~np.isin(self.codes, own_codes), is_missing]
        drawn = int(self.is_drawn.sum())
        of_sample = "" if self.is_drawn.all() else f", of {drawn:,} rows drawn by a hash of the uid"
        title = f"By caption language (fastText's guess{of_sample})"
        labels = [*own, "other languages", "no caption"]
        shown = [number for number, is_member in enumerate(members) if is_member.any()]
        return _Partition(title, [labels[number] for number in shown], [members[number] for number in shown])


def _groups(labels: Sequence[str], counts: np.ndarray) -> list[Group]:
    """Return the groups that have rows; `counts` are (dropped and kept, groups)."""
    rows = counts.sum(axis=0)
    return [Group(label, int(rows[i]), int(counts[1, i])) for i, label in enumerate(labels) if rows[i]]


def _planted_partitions(pool: Pool, uids: np.ndarray, notes: dict[str, list[str]]) -> list[_Partition]:
    """Part the rows by planted labels, where there are any, and note the kinds of the samples that are shown.

    Columns of truth values are kinds, together one partition; a column of text with few values is one more.
    """
    path = planted_path(pool)
    if not path.exists():
        return []
    table = read_parquet(path)
    kinds = [field.name for field in table.schema if pa.types.is_boolean(field.type)]
    texts = [field.name for field in table.schema if _is_text(field.type) and field.name != "uid"]
    labels = table.select(["uid", *kinds, *texts]).to_pandas().drop_duplicates("uid").set_index("uid")
    rows = labels.reindex(format_uids(uids))
    masks = {kind: rows[kind].eq(True).to_numpy(dtype=bool) for kind in kinds}
    for uid in notes:
        if uid in labels.index:
            notes[uid] += [kind for kind in kinds if labels.at[uid, kind]]
    partitions = []
    if shown := [kind for kind in kinds if masks[kind].any()]:
        title = "By planted kind (a row may have several; no filter sees them)"
        partitions.append(_Partition(title, shown, [masks[kind] for kind in shown], is_planted=True))
    for name in texts:
        values = sorted(rows[name].dropna().unique().tolist())
        if 0 < len(values) <= MAX_PLANTED_VALUES:
            members = [rows[name].eq(value).to_numpy(dtype=bool) for value in values]
            partitions.append(_Partition(f"By planted {name} (no filter sees it)", values, members, is_planted=True))
    return partitions


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _num_words(caption: str) -> int:
    return len(caption.split())


# --- The rules' own scores -----------------------------------------------------------------------------------------


def _score_rules(
    pool: Pool,
    uids: np.ndarray,
    is_kept: np.ndarray,
    rules: Sequence[ResolvedRule],
    partitions: Sequence[_Partition],
    is_within: bool,
) -> tuple[list[Histogram], list[FractionCurves], dict[str, str]]:
    histograms: list[Histogram] = []
    curves: list[FractionCurves] = []
    failures: dict[str, str] = {}
    for rule in rules:
        assert rule.cut is not None
        try:
            scores, is_judged = score_pool(pool, rule)
        except (ValueError, FileNotFoundError) as error:
            failures[rule.name] = str(error)
            continue
        passes = _passing(scores, is_judged, uids, rule.cut, is_within)
        histograms.append(_rule_histogram(rule.name, scores, is_judged, is_kept, passes))
        for each in partitions:
            if len(each.labels) > 1 or each.is_planted:
                shares = kept_at_fractions(scores, is_judged, uids, each.members)
                rows = [int(is_member.sum()) for is_member in each.members]
                at_cut = None if passes is None else float(passes.mean())
                curves.append(FractionCurves(rule.name, each.title, each.is_planted, each.labels, rows, shares, at_cut))
    return histograms, curves, failures


def _passing(
    scores: np.ndarray, is_judged: np.ndarray, uids: np.ndarray, cut: Cut, is_within: bool
) -> np.ndarray | None:
    """Return the rows that the cut alone lets pass, as the filter engine does; None where that is not known."""
    if cut.kind == "threshold":
        return is_judged & (scores >= scores.dtype.type(cut.value))
    if is_within:
        return None
    passes = np.zeros(len(scores), dtype=bool)
    judged = np.flatnonzero(is_judged)
    passes[judged[top_fraction(scores[judged], uids[judged], cut.value, len(uids))]] = True
    return passes


def _rule_histogram(
    name: str, scores: np.ndarray, is_judged: np.ndarray, is_kept: np.ndarray, passes: np.ndarray | None
) -> Histogram:
    known = scores[is_judged & np.isfinite(scores)].astype(np.float64)
    low, high = np.quantile(known, [OUTLIERS, 1 - OUTLIERS]).tolist() if len(known) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / RULE_BINS
    cut_score = float(scores[passes].min()) if passes is not None and passes.any() else None
    if cut_score is not None and low < cut_score < high:
        low = cut_score - np.ceil((cut_score - low) / width) * width  # so that no bin lies on both sides of the cut
    edges = low + width * np.arange(np.ceil((high - low) / width) + 1)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(scores[mask & is_judged].astype(np.float64), edges[0], edges[-1]), edges)[0]

    num_missing = int((~is_judged).sum())
    if passes is None:
        return Histogram(name, edges, count(is_kept), count(~is_kept), None, None, num_missing)
    by_itself, by_others = count(~is_kept & ~passes), count(~is_kept & passes)
    return Histogram(name, edges, count(is_kept), by_itself, by_others, cut_score, num_missing)


# --- Contact sheets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    title: str
    rows: np.ndarray  # of the pool, (samples,)
    num_present: int
    num_absent: int


def _draw_sheets(pool: Pool, uids: np.ndarray, is_kept: np.ndarray) -> list[_Drawn]:
    """Draw the samples to show by a hash of their uid, so that neither files nor their order matter."""
    is_present = count_of(uids, sort_uids(pool.load_index().uids)) > 0
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
    index = pool.load_index()
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
