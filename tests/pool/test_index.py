"""The index: offsets that lead to the bytes, order, counts, damage."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from benchmark.pool.index import build_index, read_index, unindexed_tars
from benchmark.pool.index_scan import index_tar
from benchmark.pool.shards_note import ShardsNote, has_tars, tars_left_out, write_note
from benchmark.pool.tars import Damage, iter_members, scan_tar, write_tar
from benchmark.pool.uids import format_uids
from tests.conftest import jpeg, members, uid, user_error


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
    with user_error("tar-damaged", match=r"1 of 1.*a\.tar"):
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
    with user_error("tar-damaged", match=rf"a\.tar: at byte {broken.offset} .*{after.offset - broken.offset:,}"):
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
        [
            "'j' names no uid",
            "uid '12'; a uid is 32 hex",
            "uid 12, which is no text",
            "is no object",
            "cannot be read",
        ],
        strict=True,
    ):
        assert part in place
    with user_error("tar-damaged", match=r"1 of 1 .*5 .*a\.tar: at byte"):
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
    with user_error("no-tars"):
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
    with user_error("link-broken", match=r"b\.tar"):
        has_tars(tmp_path)


def test_tars_that_a_note_names_and_that_are_gone_are_an_error(tmp_path):
    write_note(tmp_path, ShardsNote(str(tmp_path / "elsewhere")))
    with user_error("images-missing", match=r"shards\.json.*elsewhere"):
        has_tars(tmp_path)


def test_a_compressed_tar_is_told_and_packed_ones_are_counted(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    write_tar(tmp_path / "shards" / "B.TAR", members("k", 2))
    write_tar(tmp_path / "shards" / "inner" / "c.tar", members("k", 3))
    packed = gzip.compress((tmp_path / "shards" / "a.tar").read_bytes())
    (tmp_path / "shards" / "d.tar.gz").write_bytes(packed)
    assert build_index(tmp_path).num_rows == 2
    assert sorted(each.name for each in tars_left_out(tmp_path)) == ["d.tar.gz", "inner/c.tar"]
    (tmp_path / "shards" / "a.tar").write_bytes(packed)
    assert "the file is compressed" in build_index(tmp_path).counts[1].damage_places[0]


# --- Members that stand apart ---------------------------------------------------------------------------------------


def naive_samples(names):
    """Group a tar's names by the rule as SHARDS.md states it: {(key, frozenset of extensions): place of the first}."""
    split = [(name.partition(".")[0], name.partition(".")[2]) for name in names]
    keys = [key for key, _ in split]
    whole = {key: [extension for other, extension in split if other == key] for key in keys}
    found, run = [], []
    for place, (key, extension) in enumerate(split):
        if len(set(whole[key])) == len(whole[key]):
            if keys.index(key) == place:
                found.append((place, key, frozenset(whole[key])))
            run = []
        elif run and place == run[-1][0] + 1 and split[place - 1][0] == key and extension not in {e for _, e in run}:
            run.append((place, extension))
            found[-1] = (found[-1][0], key, found[-1][2] | {extension})
        else:
            run = [(place, extension)]
            found.append((place, key, frozenset([extension])))
    return [(key, extensions) for _, key, extensions in found]


def contents(name):
    key, _, extension = name.partition(".")
    return json.dumps({"uid": uid(ord(key))}).encode() if extension == "json" else name.encode()


def table_samples(table):
    found = []
    for row in table.to_pylist():
        extensions = [row["image_extension"]] if row["image_offset"] >= 0 else []
        extensions += [name for name, kind in (("txt", "text"), ("json", "json")) if row[f"{kind}_offset"] >= 0]
        extensions += [each["extension"] for each in row["others"] or ()]
        found.append((row["key"], frozenset(extensions)))
    return found


def write_names(path, names):
    write_tar(path, [(name, contents(name)) for name in names])


NAMES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["jpg", "txt", "json", "npy"])).map(".".join), max_size=14
)


@given(NAMES, st.booleans())
@settings(max_examples=300)
def test_samples_are_those_of_a_naive_grouping_in_any_order_of_members(names, assign_uids):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        write_names(path, names)
        table, counts = index_tar(path, path.stat().st_size, assign_uids=assign_uids)
        data = path.read_bytes()
    expected = naive_samples(names)
    if assign_uids:
        rows = [(key, parts) for key, parts in expected if parts & {"jpg", "txt"}]
        assert counts.empty == len(expected) - len(rows)
    else:
        rows = [(key, parts) for key, parts in expected if "json" in parts]
        assert counts.without_json == len(expected) - len(rows)
    assert table_samples(table) == rows
    for row in table.to_pylist():
        for kind, extension in (("image", "jpg"), ("text", "txt")):
            start, length = row[f"{kind}_offset"], row[f"{kind}_length"]
            assert start < 0 or data[start : start + length] == f"{row['key']}.{extension}".encode()


