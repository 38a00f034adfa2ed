"""The index: offsets that lead to the bytes, order, counts, damage."""

import hashlib
import os
import tarfile

import pytest

from benchmark.index import build_index, index_tar, read_index
from benchmark.tars import write_tar
from benchmark.uids import format_uids
from tests.conftest import jpeg, members, uid


def test_offsets_lead_to_the_bytes_of_each_member(tmp_path):
    path = tmp_path / "shards" / "00000000.tar"
    write_tar(path, members("000000000", 5, text="ein Haus") + members("000000001", 3, image=jpeg((0, 0, 9), 16)))
    index = read_index(tmp_path)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        for row, key in enumerate(["000000000", "000000001"]):
            for kind, extension in (("image", "jpg"), ("text", "txt")):
                start = getattr(index, f"{kind}_offset")[row]
                length = getattr(index, f"{kind}_length")[row]
                assert data[start : start + length] == tar.extractfile(f"{key}.{extension}").read()
    assert format_uids(index.uids) == [uid(5), uid(3)]


def test_pool_order_is_tars_by_name_then_tar_order(tmp_path):
    write_tar(tmp_path / "shards" / "b.tar", members("k", 1) + members("j", 2))
    write_tar(tmp_path / "shards" / "a.tar", members("z", 9))
    index = read_index(tmp_path)
    assert format_uids(index.uids) == [uid(9), uid(1), uid(2)]
    assert index.tar_number.tolist() == [0, 1, 1]


def test_samples_without_image_caption_or_json_are_counted(tmp_path):
    whole, no_image, no_text, no_json = (members(f"k{n}", n) for n in range(4))
    write_tar(tmp_path / "shards" / "a.tar", whole + no_image[1:] + no_text[:2] + [no_json[0], no_json[2]])
    index = read_index(tmp_path)
    assert format_uids(index.uids) == [uid(0)]
    assert (index.num_incomplete, index.num_without_json) == (2, 1)


def test_extensions_may_be_upper_case_and_keys_end_at_the_first_dot(tmp_path):
    image, record, text = members("folder/k.v", 1)
    write_tar(
        tmp_path / "shards" / "a.tar",
        [("folder/k.JPG", image[1]), ("folder/k.json", record[1]), ("folder/k.txt", text[1])],
    )
    table = index_tar(tmp_path / "shards" / "a.tar")
    assert table["key"].to_pylist() == ["folder/k"]
    assert table["image_extension"].to_pylist() == ["jpg"]


def test_content_hash_is_the_sum_of_image_hashes_and_needs_no_order(tmp_path):
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(3)]
    samples = [members(f"k{n}", n, sha256=hashes[n]) for n in range(3)]
    write_tar(tmp_path / "one" / "shards" / "a.tar", samples[0] + samples[1] + samples[2])
    write_tar(tmp_path / "two" / "shards" / "a.tar", samples[2])
    write_tar(tmp_path / "two" / "shards" / "b.tar", samples[1] + samples[0])
    expected = f"{sum(int(value, 16) for value in hashes) % 2**256:064x}"
    assert read_index(tmp_path / "one").content_hash == read_index(tmp_path / "two").content_hash == expected


@pytest.mark.parametrize("cut", ["in a member", "in a header", "between members"])
def test_a_truncated_tar_is_an_error_that_names_it(tmp_path, cut):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k0", 0) + members("k1", 1))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    size = {"in a member": last.offset_data + 2, "in a header": last.offset + 100, "between members": last.offset}[cut]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.tar is damaged"):
        build_index(tmp_path)
    assert not list((tmp_path / "index").glob("*.parquet*"))


def test_a_corrupt_header_is_an_error_not_the_end(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k0", 0) + members("k1", 1))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[header + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.tar is damaged: at byte {header}"):
        build_index(tmp_path)


def test_a_json_without_uid_and_a_malformed_uid_are_named(tmp_path):
    image, _, text = members("k", 0)
    write_tar(tmp_path / "a.tar", [image, ("k.json", b"{}"), text])
    with pytest.raises(ValueError, match="json of sample 'k' names no uid"):
        index_tar(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", [image, ("k.json", b'{"uid": "12"}'), text])
    with pytest.raises(ValueError, match=r"b\.tar: the uid in row 0 is '12'"):
        index_tar(tmp_path / "b.tar")


def test_only_changed_tars_are_read_again(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    write_tar(tmp_path / "shards" / "b.tar", members("k", 2))
    build_index(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    write_tar(tmp_path / "shards" / "b.tar", members("k", 3) + members("l", 4))
    index = read_index(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    assert format_uids(index.uids) == [uid(1), uid(3), uid(4)]
    assert before["a.parquet"] == after["a.parquet"] and before["b.parquet"] != after["b.parquet"]


def test_a_pool_without_tars_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no tar in"):
        read_index(tmp_path)


def test_a_tar_replaced_by_an_older_one_is_read_again(tmp_path):
    """rsync keeps times, so a changed tar may be older than its index; its padded size may be the same."""
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 1) + members("l", 2))
    build_index(tmp_path)
    size = path.stat().st_size
    write_tar(path, members("l", 2) + members("k", 1))
    assert path.stat().st_size == size
    os.utime(path, (1, 1))
    assert format_uids(read_index(tmp_path).uids) == [uid(2), uid(1)]


def test_a_damaged_index_is_made_anew(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    build_index(tmp_path)
    path = tmp_path / "index" / "a.parquet"
    times = path.stat().st_mtime_ns
    path.write_bytes(b"PAR1")
    os.utime(path, ns=(times, times))
    assert format_uids(read_index(tmp_path).uids) == [uid(1)]
