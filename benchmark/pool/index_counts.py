"""What an index counts: samples and coverage, gaps, damage, and what cannot be used."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.pool.index_table import present_rows
from benchmark.pool.shards import Tar
from benchmark.pool.tars import IMAGE_FORMATS, Damage
from benchmark.pool.uids import fingerprint_of
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError

MAX_KINDS = 8  # of unusable samples that are named of a tar, by their members
MAX_MEMBERS = 6  # of such a sample that are named


@dataclass(frozen=True)
class Lacking:
    """Samples that cannot be used and have the same members."""

    members: tuple[str, ...]  # their extensions, sorted
    count: int
    example: str  # a key


@dataclass(frozen=True)
class TarCounts:
    """What a tar's index says of it, without its rows."""

    rows: int  # samples that have a uid
    present: int  # and of these, with image and caption
    without_image: int
    without_text: int
    without_json: int  # samples that no uid is known of; they are no rows
    content_sum: str  # of the image hashes of the present samples, modulo 2^256: 64 hex characters
    uid_sum: str  # the fingerprint of the rows' uids
    damage: int  # places that could not be read
    damage_places: tuple[str, ...]  # the first of them
    # What follows is written into an index only where something is left out; where it is there, the index knows it.
    empty: int = 0  # samples with neither picture nor caption where uids are made of these; they are no rows
    dotted: int = 0  # pictures or captions that a dot in their names hides from their samples
    dotted_example: str = ""  # a name
    lacking: tuple[Lacking, ...] = ()  # the samples that cannot be used, the most frequent kinds

    @property
    def num_incomplete(self) -> int:
        return self.rows - self.present

    @property
    def is_sound(self) -> bool:
        """Tell whether all that the tar holds is in samples that can be used."""
        left_out = self.num_incomplete + self.without_json + self.damage + self.empty + self.dotted
        return not left_out


@dataclass(frozen=True)
class IndexSummary:
    """What the footers of a whole index say."""

    tars: list[Tar]
    counts: list[TarCounts]  # of each tar

    @property
    def content_hash(self) -> str:
        """Return the sum modulo 2^256 of the image hashes, as 64 hex characters."""
        return f"{sum(int(each.content_sum, 16) for each in self.counts) % 2**256:064x}"

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the index's uids: of a pool that has no metadata."""
        return f"{sum(int(each.uid_sum, 16) for each in self.counts) % 2**256:064x}"

    @property
    def num_rows(self) -> int:
        return sum(each.rows for each in self.counts)

    @property
    def num_present(self) -> int:
        return sum(each.present for each in self.counts)

    @property
    def damaged(self) -> list[tuple[Tar, TarCounts]]:
        return [(tar, each) for tar, each in zip(self.tars, self.counts, strict=True) if each.damage]

    @property
    def gaps(self) -> list[str]:
        """Return the numbers that the tars' names leave out, as "3" or "5-8"."""
        found = [re.fullmatch(r"(.*?)(\d+)", tar.path.stem) for tar in self.tars]
        if not all(found):
            return []
        numbers = sorted({int(match[2]) for match in found if match})
        missing = [(a + 1, b - 1) for a, b in pairwise(numbers) if b > a + 1]
        return [str(first) if first == last else f"{first}-{last}" for first, last in missing]

    def tell_damage(self) -> str:
        """Say how many tars are damaged, with an example; there must be one."""
        tar, counts = self.damaged[0]
        return (
            f"{len(self.damaged):,} of {len(self.tars):,} tars are damaged ({sum(c.damage for _, c in self.damaged):,} "
            f"places), such as {tar.path}: {counts.damage_places[0]}"
        )

    def refuse_damage(self, strict: bool) -> None:
        """Raise ValueError where a tar is damaged, or warn where `strict` is False."""
        if not self.damaged:
            return
        what = self.tell_damage()
        if strict:
            raise UserError(
                f"{what}. `winnow pool index` lists them; fetch them again, or go on with what can be read of them by "
                "strict=false",
                code="tar-damaged",
            )
        warn(f"{what}; going on with what can be read (strict=false)")


