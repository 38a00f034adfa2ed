"""Uids: parsing, order, counts, fingerprint."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from benchmark.pool import uids as uids_module
from benchmark.pool.uids import (
    UID_DTYPE,
    UidMarks,
    count_of,
    find_uids,
    fingerprint_of,
    format_uids,
    is_sorted,
    parse_uids,
    repeated_uids,
    sort_uids,
    sorted_blocks,
    walk_together,
)
from tests.conftest import user_error

A, B, C = "0" * 31 + "1", "0" * 15 + "1" + "0" * 16, "ffffffffffffffff0000000000000002"


def test_parse_splits_into_upper_and_lower_64_bits():
    uids = parse_uids([A, B, C.upper()])
    assert uids.dtype == UID_DTYPE
    assert uids.tolist() == [(0, 1), (1, 0), (2**64 - 1, 2)]
    assert format_uids(uids) == [A, B, C]


def test_parse_reads_a_slice_of_a_larger_array():
    array = pa.chunked_array([pa.array([C, A, B]).slice(1, 2), pa.array([C])])
    assert format_uids(parse_uids(array)) == [A, B, C]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([A, None], "row 1 "),
        ([A, "12"], "row 1 .*'12'"),
        ([A[:-1] + "g"], "row 0"),
        ([A, A[:31]], "row 1"),
    ],
)
def test_malformed_uids_are_named(texts, message):
    with user_error("uid-invalid", match=f"pool.parquet: .*{message}"):
        parse_uids(texts, "pool.parquet")


def test_numbers_are_no_uids():
    with user_error("column-type"):
        parse_uids(pa.array([1, 2]))


def test_order_is_that_of_128_bit_numbers():
    generator = np.random.default_rng(0)
    uids = generator.integers(0, 2**64, size=(200, 2), dtype=np.uint64).view(UID_DTYPE).reshape(-1)
    uids["f0"][:100] = 7
    ordered = sort_uids(uids)
    numbers = [int(text, 16) for text in format_uids(ordered)]
    assert numbers == sorted(int(text, 16) for text in format_uids(uids))
    assert is_sorted(ordered)
    assert not is_sorted(ordered[::-1])


def test_count_of_counts_copies():
    held = sort_uids(parse_uids([A, C, A, A]))
    assert count_of(parse_uids([B, A, C, A]), held).tolist() == [0, 3, 1, 3]
    assert count_of(parse_uids([B]), held[:0]).tolist() == [0]


def test_fingerprint_is_the_sum_of_hashes_in_any_order():
    uids = parse_uids([A, B, A])
    expected = sum(int.from_bytes(hashlib.sha256(bytes.fromhex(text)).digest()) for text in (A, B, A)) % 2**256
    assert fingerprint_of(uids) == fingerprint_of(uids[::-1]) == expected
    assert fingerprint_of(uids) != fingerprint_of(uids[:2])


def drawn(seed: int, count: int, *, upper: int = 5, lower: int = 5, top: int = 0) -> np.ndarray:
    """Draw few different uids many times: halves below `upper` and `lower`, the upper one shifted by `top` bits."""
    generator = np.random.default_rng(seed)
    uids = np.empty(count, dtype=UID_DTYPE)
    uids["f0"] = generator.integers(0, upper, count).astype(np.uint64) << np.uint64(top)
    uids["f1"] = generator.integers(0, lower, count)
    return uids


ALIKE = pytest.mark.parametrize(("upper", "lower"), [(1, 40), (40, 1), (6, 6), (200, 200)])


@ALIKE
@pytest.mark.parametrize("dense", [0, 8, 10**6])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_searches_agree_with_a_counter_and_a_list(monkeypatch, upper, lower, dense, block):
    monkeypatch.setattr(uids_module, "DENSE", dense)
    monkeypatch.setattr(uids_module, "BLOCK", block)
    held, asked = sort_uids(drawn(0, 150, upper=upper, lower=lower)), drawn(1, 90, upper=upper + 1, lower=lower + 1)
    counts, known = Counter(held.tolist()), held.tolist()
    assert count_of(asked, held).tolist() == [counts[uid] for uid in asked.tolist()]
    assert find_uids(asked, held).tolist() == [known.index(uid) if uid in counts else -1 for uid in asked.tolist()]
    assert count_of(asked, held).dtype == find_uids(asked, held).dtype == np.int64
    assert find_uids(asked, held[:0]).tolist() == [-1] * 90 and count_of(asked[:0], held).tolist() == []


def test_the_smallest_and_the_largest_uid_are_found():
    held = parse_uids(["0" * 32, "f" * 32, "f" * 32])
    assert count_of(held, held).tolist() == [1, 2, 2]
    assert find_uids(held[::-1], held).tolist() == [1, 1, 0]


@pytest.mark.parametrize("block_size", [1, 2, 3, 100])
def test_a_decrease_is_seen_wherever_blocks_end(block_size):
    held = sort_uids(drawn(0, 9, upper=3, lower=100))
    assert is_sorted(held, block_size) and is_sorted(held[:1], block_size) and is_sorted(held[:0], block_size)
    for row in range(8):
        swapped = held.copy()
        swapped[[row, row + 1]] = held[[row + 1, row]]
        assert not is_sorted(swapped, block_size)


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 64, 1000])
def test_a_walk_gives_every_uid_once_with_each_arrays_copies(block_size):
    arrays = [sort_uids(drawn(seed, count)) for seed, count in ((0, 60), (1, 7), (2, 0), (3, 200))]
    blocks = list(walk_together(arrays, block_size))
    assert all(len(uids) <= max(block_size, len(arrays)) for uids, _ in blocks)
    walked = [uid for uids, _ in blocks for uid in uids.tolist()]
    assert walked == sorted(set().union(*(array.tolist() for array in arrays)))
    copies = np.concatenate([copies for _, copies in blocks], axis=1)
    for array, row in zip(arrays, copies.tolist(), strict=True):
        counts = Counter(array.tolist())
        assert row == [counts[uid] for uid in walked]


def test_marks_tell_which_uids_of_a_subset_were_seen(tmp_path):
    path = tmp_path / "subset.npy"
    np.save(path, sort_uids(drawn(0, 70)))
    marks = UidMarks(np.load(path, mmap_mode="r"), block_size=3)  # runs of one uid cross the blocks
    known = sorted(set(drawn(0, 70).tolist()))
    assert (marks.num_marked, marks.num_distinct) == (0, len(known))
    seen = [known[9], known[2], (77, 7), known[9]]
    marks.mark(np.array(seen[:2], dtype=UID_DTYPE))
    marks.mark(np.array(seen[2:], dtype=UID_DTYPE))
    assert marks.num_marked == 2
    rest = [uid for uid in known if uid not in seen]
    assert marks.unmarked(100).tolist() == rest and marks.unmarked(3).tolist() == rest[:3]
    assert marks.unmarked(0).tolist() == []
    marks.mark(np.array(rest, dtype=UID_DTYPE))
    assert marks.num_marked == marks.num_distinct and marks.unmarked(5).tolist() == []


def test_marks_of_an_empty_subset():
    marks = UidMarks(np.empty(0, dtype=UID_DTYPE))
    marks.mark(parse_uids([A, B]))
    assert (marks.num_marked, marks.num_distinct, marks.unmarked(3).tolist()) == (0, 0, [])


@pytest.mark.parametrize("max_held", [10, 10_000])
@pytest.mark.parametrize("top", [0, 56, 61])  # all uids in one file, or over several
def test_sorting_in_files_is_sorting(tmp_path, max_held, top):
    parts = [drawn(seed, count, upper=8, top=top) for seed, count in ((0, 3), (1, 0), (2, 200), (3, 90))]
    blocks = list(sorted_blocks(iter(parts), tmp_path, max_held=max_held))
    whole = [uid for part in parts for uid in part.tolist()]
    assert [uid for block in blocks for uid in block.tolist()] == sorted(whole)
    assert all(before[-1].item() < block[0].item() for before, block in pairwise(blocks))
    assert len(blocks) == 1 if max_held > len(whole) else all(len(b) <= 10 or len(set(b.tolist())) == 1 for b in blocks)
    repeated = repeated_uids(parts, tmp_path, max_held=max_held)
    assert repeated.tolist() == sorted(uid for uid, count in Counter(whole).items() if count > 1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_sorted_is_nothing(tmp_path):
    assert list(sorted_blocks([], tmp_path)) == [] and repeated_uids([drawn(0, 0)], tmp_path).tolist() == []


def test_files_of_a_sort_are_removed_however_it_ends(tmp_path):
    def parts():
        yield drawn(0, 50, top=61)
        assert 1 < len(list(tmp_path.rglob("*"))) <= 1 + 256
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(sorted_blocks(parts(), tmp_path, max_held=10))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "uid-buckets").mkdir()
    (tmp_path / "uid-buckets" / "00").write_bytes(b"left by a kill")
    blocks = sorted_blocks([drawn(0, 50, top=61)], tmp_path, max_held=10)
    assert set(next(blocks)["f0"].tolist()) == {0}
    blocks.close()
    assert list(tmp_path.iterdir()) == []
