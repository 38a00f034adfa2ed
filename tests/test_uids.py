"""Uids: parsing, order, counts, fingerprint."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from benchmark.uids import UID_DTYPE, count_of, fingerprint_of, format_uids, is_sorted, parse_uids, sort_uids

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
        ([A, None], "uid in row 1 is null"),
        ([A, "12"], "uid in row 1 is '12'"),
        ([A[:-1] + "g"], "uid in row 0"),
        ([A, A[:31]], "uid in row 1"),
    ],
)
def test_malformed_uids_are_named(texts, message):
    with pytest.raises(ValueError, match=f"pool.parquet: the {message}"):
        parse_uids(texts, "pool.parquet")


def test_numbers_are_no_uids():
    with pytest.raises(ValueError, match="expected strings"):
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
