"""The index: offsets that lead to the bytes, order, counts, damage."""

import gzip
import hashlib
import io
import os
import tarfile

import numpy as np
import pytest

from benchmark.index import ShardsNote, build_index, has_tars, index_tar, not_taken, read_index, write_note
from benchmark.tars import Damage, iter_members, scan_tar, write_tar
from benchmark.uids import format_uids
from tests.conftest import jpeg, members, uid


def index_of(path):
    return index_tar(path, path.stat().st_size)


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
    assert [(each.num_incomplete, each.without_json) for each in index.summary.counts] == [(2, 1)]


def test_extensions_may_be_upper_case_and_keys_end_at_the_first_dot(tmp_path):
    image, record, text = members("folder/k.v", 1)
    write_tar(
        tmp_path / "shards" / "a.tar",
        [("folder/k.JPG", image[1]), ("folder/k.json", record[1]), ("folder/k.txt", text[1])],
    )
    table = index_of(tmp_path / "shards" / "a.tar")[0]
    assert table["key"].to_pylist() == ["folder/k"]
    assert table["image_extension"].to_pylist() == ["jpg"]


def test_content_hash_is_the_sum_of_image_hashes_and_needs_no_order(tmp_path):
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(3)]
    samples = [members(f"k{n}", n, sha256=hashes[n]) for n in range(3)]
    write_tar(tmp_path / "one" / "shards" / "a.tar", samples[0] + samples[1] + samples[2])
    write_tar(tmp_path / "two" / "shards" / "a.tar", samples[2])
    write_tar(tmp_path / "two" / "shards" / "b.tar", samples[1] + samples[0])
    expected = f"{sum(int(value, 16) for value in hashes) % 2**256:064x}"
    assert [read_index(tmp_path / name).summary.content_hash for name in ("one", "two")] == [expected] * 2


@pytest.mark.parametrize("cut", ["in a member", "in a header", "between members"])
def test_a_truncated_tar_is_an_error_that_names_it_and_loses_what_is_cut_off(tmp_path, cut):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k0", 0) + members("k1", 1))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    size = {"in a member": last.offset_data + 2, "in a header": last.offset + 100, "between members": last.offset}[cut]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"1 of 1 tars are damaged.*a\.tar.*cut off"):
        read_index(tmp_path)
    (counts,) = build_index(tmp_path).counts
    assert (counts.rows, counts.present, counts.without_text, counts.damage) == (2, 1, 1, 1)
    assert f"at byte {last.offset} " in counts.damage_places[0]


def test_a_corrupt_header_is_an_error_and_loses_one_member(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, [m for n in range(4) for m in members(f"k{n}", n)])
    with tarfile.open(path) as tar:
        broken, after = tar.getmembers()[4:6]  # k1.json, k1.txt
    data = bytearray(path.read_bytes())
    data[broken.offset + 130] ^= 0xFF  # in the size
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"a\.tar: at byte {broken.offset} stands no header.*{after.offset - broken.offset:,}"
    ):
        read_index(tmp_path)
    (counts,) = build_index(tmp_path).counts
    assert (counts.rows, counts.present, counts.without_json, counts.damage) == (3, 3, 1, 1)


def test_at_whatever_byte_a_tar_is_cut_off_the_samples_before_are_kept(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, [m for n in range(3) for m in members(f"k{n}", n)])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [each.offset_data + each.size for each in tar.getmembers()]
    for size in range(1, len(whole) - 1024, 97):
        path.write_bytes(whole[:size])
        _, counts = index_of(path)
        there = sum(end <= size for end in ends)
        assert (counts.present, counts.damage) == (there // 3, int(size < ends[-1] + -ends[-1] % 512 + 512)), size


def test_a_hole_of_zeros_loses_what_stands_there(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, [m for n in range(5) for m in members(f"k{n}", n)])
    with tarfile.open(path) as tar:
        header = tar.getmembers()[3].offset  # k1.jpg
    data = bytearray(path.read_bytes())
    data[header : header + 512] = bytes(512)
    path.write_bytes(data)
    table, counts = index_of(path)
    assert table["key"].to_pylist() == ["k0", "k1", "k2", "k3", "k4"]
    assert (counts.present, counts.without_image, counts.damage) == (4, 1, 1)


def test_a_download_whose_end_was_never_written_is_damage(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 0))
    path.write_bytes(path.read_bytes() + bytes(2 << 20))
    _, counts = index_of(path)
    assert counts.present == 1 and "zeros end the tar" in counts.damage_places[0]


