"""`winnow pool index` and `winnow pool check`: what they count, name and find wrong."""

import hashlib
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli.main import main
from benchmark.pool import check as pool_check
from benchmark.pool import uids as uids_module
from benchmark.pool.check import check_pool
from benchmark.pool.index_report import index_pool
from benchmark.pool.pool import Pool
from benchmark.pool.tars import write_tar
from benchmark.selection.runnable import filters_of
from tests.conftest import jpeg, members, uid, write_pool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _strategies(strategies):
    pass


def sha256(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def content_hash(*numbers):
    return f"{sum(int(sha256(number), 16) for number in numbers) % 2**256:064x}"


def write_shards(pool_dir, **tars):
    for name, numbers in tars.items():
        samples = [members(f"{name}{place:04d}", n, sha256=sha256(n)) for place, n in enumerate(numbers)]
        write_tar(pool_dir / "shards" / f"{name}.tar", [member for sample in samples for member in sample])
    return pool_dir


def break_header(path, place):
    """Spoil the header of a member, counted from 0."""
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[place].offset
    data = bytearray(path.read_bytes())
    data[offset + 130] ^= 0xFF
    path.write_bytes(data)
    return offset


def test_index_prints_what_it_counts_and_every_place_of_a_uid(tmp_path, capsys):
    write_shards(tmp_path, a1=[7, 8], a4=[7, 9, 7])
    whole, no_image, no_text, no_json = (members(f"k{n}", n) for n in range(4))
    write_tar(tmp_path / "shards" / "a5.tar", whole + no_image[1:] + no_text[:2] + [no_json[0], no_json[2]])
    assert main(["pool", "index", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    size = sum(path.stat().st_size for path in (tmp_path / "index").glob("*.parquet"))
    assert lines[:7] == [
        "tars 3",
        "samples 8 that have a uid",
        "present 6 (with image and caption)",
        "without image 1",
        "without text 1",
        "without json 1 (no uid is known of them)",
        f"index {size:,} bytes ({size / 8:.1f} bytes a sample), each tar's counts in {tmp_path / 'index' / 'tars.csv'}",
    ]
    assert (tmp_path / "index" / "tars.csv").read_text().splitlines() == [
        "tar,rows,present,without_image,without_text,without_json,damage,damage_places",
        "a1.tar,2,2,0,0,0,0,",
        "a4.tar,3,3,0,0,0,0,",
        "a5.tar,3,1,1,1,1,0,",
    ]
    assert lines[8] == "numbering 1 gaps: 2-3"
    assert lines[9].startswith("repeated uids 1, all their places in ")
    assert lines[10] == f"{uid(7)}: a1.tar a10000, a4.tar a40000, a4.tar a40002"
    assert (tmp_path / "index" / "repeated_uids.csv").read_text() == (
        f"uid,tar,key\n{uid(7)},a1.tar,a10000\n{uid(7)},a4.tar,a40000\n{uid(7)},a4.tar,a40002\n"
    )
    assert lines[11:] == ["damage 0 places in 0 tars"]


def test_the_list_of_repeated_uids_goes_when_none_is_left(tmp_path):
    write_shards(tmp_path, a=[1, 1])
    assert index_pool(tmp_path).num_repeated == 1
    write_shards(tmp_path, a=[1, 2])
    report = index_pool(tmp_path)
    assert report.num_repeated == 0 and not report.repeats_path.exists()


def test_damage_is_listed_the_rest_indexed_and_the_exit_code_is_1(tmp_path, capsys):
    write_shards(tmp_path, a=[1, 2, 3], b=[4])
    offset = break_header(tmp_path / "shards" / "a.tar", 4)  # the json of the second
    assert main(["pool", "index", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "damage           1 places in 1 tars" in out and f"a.tar: at byte {offset} stands no header" in out
    assert "samples          3 that have a uid" in out
    assert main(["pool", "index", str(tmp_path), "--no-strict"]) == 0
    assert main(["pool", "check", str(tmp_path)]) == 1


def test_hash_images_reads_what_the_json_does_not_say(tmp_path, capsys):
    write_tar(tmp_path / "shards" / "a.tar", members("k", 1))
    assert main(["pool", "index", str(tmp_path), "--hash-images"]) == 0
    assert hashlib.sha256(jpeg()).hexdigest() in capsys.readouterr().out


def test_indexing_killed_goes_on_with_what_is_there(tmp_path):
    write_shards(tmp_path, a=[1], b=[2], c=[3])
    code = (
        "import os, pathlib, signal, sys\nfrom benchmark.cli.main import main\noriginal = pathlib.Path.replace\n"
        "def replace(self, target):\n    original(self, target)\n"
        "    if target.name == 'b.parquet':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.replace = replace\nmain(['pool', 'index', sys.argv[1], '--workers', '0'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.parquet")}
    assert sorted(there) == ["a.parquet", "b.parquet"]
    report = index_pool(tmp_path)
    assert report.summary.content_hash == content_hash(1, 2, 3)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.parquet")}
    assert sorted(now) == ["a.parquet", "b.parquet", "c.parquet"] and there.items() <= now.items()


def test_check_counts_coverage_by_uid_and_not_by_numbers(tmp_path):
    pool_dir = write_pool(tmp_path, {"uid": [uid(1), uid(2)]}, {"uid": [uid(3)]})
    write_shards(pool_dir, a=[2, 9, 8])
    write_tar(pool_dir / "shards" / "b.tar", members("k", 3)[1:])  # no image
    report = check_pool(pool_dir)
    assert (report.meeting.rows, report.meeting.rows_present, report.meeting.samples_without_row) == (3, 1, 2)
    assert (report.meeting.samples, report.meeting.present) == (4, 3)
    assert report.content_hash == content_hash(2, 9, 8)
    expected = sum(int(hashlib.sha256(n.to_bytes(16)).hexdigest(), 16) for n in (1, 2, 3)) % 2**256
    assert report.fingerprint == f"{expected:064x}"
    assert report.problems == []
    assert sorted(path.name for path in (pool_dir / "index").iterdir()) == [".lock", "a.parquet", "b.parquet"]


def test_check_is_the_same_where_uids_do_not_fit_into_memory(tmp_path, monkeypatch, pico_pool):
    report = check_pool(pico_pool)
    sort = uids_module.sorted_blocks
    monkeypatch.setattr("benchmark.pool.meeting.sorted_blocks", lambda parts, folder: sort(parts, folder, max_held=100))
    assert check_pool(pico_pool).as_json() == report.as_json()
    made = json.loads((pico_pool / "pool.json").read_text())["result"]
    assert (report.meeting.rows, report.meeting.rows_present) == (made["rows"], made["samples"])
    assert set(filters_of(Pool(pico_pool)).values()) == {None} and report.problems == []


def test_uids_on_several_rows_and_at_several_places_are_named_with_all_of_them(tmp_path, capsys):
    pool_dir = write_pool(tmp_path, {"uid": [uid(1), uid(2), uid(1)]}, {"uid": [uid(1)]})
    write_shards(pool_dir, a=[2, 2, 1])
    assert main(["pool", "check", str(pool_dir), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    first, second = f"{0:032x}.parquet", f"{1:032x}.parquet"
    assert report["repeated_uids"] == {
        "in_rows": 1,
        "in_tars": 1,
        "first": {
            uid(1): [f"{first} row 0", f"{first} row 2", f"{second} row 0", "a.tar a0002"],
            uid(2): [f"{first} row 1", "a.tar a0000", "a.tar a0001"],
        },
    }
    assert report["coverage"] == {"rows_present": 4, "share": 1.0, "samples_without_row": 0}
    assert report["problems"] == ["1 uids are on several rows, 1 at several places"]


def test_check_names_other_schemas_wrong_npz_and_malformed_uids(tmp_path, capsys):
    pool_dir = write_pool(
        tmp_path,
        {"uid": [uid(1), uid(2)], "text": ["a", "b"]},
        {"uid": [uid(3)], "text": [1.5]},
        {"uid": ["x"], "text": ["c"]},
        features={"l14_img": np.zeros((3, 4)), "b32_img": np.zeros((2, 5))},
    )
    assert main(["pool", "check", str(pool_dir)]) == 1
    out = capsys.readouterr().out
    assert "npz           for 1 of 3 metadata shards: l14_img (4), b32_img (5)" in out
    problems = out[out.index("problems      3") :].splitlines()[1:]
    assert "the uid in row 0 is 'x'" in problems[0]
    assert "the column 'text' is double, where text should be" in problems[1]
    assert "l14_img has shape (3, 4), but" in problems[2] and "2 rows" in problems[2]
    assert "fingerprint   none" in out


def test_check_says_which_filters_can_run_and_what_the_others_lack(tmp_path):
    pool_dir = write_pool(tmp_path, {"uid": [uid(1)], "clip_l14_similarity_score": [0.5]})
    filters = filters_of(Pool(pool_dir))
    assert filters["clip_score"] is None and filters["no_filter"] is None
    assert filters["basic"].startswith("needs the column 'text'")
    assert filters["near_dedup"].startswith("needs ") and "npz" in filters["near_dedup"]
    assert not (pool_dir / "index").exists()


def test_a_pool_of_shards_alone_is_checked_too(tmp_path, capsys):
    write_shards(tmp_path, a=[1, 2])
    assert main(["pool", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "rows          none: the pool has shards only" in out and "2 with a uid in 1 tars" in out
    assert "filters       0 of" in out and "no_filter needs metadata" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["index", "nowhere"], "nowhere"),
        (["check", "nowhere"], "there is no pool at nowhere"),
        (["check", "empty"], "empty is not a pool"),
        (["index", "metadata_only"], "metadata_only"),
        (["index", "empty", "--workers", "-1"], "--workers -1 is not a non-negative integer"),
        (["check", "empty", "--format", "yaml"], "invalid choice: 'yaml'"),
    ],
)
def test_what_is_no_pool_is_met_by_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_pool(Path("metadata_only"), {"uid": [uid(1)]})
    assert main(["pool", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_damaged_column_of_uids_is_a_problem_with_the_files_name(tmp_path):
    pool_dir = write_pool(tmp_path, {"uid": [uid(n) for n in range(1000)]})
    (path,) = (pool_dir / "metadata").glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[10:400] = bytes(390)
    path.write_bytes(data)
    report = check_pool(pool_dir)
    assert report.fingerprint is None and str(path) in report.problems[0]


@pytest.mark.parametrize("verb", ["index", "check"])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit):
        main(["pool", verb, "--help"])
    assert f"  winnow pool {verb} " in capsys.readouterr().out


def test_pandas_can_read_the_list_of_repeated_uids(tmp_path):
    write_shards(tmp_path, a=[1, 1])
    frame = pd.read_csv(index_pool(tmp_path).repeats_path, dtype=str)
    assert frame.to_dict("list") == {"uid": [uid(1)] * 2, "tar": ["a.tar"] * 2, "key": ["a0000", "a0001"]}


# --- Whether the pool can be used ------------------------------------------------------------------------------------


def test_tars_without_a_usable_sample_are_a_problem(tmp_path, capsys):
    write_tar(tmp_path / "shards" / "a.tar", [member for n in range(3) for member in members(f"k{n}", n)[1:]])
    assert main(["pool", "check", str(tmp_path)]) == 1
    assert "no sample has image, caption and a uid" in capsys.readouterr().out


def test_tars_whose_uids_no_row_has_are_a_problem(tmp_path, capsys):
    pool_dir = write_pool(tmp_path, {"uid": [uid(1), uid(2)]})
    write_shards(pool_dir, a=[11, 12])
    assert main(["pool", "check", str(pool_dir)]) == 1
    out = capsys.readouterr().out
    assert "problems      1" in out and "no row of the metadata has a sample with image and caption" in out


def test_metadata_without_a_row_is_a_problem(tmp_path):
    pool_dir = write_pool(tmp_path, {"uid": []})
    assert check_pool(pool_dir).problems == ["the metadata has no row that can be read"]


def test_pictures_that_do_not_decode_are_counted_and_named(tmp_path, capsys):
    """Each of the tars has one broken picture of eight; of a sound pool nothing is said."""
    for name, broken in (("a", b"\xff\xd8 no picture"), ("b", b"<html>not found</html>")):
        samples = [members(f"{name}{n}", n, image=broken if n == 3 else None) for n in range(8)]
        write_tar(tmp_path / "shards" / f"{name}.tar", [member for sample in samples for member in sample])
    report = check_pool(tmp_path)
    assert (report.pictures.sampled, report.pictures.undecodable) == (16, 2)
    assert report.pictures.examples == ["a.tar a3", "b.tar b3"]
    assert main(["pool", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "pictures      16 decoded as a sample, 2 of them cannot be" in out
    assert "2 of 16 pictures that were tried cannot be decoded, such as a.tar a3, b.tar b3" in out
    write_shards(tmp_path / "sound", a=[1, 2])
    assert main(["pool", "check", str(tmp_path / "sound")]) == 0
    assert "2 decoded as a sample, 0 of them cannot be" in capsys.readouterr().out


def test_the_sample_of_pictures_is_bounded_spread_and_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.pool.check.MAX_PICTURES", 12)
    monkeypatch.setattr("benchmark.pool.check.MAX_TARS", 4)
    seen = []
    decode = pool_check.decode_pixels
    monkeypatch.setattr("benchmark.pool.check.decode_pixels", lambda data: seen.append(data) or decode(data))
    for tar in range(10):
        samples = [members(f"{tar}{n:03d}", 100 * tar + n, image=jpeg((tar, n, 0))) for n in range(20)]
        write_tar(tmp_path / "shards" / f"{tar}.tar", [member for sample in samples for member in sample])
    first = check_pool(tmp_path).pictures
    assert (first.sampled, first.undecodable) == (12, 0)
    expected = [jpeg((tar, n, 0)) for tar in (0, 3, 6, 9) for n in (0, 10, 19)]
    assert seen == expected
    check_pool(tmp_path)
    assert seen == expected * 2


def test_a_few_broken_pictures_are_counted_without_being_a_problem(tmp_path):
    """Training goes on with up to one in a hundred."""
    samples = [members(f"k{n:03d}", n, image=b"broken" if n == 50 else None) for n in range(120)]
    write_tar(tmp_path / "shards" / "a.tar", [member for sample in samples for member in sample])
    report = check_pool(tmp_path)
    assert (report.pictures.sampled, report.pictures.undecodable, report.problems) == (120, 1, [])