@given(st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from(["jpg", "txt", "json", "npy"]))), st.randoms())
@settings(max_examples=100)
def test_shuffled_members_give_webdatasets_samples_of_the_ordered_tar(pairs, random):
    ordered = [".".join(pair) for pair in sorted(pairs)]
    shuffled = random.sample(ordered, len(ordered))
    with tempfile.TemporaryDirectory() as folder:
        write_names(Path(folder) / "ordered.tar", ordered)
        write_names(Path(folder) / "shuffled.tar", shuffled)
        with (Path(folder) / "ordered.tar").open("rb") as file:
            files = list(tar_file_iterator(file))
        theirs = {
            each["__key__"]: {name: data for name, data in each.items() if not name.startswith("__")}
            for each in group_by_keys(iter([{**each, "__url__": ""} for each in files]))
        }
        table, _ = index_of(Path(folder) / "shuffled.tar")
        with tarfile.open(Path(folder) / "shuffled.tar") as tar:
            bytes_at = {each.offset_data: tar.extractfile(each).read() for each in tar}
    ours = {}
    for row in table.to_pylist():
        places = {row["image_extension"]: row["image_offset"], "txt": row["text_offset"], "json": row["json_offset"]}
        places |= {each["extension"]: each["offset"] for each in row["others"] or ()}
        ours[row["key"]] = {name: bytes_at[place] for name, place in places.items() if place >= 0}
    assert ours == {key: sample for key, sample in theirs.items() if "json" in sample}


def test_pictures_captions_and_jsons_packed_one_kind_after_the_other_are_put_together(tmp_path):
    samples = [members(f"k{number}", number) for number in range(5)]
    write_tar(tmp_path / "shards" / "a.tar", [sample[kind] for kind in (2, 0, 1) for sample in samples])
    index = read_index(tmp_path)
    assert format_uids(index.uids) == [uid(number) for number in range(5)]
    assert index.summary.counts[0].is_sound


def test_members_of_one_key_in_different_tars_stay_apart(tmp_path):
    image, record, text = members("k", 1)
    write_tar(tmp_path / "shards" / "a.tar", [image, record])
    write_tar(tmp_path / "shards" / "b.tar", [text])
    counts = build_index(tmp_path).counts
    assert [(each.rows, each.present, each.without_json) for each in counts] == [(1, 0, 0), (0, 0, 1)]


def test_a_json_that_stands_apart_gives_its_hash_to_a_uid_that_is_made(tmp_path):
    image, text = b"picture", b"a caption"
    known = hashlib.sha256(b"of the original").digest()
    record = json.dumps({"sha256": known.hex()}).encode()
    files = [("k.jpg", image), ("k.txt", text), ("l.jpg", image), ("l.txt", text), ("k.json", record)]
    write_tar(tmp_path / "a.tar", files)
    table, _ = index_tar(tmp_path / "a.tar", (tmp_path / "a.tar").stat().st_size, assign_uids=True)
    expected = [hashlib.sha256(known + text), hashlib.sha256(hashlib.sha256(image).digest() + text)]
    assert [value.hex() for value in table["uid"].to_pylist()] == [each.hexdigest()[:32] for each in expected]


# --- What is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], [("m.jpg", b"x")], [("m.1.jpg", b"x"), ("m.1.txt", b"y")]])
def test_the_index_of_a_sound_tar_says_nothing_of_what_is_left_out(tmp_path, extra):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1) + extra)
    sound = build_index(tmp_path).counts[0].is_sound
    about = json.loads(pq.read_schema(tmp_path / "index" / "a.parquet").metadata[b"winnow_index"])
    assert sound == (extra == []) == ("lacking" not in about)
    assert build_index(tmp_path).counts[0].is_sound == sound


def test_an_index_made_before_members_were_put_together_is_made_anew_where_something_is_left_out(tmp_path):
    samples = {"whole": members("k", 1), "apart": [members("k", 1)[place] for place in (0, 1)] + members("l", 2)}
    for name, files in samples.items():
        write_tar(tmp_path / "shards" / f"{name}.tar", files)
    build_index(tmp_path)
    times = {}
    for name in samples:
        path = tmp_path / "index" / f"{name}.parquet"
        table, state = pq.read_table(path), path.stat()
        about = json.loads(table.schema.metadata[b"winnow_index"])
        about = {
            key: value for key, value in about.items() if key not in ("empty", "dotted", "dotted_example", "lacking")
        }
        pq.write_table(table.replace_schema_metadata({"winnow_index": json.dumps(about)}), path, compression="zstd")
        os.utime(path, ns=(state.st_mtime_ns, state.st_mtime_ns))
        times[name] = path.stat().st_ino
    build_index(tmp_path)
    again = {name: (tmp_path / "index" / f"{name}.parquet").stat().st_ino != times[name] for name in samples}
    assert again == {"whole": False, "apart": True}