def test_folders_with_a_size_and_what_macos_adds_are_stepped_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo("d")
        folder.type, folder.size = tarfile.DIRTYPE, 1024
        tar.addfile(folder)
        for name, data in members("k", 1):
            for each in ("._" + name, name, "README"):
                info = tarfile.TarInfo(each)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    table, counts = index_of(path)
    assert (table["key"].to_pylist(), counts.present, counts.damage) == (["k"], 1, 0)


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-5", ""])
def test_a_made_up_pax_header_stops_nothing(tmp_path, size):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x.bin")
        info.pax_headers = {"size": size, "comment": "c"}
        tar.addfile(info)
        for name, data in members("k", 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert index_of(path)[1].present == 1


def test_flipped_bytes_never_stop_the_walk_and_lose_what_they_hit(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [m for n in range(6) for m in members(f"k{n}", n)])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    with tarfile.open(path) as tar:
        heads = {each.offset: each.name for each in tar.getmembers()}
    sound = [each.name for each in iter_members(path)]
    for _ in range(200):
        data = bytearray(whole)
        block = int(rng.integers(len(whole) // 512 - 4)) * 512
        data[block : block + 512] = rng.integers(0, 256, 512, dtype=np.uint8).tobytes()
        damage = Damage()
        found = [each.name for each in scan_tar(lambda at, n, d=bytes(data): d[at : at + n], len(data), damage)]
        assert found == [name for name in sound if name != heads.get(block)] and damage.count <= 1


def test_a_second_tar_behind_the_end_of_the_first_is_damage(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 0))
    path.write_bytes(path.read_bytes() * 2)
    (counts,) = build_index(tmp_path).counts
    assert (counts.rows, counts.damage) == (2, 1) and "zeros stand before the tar's end" in counts.damage_places[0]


def test_links_are_damage_and_no_samples(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 0))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (counts,) = build_index(tmp_path).counts
    assert counts.rows == 1 and "'l.jpg' is not a plain file" in counts.damage_places[0]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tars_gives_what_tarfile_reads(tmp_path, tar_format):
    """Long names, long folders, non-ASCII names, empty members, folders, times with fractions (webdataset's)."""
    names = ["a.jpg", "ä" * 30 + ".txt", "f" * 60 + "/" + "g" * 60 + ".json", "dir/x.tar.gz", "empty.txt"]
    if tar_format != tarfile.USTAR_FORMAT:
        names.append("h" * 180 + ".jpg")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 0 if "empty" in name else 700 * number + 1, 1234.5
            tar.addfile(info, io.BytesIO(bytes([number + 1]) * info.size))
    with tarfile.open(path) as tar:
        expected = [(each.name, each.offset_data, each.size) for each in tar if each.isfile()]
    assert [(each.name, each.offset, each.size) for each in iter_members(path)] == expected
    assert len(expected) == len(names)


def test_a_member_that_a_sample_has_already_begins_the_next_sample(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1) + members("k", 2))
    assert format_uids(read_index(tmp_path).uids) == [uid(1), uid(2)]


def test_other_members_and_other_pictures_are_kept_in_sight(tmp_path):
    sample = [*members("k", 1), ("k.npy", b"123"), ("k.png", b"4567")]
    write_tar(tmp_path / "shards" / "a.tar", sample)
    table, _ = index_of(tmp_path / "shards" / "a.tar")
    assert [(each["extension"], each["length"]) for each in table["others"].to_pylist()[0]] == [("npy", 3), ("png", 4)]