class UnusableSamples:
    """Collects what samples that cannot be used consist of, and what dots in names hide."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, ...], list[str]] = {}
        self.counts: dict[tuple[str, ...], int] = defaultdict(int)
        self.dotted = 0
        self.dotted_example = ""

    def add(self, key: str, extensions: Iterable[str]) -> None:
        """Take in a sample that cannot be used."""
        named = sorted(extensions)
        members = tuple(named[:MAX_MEMBERS]) + (("...",) if len(named) > MAX_MEMBERS else ())
        self.kinds.setdefault(members, [key])
        self.counts[members] += 1
        self.look_for_dots(key, named)

    def look_for_dots(self, key: str, extensions: Sequence[str]) -> None:
        """Count the pictures and captions that hide behind a dot.

        Beside a picture and a caption that are the sample's own, only pairs that look like a sample count: members
        such as `thumb.jpg` are nobody's loss.
        """
        split = [(each, *each.rpartition(".")[::2]) for each in extensions if "." in each]
        if not split:
            return
        pictures = {before: each for each, before, last in split if last in IMAGE_FORMATS}
        captions = {before: each for each, before, last in split if last == "txt"}
        if IMAGE_FORMATS.keys() & set(extensions) and "txt" in extensions:
            hidden = {before: pictures[before] for before in pictures if before in captions}
        else:
            lacked = [] if IMAGE_FORMATS.keys() & set(extensions) else [pictures]
            lacked += [] if "txt" in extensions else [captions]
            hidden = max(lacked, key=len)
        self.dotted += len(hidden)
        if hidden and not self.dotted_example:
            self.dotted_example = f"{key}.{min(hidden.values())}"

    def lacking(self) -> tuple[Lacking, ...]:
        """Return the most frequent kinds."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_KINDS]
        return tuple(Lacking(members, count, self.kinds[members][0]) for members, count in ordered)


def counts_of(
    table: pa.Table,
    uids: np.ndarray,
    damage: Damage,
    without_json: int = 0,
    empty: int = 0,
    unusable: UnusableSamples | None = None,
) -> TarCounts:
    """Count what a tar's index holds; `unusable` has the samples that are no rows, and takes in rows."""
    has_image, has_text = (table[f"{name}_offset"].to_numpy() >= 0 for name in ("image", "text"))
    is_present = present_rows(table)
    # The sums over the samples that are there, so that content hashes need no second pass.
    total = 0
    hashes, lengths = table["image_sha256"].to_pylist(), table["image_length"].to_numpy()
    packed = table["uid"].to_pylist()
    for row in np.flatnonzero(is_present).tolist():
        # Without an image hash, uid and length stand in: enough to see that another set of samples is there.
        digest = hashes[row] or hashlib.sha256(f"{packed[row]!r}{lengths[row]}".encode()).digest()
        total += int.from_bytes(digest)
    unusable = unusable or UnusableSamples()
    _look_over(table, is_present, unusable)
    return TarCounts(
        rows=table.num_rows,
        present=int(is_present.sum()),
        without_image=int((~has_image).sum()),
        without_text=int((~has_text).sum()),
        without_json=without_json,
        content_sum=f"{total % 2**256:064x}",
        uid_sum=f"{fingerprint_of(uids):064x}",
        damage=damage.count,
        damage_places=tuple(damage.places),
        empty=empty,
        dotted=unusable.dotted,
        dotted_example=unusable.dotted_example,
        lacking=unusable.lacking(),
    )


def _look_over(table: pa.Table, is_present: np.ndarray, unusable: UnusableSamples) -> None:
    """Take in the rows that cannot be used, and of the others those whose members have dots in their extensions."""
    others = table["others"].combine_chunks()
    parents, extensions = pc.list_parent_indices(others), pc.struct_field(pc.list_flatten(others), "extension")
    has_dots = parents.filter(pc.match_substring(extensions, ".")).unique()
    rows = np.union1d(np.flatnonzero(~is_present), has_dots.to_numpy()).astype(np.int64)
    columns = ["key", "image_extension", "text_offset", "json_offset", "others"]
    for row, values in zip(rows.tolist(), table.select(columns).take(pa.array(rows)).to_pylist(), strict=True):
        named = [] if values["image_extension"] is None else [values["image_extension"]]
        named += ["txt"] if values["text_offset"] not in (-1, values["json_offset"]) else []
        named += ["json"] if values["json_offset"] >= 0 else []
        named += [each["extension"] for each in values["others"] or ()]
        if is_present[row]:
            unusable.look_for_dots(values["key"], sorted(named))
        else:
            unusable.add(values["key"], named)
