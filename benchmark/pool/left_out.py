"""What of a pool's tars no stage will see, in sentences: files not taken, samples that cannot be used, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_scan import IMAGE_ORDER
from benchmark.pool.shards import tell_left_out
from benchmark.pool.shards_note import tars_left_out

MAX_KINDS = 3  # of unusable samples that are named of a pool


def left_out_lines(pool_dir: Path, summary: IndexSummary | None) -> list[str]:
    """Return a sentence for each kind of samples that a pool leaves out and its owner may not know of.

    Samples that merely lack something, such as a picture whose link was dead, are none of them: see `unusable_lines`.
    """
    files = tars_left_out(pool_dir)
    num_tars = 0 if summary is None else len(summary.tars)
    dotted = None if summary is None else tell_dotted(summary)
    return ([tell_left_out(files, num_tars)] if files else []) + ([dotted] if dotted else [])


def tell_dotted(summary: IndexSummary) -> str | None:
    """Say how many pictures and captions are lost to dots in their names; None where none is."""
    found = [(tar, counts) for tar, counts in zip(summary.tars, summary.counts, strict=True) if counts.dotted]
    if not found:
        return None
    tar, counts = found[0]
    name = counts.dotted_example
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (
        f"{sum(each.dotted for _, each in found):,} samples have dots in their names, and so no picture or caption: a "
        f"key ends at the first dot, as in webdataset, and {name!r} in {tar.label} is taken for the member "
        f"{extension!r} of the key {folder + slash + stem!r}; rename them"
    )


def unusable_lines(summary: IndexSummary, *, needs_json: bool, caption: str = "txt") -> list[str]:
    """Say what the samples that cannot be used have and what they lack, the most frequent kinds first."""
    counts: Counter[tuple[str, ...]] = Counter()
    examples: dict[tuple[str, ...], str] = {}
    for tar, each in zip(summary.tars, summary.counts, strict=True):
        for kind in each.lacking:
            counts[kind.members] += kind.count
            examples.setdefault(kind.members, f"{kind.example!r} in {tar.label}")
    lines = []
    for members, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_KINDS]:
        lacked = [] if set(members) & set(IMAGE_ORDER) else [f"no picture ({', '.join(IMAGE_ORDER)})"]
        lacked += [] if caption in members else [f"no caption ({caption})"]
        lacked += ["no json with a uid"] if needs_json and "json" not in members else []
        lines.append(f"{count:,} samples have {_joined(members)}, but {_joined(lacked)}, such as {examples[members]}")
    return lines


def tell_nothing_usable(summary: IndexSummary, *, needs_json: bool, fields: Sequence[str] = ()) -> str:
    """Say why none of the tars' samples can be used: what was found in them, what not, and what to do.

    `fields`: of the samples' JSON, that hold texts.
    """
    causes = []
    if summary.damaged:
        causes.append(summary.tell_damage())
    causes += unusable_lines(summary, needs_json=needs_json)
    if dotted := tell_dotted(summary):
        causes.append(dotted)
    lacks_captions = any("txt" not in kind.members for each in summary.counts for kind in each.lacking)
    if fields and lacks_captions:
        causes.append(
            f"their json has texts in {_joined(fields[:MAX_KINDS])}: --column text={fields[0]}, without --metadata, "
            "takes the captions from there"
        )
    if not causes:
        causes.append("they hold no file whose name is a key, a dot and an extension, such as 0001.jpg")
    return "; ".join(causes)


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