def test_gaps_in_the_numbering_are_found(tmp_path):
    for name in ("00000000", "00000003", "00000005"):
        write_tar(tmp_path / "shards" / f"{name}.tar", members("k", int(name)))
    assert build_index(tmp_path).gaps == ["1-2", "4"]


def test_images_are_hashed_where_the_json_names_no_hash_and_that_is_asked_for(tmp_path):
    known = hashlib.sha256(b"of the original").hexdigest()
    write_tar(
        tmp_path / "shards" / "a.tar", members("k", 1, image=b"one") + members("l", 2, image=b"two", sha256=known)
    )
    build_index(tmp_path)
    total = sum(int(text, 16) for text in (hashlib.sha256(b"one").hexdigest(), known)) % 2**256
    assert build_index(tmp_path).content_hash != f"{total:064x}"
    assert build_index(tmp_path, hash_images=True).content_hash == f"{total:064x}"
    assert build_index(tmp_path).content_hash == f"{total:064x}", "a fuller index is good enough"


def test_several_processes_give_the_same_index(tmp_path):
    for number in range(4):
        write_tar(tmp_path / "shards" / f"{number}.tar", members("k", number))
    one = build_index(tmp_path, workers=0)
    for path in (tmp_path / "index").glob("*.parquet"):
        path.unlink()
    assert build_index(tmp_path, workers=2) == one


def test_a_json_without_uid_and_a_malformed_uid_are_named_and_lose_one_sample(tmp_path):
    image, _, text = members("k", 0)
    wrong = {"j": b"{}", "l": b'{"uid": "12"}', "m": b'{"uid": 12}', "n": b"[]", "o": b"no json"}
    samples = [
        m
        for key, record in wrong.items()
        for m in [(f"{key}.jpg", image[1]), (f"{key}.json", record), (f"{key}.txt", text[1])]
    ]
    write_tar(tmp_path / "shards" / "a.tar", samples + members("p", 7))
    table, counts = index_of(tmp_path / "shards" / "a.tar")
    assert table["key"].to_pylist() == ["p"] and (counts.rows, counts.damage) == (1, 5)
    for place, part in zip(
        counts.damage_places,
        ["'j' names no uid", "uid '12'; a uid is 32 hex", "uid 12, which is no text", "is no object", "cannot be read"],
        strict=True,
    ):
        assert part in place
    with pytest.raises(ValueError, match=r"1 of 1 tars are damaged \(5 places\), such as .*a\.tar: at byte"):
        read_index(tmp_path)


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


def test_a_link_that_leads_nowhere_is_named_and_hides_nothing(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    (tmp_path / "shards" / "b.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(ValueError, match=r"b\.tar is a link that leads nowhere"):
        has_tars(tmp_path)


def test_tars_that_a_note_names_and_that_are_gone_are_an_error(tmp_path):
    write_note(tmp_path, ShardsNote(str(tmp_path / "elsewhere")))
    with pytest.raises(FileNotFoundError, match=r"are gone: its shards\.json says that they are in .*elsewhere"):
        has_tars(tmp_path)


def test_a_compressed_tar_is_told_and_packed_ones_are_counted(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    write_tar(tmp_path / "shards" / "B.TAR", members("k", 2))
    write_tar(tmp_path / "shards" / "inner" / "c.tar", members("k", 3))
    packed = gzip.compress((tmp_path / "shards" / "a.tar").read_bytes())
    (tmp_path / "shards" / "d.tar.gz").write_bytes(packed)
    assert build_index(tmp_path).num_rows == 2
    assert sorted(not_taken(tmp_path)) == ["d.tar.gz", "inner/c.tar"]
    (tmp_path / "shards" / "a.tar").write_bytes(packed)
    assert "the file is compressed" in build_index(tmp_path).counts[1].damage_places[0]