@pytest.mark.parametrize(
    ("names", "dotted", "example"),
    [
        (["k.input.jpg", "k.outputs.txt"], 1, "k.input.jpg"),
        (["22.05.jpg", "22.05.txt", "22.06.jpg", "22.06.txt"], 2, "22.05.jpg"),
        (["v.1/k.jpg", "v.1/k.json", "v.1/k.txt"], 0, ""),
        (["k.jpg", "k.txt", "k.json", "k.thumb.jpg", "k.seg.png"], 0, ""),
        (["k.jpg", "k.txt", "k.json", "k.2.jpg", "k.2.txt"], 1, "k.2.jpg"),
        (["k.jpg", "k.json", "k.caption.txt"], 1, "k.caption.txt"),
        (["k.cls", "k.jpg"], 0, ""),
    ],
)
def test_pictures_and_captions_that_dots_in_names_hide_are_counted_with_an_example(tmp_path, names, dotted, example):
    record = json.dumps({"uid": uid(1)}).encode()
    write_tar(tmp_path / "a.tar", [(name, record if name.endswith("json") else b"x") for name in names])
    for assign_uids in (False, True):
        size = (tmp_path / "a.tar").stat().st_size
        _, counts = index_tar(tmp_path / "a.tar", size, assign_uids=assign_uids)
        assert (counts.dotted, counts.dotted_example) == (dotted, example)


def test_samples_with_neither_picture_nor_caption_are_counted_and_get_no_uid(tmp_path):
    files = [("k.cls", b"1"), ("l.cls", b"2"), ("m.jpg", b"x"), ("m.txt", b"y"), ("n.json", b"{}")]
    write_tar(tmp_path / "shards" / "a.tar", files)
    write_note(tmp_path, ShardsNote("shards", assign_uids=True))
    (counts,) = build_index(tmp_path).counts
    assert (counts.rows, counts.empty, counts.without_json) == (1, 3, 0)
    assert build_index(tmp_path).counts == [counts], "as read from its footer"
    assert [(each.members, each.count, each.example) for each in counts.lacking] == [
        (("cls",), 2, "k"),
        (("json",), 1, "n"),
    ]


@pytest.mark.parametrize(
    ("begins", "told"),
    [
        (b"<html><title>403 Forbidden</title></html>", "is a web page (HTML)"),
        (b"\n <!DOCTYPE html>" + b" " * 4000, "is a web page (HTML)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML document"),
        (b'{"error": "gated"}', "is a JSON document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "`git lfs pull`"),
        (b"PAR1" + bytes(4000), "is a parquet file"),
        (
            b"\x28\xb5\x2f\xfd" + bytes(600),
            "is compressed; tars must be plain, so that their members have a place: unzstd",
        ),
        (b"BZh9", "bunzip2"),
        (b"", "is empty"),
    ],
)
def test_what_is_called_a_tar_and_is_none_is_told_by_what_it_is(tmp_path, begins, told):
    path = tmp_path / "shards" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(begins)
    (counts,) = build_index(tmp_path).counts
    assert counts.damage == 1 and told in counts.damage_places[0]


def test_a_tar_whose_first_header_is_lost_is_read_on_whatever_it_begins_with(tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 1) + members("l", 2))
    path.write_bytes(b"<html>" + path.read_bytes()[6:])
    (counts,) = build_index(tmp_path).counts
    assert (counts.present, counts.damage) == (1, 1) and "stands no header" in counts.damage_places[0]


def test_tars_of_other_names_are_known_by_their_first_bytes(tmp_path):
    folder = tmp_path / "shards"
    write_tar(folder / "a.tar", members("k", 1))
    for name in ("b.tar.part", "c", "d.webdataset", "a.tar.tmp", ".cache/e.tar", "a.tar.idx", "a_stats.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.tar", folder / name)
    (folder / "f.bin").write_bytes(bytes(2000))
    (folder / "in.x" / "g").mkdir(parents=True)
    shutil.copy(folder / "a.tar", folder / "in.x" / "g" / "h.tar")
    (folder / "i.tgz").write_bytes(b"\x1f\x8b")
    assert {each.name: each.what for each in tars_left_out(tmp_path)} == {
        "b.tar.part": "under other names than *.tar",
        "c": "under other names than *.tar",
        "d.webdataset": "under other names than *.tar",
        "in.x/g/h.tar": "in folders",
        "i.tgz": "compressed",
    }


def test_an_index_on_a_file_system_that_keeps_times_less_precisely_is_made_once(tmp_path, monkeypatch):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, members("k", 1))
    os.utime(path, ns=(1_700_000_000_123_456_789,) * 2)
    utime = os.utime

    def to_two_seconds(target, ns):
        utime(target, ns=tuple(time // 2_000_000_000 * 2_000_000_000 for time in ns))

    monkeypatch.setattr("benchmark.pool.index.os.utime", to_two_seconds)
    build_index(tmp_path)
    made = (tmp_path / "index" / "a.parquet").stat().st_ino
    assert unindexed_tars(tmp_path) == []
    build_index(tmp_path)
    assert (tmp_path / "index" / "a.parquet").stat().st_ino == made
    write_tar(path, members("k", 2))  # of the same size, within the same two seconds
    utime(path, ns=(1_700_000_000_999_999_999,) * 2)
    assert format_uids(read_index(tmp_path).uids) == [uid(2)]
    monkeypatch.undo()
    write_tar(path, members("k", 3))
    assert format_uids(read_index(tmp_path).uids) == [uid(3)]
    assert not (tmp_path / "index" / "a.time.json").exists()
