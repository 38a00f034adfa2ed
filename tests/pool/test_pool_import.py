"""`winnow pool import`: somebody else's tars and parquet files become a pool whose rows and samples meet."""

import gzip
import hashlib
import json
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.cli.main import main
from benchmark.pool.check import check_pool
from benchmark.pool.importing import import_pool
from benchmark.pool.index import read_index
from benchmark.pool.samples import SampleReader
from benchmark.pool.shards import find_tars, tars_in
from benchmark.pool.subset import Subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import format_uids, parse_uids, sort_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.paths import as_location
from tests.conftest import jpeg, members, uid, user_error

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {name: (40 * number, 9, 200 - 40 * number) for number, name in enumerate("abcde")}


@pytest.fixture(autouse=True)
def _strategies(strategies):
    pass


def hash_of(name):
    return hashlib.sha256(jpeg(COLOURS[name])).hexdigest()


def uid_of(name):
    """Return the uid that is made of a sample's image hash and caption, by the definition."""
    return hashlib.sha256(bytes.fromhex(hash_of(name)) + f"caption {name}".encode()).hexdigest()[:32]


def plain(name, **fields):
    """Return a sample without a uid; without a json where no fields are given."""
    about = [(f"{name}.json", json.dumps(fields).encode())] if fields else []
    return [(f"{name}.jpg", jpeg(COLOURS[name])), *about, (f"{name}.txt", f"caption {name}".encode())]


@pytest.fixture
def tars(tmp_path):
    """Two tars without uids: a and b have a json, d has no image."""
    one = plain("a", url="http://x/a", width=300, height=200, similarity=0.5, original_width=900)
    two = plain("b", url=None, width=30, height=20, similarity=1, extra="e")
    write_tar(tmp_path / "tars" / "00000.tar", one + two)
    write_tar(tmp_path / "tars" / "00001.tar", plain("c") + plain("d")[1:] + plain("e"))
    return tmp_path / "tars"


@pytest.fixture
def uid_tars(tmp_path):
    """A tar whose json name uids: keys a, b, c, with the uids 1, 2, 3."""
    samples = [members(name, n, image=jpeg(COLOURS[name]), text=f"caption {name}") for n, name in enumerate("abc", 1)]
    write_tar(tmp_path / "tars" / "00000.tar", [member for sample in samples for member in sample])
    return tmp_path / "tars"


def importing(capsys, *arguments):
    """Run `winnow pool import` and return its exit code and what it printed."""
    code = main(["pool", "import", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def rows_of(pool_dir):
    paths = sorted((pool_dir / "metadata").glob("*.parquet"))
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def test_tars_alone_get_uids_of_image_and_caption_and_a_metadata_of_their_own(tars, tmp_path, capsys):
    out = tmp_path / "pool"
    code, told = importing(capsys, "--shards", tars, "--out", out, "--column", "clip_l14_similarity_score=similarity")
    assert code == 0
    rows = rows_of(out)
    assert rows["uid"].tolist() == [uid_of(name) for name in "abce"]
    assert rows["text"].tolist() == [f"caption {name}" for name in "abce"]
    assert rows["sha256"].tolist() == [hash_of(name) for name in "abce"]
    assert rows["url"].isna().tolist() == [False, True, True, True]
    assert rows["original_width"].fillna(-1).tolist() == [900, 30, -1, -1]
    assert rows["original_height"].fillna(-1).tolist() == [200, 20, -1, -1]
    assert rows["clip_l14_similarity_score"].fillna(-1).tolist() == [0.5, 1, -1, -1]
    schemas = [pq.read_schema(path) for path in sorted((out / "metadata").glob("*.parquet"))]
    assert schemas[0] == schemas[1]
    assert {name: str(schemas[0].field(name).type) for name in ("original_width", "clip_l14_similarity_score")} == {
        "original_width": "int64",
        "clip_l14_similarity_score": "float",
    }
    assert format_uids(read_index(out).uids) == rows["uid"].tolist()
    assert "rows          4; 1 incomplete samples have no row" in told and "made from image hash and caption" in told
    assert "clip_score, " in told and "  near_dedup needs " in told
    report = check_pool(out)
    assert report.problems == [] and report.meeting.coverage == 1.0
    assert not (out / "shards").exists()


def test_uids_that_the_tars_name_are_kept(uid_tars, tmp_path, capsys):
    _, told = importing(capsys, "--shards", uid_tars, "--out", tmp_path / "pool")
    assert rows_of(tmp_path / "pool")["uid"].tolist() == [uid(1), uid(2), uid(3)]
    assert "those that the tars' json name" in told


def test_rows_meet_samples_by_image_hash_and_caption(tars, tmp_path, capsys):
    frame = pd.DataFrame(
        {
            "hash": [hash_of("e"), hash_of("a"), None, hash_of("b")],
            "caption": ["caption e", "caption a", "caption c", "another caption"],
            "similarity": np.array([0.1, 0.2, 0.3, 0.4]),
            "nsfw": ["no", "no", "no", "yes"],
        }
    )
    frame.to_parquet(tmp_path / "meta.parquet", row_group_size=3)
    np.savez(tmp_path / "meta.npz", l14_img=np.arange(8.0).reshape(4, 2))
    columns = ("sha256=hash", "text=caption", "clip_l14_similarity_score=similarity")
    code, told = importing(
        capsys, "--shards", tars, "--metadata", tmp_path / "meta.parquet", "--out", tmp_path / "pool",
        *(text for column in columns for text in ("--column", column)),
    )  # fmt: skip
    assert code == 0
    rows = rows_of(tmp_path / "pool")
    assert rows.columns.tolist() == ["uid", "sha256", "text", "clip_l14_similarity_score", "nsfw"]
    assert rows["uid"].tolist()[:2] == [uid_of("e"), uid_of("a")] and len(rows) == 3
    assert rows["clip_l14_similarity_score"].dtype == np.float32
    assert np.load(tmp_path / "pool" / "metadata" / "meta.npz")["l14_img"].tolist() == [[0, 1], [2, 3], [6, 7]]
    assert "rows          3, and 1 left out, which have no uid" in told
    assert "1 rows meet no sample with image and caption" in told and "3 samples meet no row" in told  # b, c, d


@pytest.mark.parametrize("kind", ["uids in the tars", "no uids in the tars"])
def test_rows_meet_samples_by_key(uid_tars, tars, tmp_path, capsys, kind):
    shards = uid_tars
    if kind == "no uids in the tars":
        write_tar(tars / "00000.tar", plain("a") + plain("b"))
        shards = tars
    else:
        (tars / "00001.tar").unlink()
        samples = [members(name, n, image=jpeg(COLOURS[name])) for n, name in enumerate("abc", 1)]
        write_tar(tars / "00000.tar", [member for sample in samples for member in sample])
    pd.DataFrame({"key": ["b", "x", None, "a"], "alt": ["B", "X", "N", "A"]}).to_parquet(tmp_path / "meta.parquet")
    code, told = importing(
        capsys, "--shards", shards, "--metadata", tmp_path / "meta.parquet", "--key-column", "key",
        "--column", "text=alt", "--out", tmp_path / "pool",
    )  # fmt: skip
    assert code == 0
    rows = rows_of(tmp_path / "pool")
    named = kind == "uids in the tars"
    assert rows["uid"].tolist() == ([uid(2), uid(1)] if named else [uid_of("b"), uid_of("a")])
    assert rows["text"].tolist() == ["B", "A"]
    assert "rows          2, and 2 left out" in told and f"{1 if named else 3} samples meet no row" in told


def test_rows_bring_their_own_uids(uid_tars, tmp_path, capsys):
    folder = tmp_path / "meta"
    folder.mkdir()
    pd.DataFrame({"id": [uid(3).upper(), None], "uid": [7, 8]}).to_parquet(folder / "1.parquet")
    pd.DataFrame({"id": [uid(9), uid(1)], "uid": [5, 6]}).to_parquet(folder / "0.parquet")
    code, told = importing(
        capsys, "--shards", uid_tars, "--metadata", folder, "--uid-column", "id", "--out", tmp_path / "pool"
    )
    assert code == 0 and rows_of(tmp_path / "pool").to_dict("list") == {"uid": [uid(9), uid(1), uid(3)]}
    assert "1 left out" in told and "1 rows meet no sample" in told and "1 samples meet no row" in told


def test_a_pools_own_layout_needs_no_option(uid_tars, tmp_path, capsys):
    pd.DataFrame({"uid": [uid(3)], "text": ["t"], "sha256": ["00" * 32]}).to_parquet(tmp_path / "m.parquet")
    import_pool(tmp_path / "p", shards=[uid_tars], metadata=[tmp_path / "m.parquet"])
    assert check_pool(tmp_path / "p").meeting.rows_present == 1


def test_types_become_commonpools(uid_tars, tmp_path):
    table = pa.table(
        {
            "uid": pa.array([uid(1)], pa.large_string()),
            "original_width": pa.array([5], pa.int16()),
            "original_height": pa.array([5.0], pa.float64()),
            "clip_b32_similarity_score": pa.array([0.1], pa.float64()),
            "url": pa.array(["u"]).dictionary_encode(),
            "text": pa.nulls(1),
            "face_bboxes": pa.array([[[0.5]]], pa.large_list(pa.list_(pa.float32()))),
            "other": pa.array([1], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    import_pool(tmp_path / "pool", shards=[uid_tars], metadata=[tmp_path / "m.parquet"])
    types = {each.name: str(each.type) for each in pq.read_schema(tmp_path / "pool" / "metadata" / "m.parquet")}
    assert types == {
        "uid": "string", "original_width": "int64", "original_height": "int64", "clip_b32_similarity_score": "float",
        "url": "string", "text": "string", "face_bboxes": "list<element: list<element: double>>", "other": "int8",
    }  # fmt: skip


def test_a_second_import_is_left_alone_and_another_is_refused(tars, tmp_path, capsys):
    out = tmp_path / "pool"
    assert importing(capsys, "--shards", tars, "--out", out)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert importing(capsys, "--shards", tars, "--out", out)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, told = importing(capsys, "--shards", tars, "--out", out, "--column", "score=similarity")
    assert code == 2 and "columns.score is absent there and" in told


@pytest.mark.parametrize("with_metadata", [False, True])
def test_killed_at_every_rename_it_ends_with_the_same_bytes(tars, tmp_path, with_metadata):
    frame = pd.DataFrame({"sha256": [hash_of("a")], "text": ["caption a"]})
    for name in ("0", "1"):
        frame.to_parquet(tmp_path / f"{name}.parquet")
        np.savez(tmp_path / f"{name}.npz", l14_img=np.zeros((1, 2)))
    metadata = [tmp_path / "0.parquet", tmp_path / "1.parquet"] if with_metadata else []
    import_pool(tmp_path / "whole", shards=[tars], metadata=metadata)
    code = (
        "import os, pathlib, signal, sys\nfrom pathlib import Path\nfrom benchmark.pool.importing import import_pool\n"
        "original = pathlib.Path.replace\ncount = number = 0\n"
        "def replace(self, target):\n    global count\n    count += 1\n"
        "    if count == number:\n        os.kill(os.getpid(), signal.SIGKILL)\n    return original(self, target)\n"
        "pathlib.Path.replace = replace\nout, tars, *metadata = map(Path, sys.argv[1:])\n"
        "while True:\n    number += 1\n    child = os.fork()\n    if child == 0:\n"
        "        import_pool(out, shards=[tars], metadata=metadata)\n        os._exit(0)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n    print(status, flush=True)\n"
        "    if status != -signal.SIGKILL:\n        break\n"
    )
    command = [sys.executable, "-c", code, *map(str, [tmp_path / "killed", tars, *metadata])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    statuses = done.stdout.split()
    assert statuses[-1] == "0", done.stderr
    assert statuses.count(str(-signal.SIGKILL)) >= 3
    whole, killed = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.*") if p.is_file()}
        for name in ("whole", "killed")
    )
    for files in (whole, killed):
        del files["costs.jsonl"]
    assert whole == killed


@pytest.mark.parametrize(
    "columns, arguments, message",
    [
        ({"capton": ["x"]}, ["--column", "text=caption"], "has no column 'caption'. Did you mean 'capton'?"),
        ({"id": ["x"]}, ["--uid-column", "id"], "--uid-column id: the json of the first samples in tars have no"),
        ({"key": ["x"]}, ["--key-column", "kee"], "Did you mean 'key'?"),
        ({"key": ["x"]}, ["--key-column", "key"], "none of 1 rows has a uid; the tars have keys such as 'a'"),
        ({"key": [3]}, ["--key-column", "key"], "--key-column key: meta.parquet has int64 there; uids and keys"),
        ({"c": ["x"], "text": ["y"]}, ["--column", "text=c"], "has a column 'text' already"),
        ({"a": [1]}, [], "nothing leads from the rows of"),
        ({"text": ["x"], "sha256": ["abc"]}, [], "sha256 in row 0 is 'abc'; a sha256 is 64 hex characters"),
        ({"text": [1.5], "sha256": ["x"]}, [], "the column 'text' is double, but text is string"),
        ({"key": ["a"], "w": ["9"]}, ["--key-column", "key", "--column", "original_width=w"], "the column 'w' is"),
        ({"key": ["a"], "original_width": [0.5]}, ["--key-column", "key"], "'original_width' does not become"),
        ({"id": ["x"]}, ["--column", "uid=id"], "write --uid-column id"),
        (None, ["--column", "score=similarty"], "no field 'similarty'. Did you mean 'similarity'?"),
        (None, ["--column", "text=extra"], "without --metadata text is made from the tars"),
        (None, ["--column", "original_width=url"], "column 'original_width' (field 'url'): 'http://x/a' of sample 'a'"),
        (None, ["--column", "score"], "--column score is not NEW=OLD"),
        (None, ["--key-column", "key"], "--key-column key goes with --metadata"),
        (None, ["--metadata", "nowhere"], "--metadata nowhere: there is no parquet file"),
        (None, ["--uid-column", "uid"], "--uid-column uid: the json of the first samples in tars have no"),
        (None, ["--out", "s3://bucket"], "--out s3://bucket is not a local folder"),
        (None, ["--out", "tars"], "--out tars is not empty"),
        (None, ["--shards", "nowhere"], "--shards nowhere: there is nothing at nowhere"),
    ],
)
def test_what_cannot_be_imported_is_met_by_one_sentence(
    tars, tmp_path, monkeypatch, capsys, columns, arguments, message
):
    monkeypatch.chdir(tmp_path)
    given = ["--shards", "tars", "--out", "out"]
    if columns is not None:
        pd.DataFrame(columns).to_parquet("meta.parquet")
        given += ["--metadata", "meta.parquet"]
    code, told = importing(capsys, *given, *arguments)
    assert code == 2 and message in told
    assert not Path("out/import.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--uid-column", "id"], "row group 0, column 'id': the uid in row 1 is 'xyz'"),
        (["--uid-column", "uid"], "has no column 'uid'"),
        (["--uid-column", "id", "--key-column", "id"], "two ways to a row's uid; give one of them"),
    ],
)
def test_wrong_uids_of_rows_are_met_by_one_sentence(uid_tars, tmp_path, capsys, arguments, message):
    pd.DataFrame({"id": [None, "xyz"]}).to_parquet(tmp_path / "meta.parquet")
    given = ["--shards", uid_tars, "--metadata", tmp_path / "meta.parquet", "--out", tmp_path / "out"]
    code, told = importing(capsys, *given, *arguments)
    assert code == 2 and message in told


def test_keys_that_stand_for_several_samples_cannot_be_joined(tmp_path, capsys):
    write_tar(tmp_path / "tars" / "0.tar", plain("a") + plain("b"))
    write_tar(tmp_path / "tars" / "1.tar", plain("a"))
    pd.DataFrame({"key": ["b"]}).to_parquet(tmp_path / "meta.parquet")
    code, told = importing(
        capsys, "--shards", tmp_path / "tars", "--metadata", tmp_path / "meta.parquet", "--key-column", "key",
        "--out", tmp_path / "pool",
    )  # fmt: skip
    assert code == 2 and "1 keys stand for several samples, one of them in 0.tar and 1.tar" in told


def test_an_imported_pool_is_filtered_and_sampled(tars, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importing(capsys, "--shards", tars, "--out", "pool")[0] == 0
    assert main(["filter", "scale=small", "pool_dir=pool", "exp_dir=exp", "filters=no_filter"]) == 0
    assert main(["pool", "sample", "pool", "--size", "2", "--out", "half"]) == 0
    report = check_pool(Path("half"))
    assert report.problems == [] and report.meeting.rows_present == report.meeting.samples == 2


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["pool", "import", "--help"])
    assert "  winnow pool import --shards data/tars" in capsys.readouterr().out


# --- What is left out, and what refusals say -------------------------------------------------------------------------


def bare(name, image="jpg", text="txt"):
    """Return a sample's picture and caption under other extensions."""
    return [(f"{name}.{image}", jpeg(COLOURS[name[-1]])), (f"{name}.{text}", f"caption {name[-1]}".encode())]


def refused(code, tmp_path, *shards, out="out", **options):
    """Import, and return what the refusal with this code says; nothing must be made."""
    with pytest.raises(UserError) as caught:
        import_pool(tmp_path / out, shards=[Path(each) for each in shards], **options)
    assert caught.value.code == code
    assert not (tmp_path / out).exists()
    return str(caught.value)


def test_tars_in_folders_beside_tars_are_named_and_taken_only_where_that_is_said(tmp_path, capsys):
    for number, folder in enumerate(("mixed", "mixed/part1", "mixed/part2")):
        write_tar(tmp_path / folder / "0.tar", bare("abc"[number]))
    told = refused("tars-left-out", tmp_path, tmp_path / "mixed")
    assert "2 of 3 files that look like samples are not taken: 2 in folders, such as part1/0.tar" in told
    assert "Unpack" not in told, "nothing is compressed"
    assert importing(capsys, "--shards", tmp_path / "mixed", "--out", tmp_path / "out")[0] == 2
    code, told = importing(capsys, "--shards", tmp_path / "mixed", "--out", tmp_path / "top", "--no-strict")
    assert code == 0 and len(rows_of(tmp_path / "top")) == 1 and "2 in folders, such as part1/0.tar" in told
    assert main(["pool", "index", str(tmp_path / "top")]) == 1
    assert main(["pool", "index", str(tmp_path / "top"), "--no-strict"]) == 0
    assert any("2 in folders, such as part1/0.tar" in each for each in check_pool(tmp_path / "top").problems)
    for pattern, names in (("*.tar", "a"), ("**/*.tar", "abc")):
        code, _ = importing(capsys, "--shards", tmp_path / "mixed" / pattern, "--out", tmp_path / f"p{len(names)}")
        assert code == 0 and rows_of(tmp_path / f"p{len(names)}")["uid"].tolist() == [uid_of(name) for name in names]
        assert main(["pool", "index", str(tmp_path / f"p{len(names)}")]) == 0, "what was named is all that is meant"
        assert check_pool(tmp_path / f"p{len(names)}").problems == []


def test_compressed_tars_and_tars_of_other_names_are_left_out_with_a_word(tars, tmp_path):
    (tars / "2.tar.gz").write_bytes(gzip.compress((tars / "00000.tar").read_bytes()))
    (tars / "00000.webdataset").write_bytes((tars / "00000.tar").read_bytes())
    told = refused("tars-left-out", tmp_path, tars)
    assert (
        "1 compressed, such as 2.tar.gz" in told and "1 under other names than *.tar, such as 00000.webdataset" in told
    )
    assert "Unpack what is compressed" in told
    report = import_pool(tmp_path / "out", shards=[tars / "00000.webdataset"])
    assert report.meeting.present == 2
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "2.tar.gz").write_bytes((tars / "2.tar.gz").read_bytes())
    assert "unpack what is compressed" in refused("no-tars", tmp_path, tmp_path / "packed", out="none")
    assert "is compressed" in refused("not-a-tar", tmp_path, tars / "2.tar.gz", out="other")


def test_names_with_dots_are_counted_with_an_example_and_refused_unless_allowed(tmp_path, capsys):
    write_tar(tmp_path / "tars" / "0.tar", bare("a") + bare("x v2.0 (clean) b") + bare("y v2.0 c"))
    told = refused("dotted-names", tmp_path, tmp_path / "tars")
    assert "2 samples have dots in their names" in told
    assert "'x v2.0 (clean) b.jpg' in 0.tar is taken for the member '0 (clean) b.jpg' of the key 'x v2'" in told
    code, told = importing(capsys, "--shards", tmp_path / "tars", "--out", tmp_path / "out", "--no-strict")
    assert code == 0 and "warning: 2 samples have dots in their names" in told and "--no-strict" in told
    assert "2 more with neither image nor caption are left out" in told and "repeated" not in told
    assert rows_of(tmp_path / "out")["uid"].tolist() == [uid_of("a")]
    assert importing(capsys, "--shards", tmp_path / "tars", "--out", tmp_path / "out")[0] == 2
    assert main(["pool", "index", str(tmp_path / "out")]) == 1


def test_dots_in_folders_hide_nothing(tmp_path):
    write_tar(tmp_path / "tars" / "0.tar", bare("train.v1/a") + bare("train.v1/b"))
    assert import_pool(tmp_path / "out", shards=[tmp_path / "tars"]).meeting.present == 2


def test_two_part_extensions_are_shown_beside_what_is_looked_for(tmp_path):
    write_tar(
        tmp_path / "tars" / "0.tar", bare("a", "input.jpg", "outputs.txt") + bare("b", "input.jpg", "outputs.txt")
    )
    told = refused("no-usable-sample", tmp_path, tmp_path / "tars")
    assert (
        "2 samples have input.jpg and outputs.txt, but no picture (jpg, png, jpeg, webp) and no caption (txt), such as "
        "'a' in 0.tar"
    ) in told
    assert "'a.input.jpg' in 0.tar is taken for the member 'input.jpg' of the key 'a'" in told


def test_labels_without_captions_are_told_by_their_extensions(tmp_path):
    write_tar(tmp_path / "tars" / "0.tar", bare("a", text="cls") + bare("b", text="cls"))
    told = refused("no-usable-sample", tmp_path, tmp_path / "tars")
    assert "2 samples have cls and jpg, but no caption (txt), such as 'a' in 0.tar" in told and "dots" not in told


def test_a_folder_of_web_pages_is_told_by_what_they_are(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_text("<html><title>403 Forbidden</title></html>" * 50)
    told = refused("no-usable-sample", tmp_path, tmp_path / "tars")
    assert "0.tar: at byte 0 the file is a web page (HTML)" in told


def test_tars_without_a_name_that_has_key_and_extension_are_told(tmp_path):
    write_tar(tmp_path / "tars" / "0.tar", [("a", b"x"), (".hidden", b"y")])
    assert "no file whose name is a key, a dot and an ext" in refused("no-usable-sample", tmp_path, tmp_path / "tars")


def test_samples_without_a_uid_beside_jsons_that_name_them_are_told(tmp_path):
    write_tar(tmp_path / "tars" / "0.tar", [*members("a", 1)[:2], *bare("b"), *members("c", 3)[1:]])
    told = refused("no-usable-sample", tmp_path, tmp_path / "tars")
    assert "1 samples have jpg and txt, but no json with a uid, such as 'b' in 0.tar" in told
    assert "but no caption (txt), such as 'a'" in told and "but no picture" in told


def test_a_tar_that_is_cut_off_is_refused_unless_that_is_allowed_and_nobody_is_told_of_another_option(
    tars, tmp_path, capsys
):
    whole = (tars / "00001.tar").read_bytes()
    (tars / "00001.tar").write_bytes(whole[:1100])
    assert "00001.tar: at byte" in refused("tar-damaged", tmp_path, tars)
    code, told = importing(capsys, "--shards", tars, "--out", tmp_path / "out", "--no-strict")
    assert code == 0 and "going on without them (--no-strict)" in told and "strict=false" not in told


def test_members_packed_kind_by_kind_are_imported_as_if_they_stood_together(tmp_path):
    samples = [bare(name) for name in "abcde"]
    write_tar(tmp_path / "one" / "0.tar", [member for sample in samples for member in sample])
    write_tar(tmp_path / "two" / "0.tar", [sample[kind] for kind in (0, 1) for sample in samples])
    for name in ("one", "two"):
        import_pool(tmp_path / f"pool-{name}", shards=[tmp_path / name])
    assert rows_of(tmp_path / "pool-one").equals(rows_of(tmp_path / "pool-two"))


def test_samples_with_neither_picture_nor_caption_are_no_repeats(tmp_path, capsys):
    write_tar(tmp_path / "tars" / "0.tar", [*bare("a"), ("b.cls", b"1"), ("c.cls", b"2"), ("d.json", b"{}")])
    code, told = importing(capsys, "--shards", tmp_path / "tars", "--out", tmp_path / "out")
    assert code == 0 and "repeated uids" not in told
    assert "3 more with neither image nor caption are left out" in told
    assert (
        "2 samples have cls, but no picture (jpg, png, jpeg, webp) and no caption (txt), such as 'b' in 0.tar" in told
    )
    assert check_pool(tmp_path / "out").problems == []


# --- Where the tars are ----------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Tars as MetaCLIP writes them: <shard % 100>/<shard>.tar, a name of its own each; and one name in all folders."""
    for number, name in enumerate("abc"):
        write_tar(tmp_path / "own" / f"{number}" / f"{number:02d}.tar", bare(name))
        write_tar(tmp_path / "same" / f"{number}" / "00.tar", bare(name))
    return tmp_path


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        (["own"], "abc"),
        (["same"], "abc"),
        (["own/1"], "b"),
        (["own/*/*.tar"], "abc"),
        (["same/**/*.tar"], "abc"),
        (["own/{0..1}/{00..02}.tar"], None),
        (["same/{0..2}/00.tar"], "abc"),
        (["same/{0,2}/00.tar"], "ac"),
        (["same/{2..1}/00.tar"], "bc"),
        (["own/[12]/0?.tar"], "bc"),
        (["own/1/01.tar"], "b"),
        (["own/1/01.tar", "own/0/00.tar", "own/1/01.tar"], "ab"),
        (["own/0", "same/2/*.tar"], "ac"),
    ],
)
def test_shards_are_folders_folders_of_folders_patterns_and_files(folders, monkeypatch, capsys, shards, names):
    monkeypatch.chdir(folders)
    code, told = importing(capsys, "--shards", *shards, "--out", "out")
    if names is None:
        assert code == 2 and "4 of the tars that it names are not there, such as own/0/01.tar" in told
        return
    assert code == 0
    assert rows_of(Path("out"))["uid"].tolist() == [uid_of(name) for name in names]
    assert format_uids(read_index(Path("out")).uids) == [uid_of(name) for name in names]
    assert check_pool(Path("out")).problems == []
    assert importing(capsys, "--shards", *shards, "--out", "out")[0] == 0, "as before"
    assert main(["pool", "sample", "out", "--size", "1", "--out", "part"]) == 0
    assert check_pool(Path("part")).meeting.rows_present == 1


def test_a_file_of_a_name_with_signs_of_patterns_is_that_file(tmp_path):
    write_tar(tmp_path / "t[1]{0..3}.tar", bare("a"))
    assert import_pool(tmp_path / "out", shards=[tmp_path / "t[1]{0..3}.tar"]).meeting.present == 1


def test_a_tar_that_was_named_and_is_gone_is_an_error(folders, tmp_path):
    import_pool(tmp_path / "out", shards=[folders / "own"])
    (folders / "own" / "1" / "01.tar").unlink()
    with user_error("images-missing", match=r"1 of 3.*1/01\.tar"):
        check_pool(tmp_path / "out")


def test_two_tars_that_would_have_one_name_are_refused(tmp_path):
    write_tar(tmp_path / "tars" / "x" / "y--0.tar", bare("a"))
    write_tar(tmp_path / "tars" / "x--y" / "0.tar", bare("b"))
    assert "x--y/0.tar" in refused("one-name", tmp_path, tmp_path / "tars")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "it is empty"),
        (["a.jpg", "b.jpg", "c.csv"], "it holds 2 .jpg, 1 .csv"),
        (["x.tar.gz", "d/y.zip"], "2 compressed, such as d/y.zip"),
    ],
)
def test_a_folder_without_tars_is_told_by_what_it_holds(tmp_path, files, told):
    (tmp_path / "tars").mkdir()
    for name in files:
        (tmp_path / "tars" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tars" / name).write_bytes(b"x")
    assert told in refused("no-tars", tmp_path, tmp_path / "tars")


def test_patterns_are_found_behind_a_url(folders):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folders / "own"), "/bucket/own", recursive=True)
    for shards, below, names in (
        ("own", "own", ["0/00.tar", "1/01.tar", "2/02.tar"]),
        ("own/{0..1}/*.tar", "own", ["0/00.tar", "1/01.tar"]),
        ("own/2/02.tar", "own/2", ["02.tar"]),
    ):
        found = find_tars([as_location(f"memory://bucket/{shards}")])
        assert (str(found.folder), list(found.names)) == (f"memory://bucket/{below}", names)
        assert [tar.label for tar in tars_in(found.folder, found.names)] == names


# --- Captions in the json --------------------------------------------------------------------------------------------


def without_text(name, caption, **fields):
    return [
        (f"{name}.json", json.dumps({"alt": caption, "rank": 1, **fields}).encode()),
        (f"{name}.jpeg", jpeg(COLOURS[name])),
    ]


CAPTIONS = ['a "quoted" caption', "zwei Häuser\n— am Fluß", "", None]


def test_captions_that_are_not_utf8_are_counted_and_named(tmp_path, capsys):
    latin = [("b.jpg", jpeg(COLOURS["b"])), ("b.txt", "Flu\u00df".encode("latin-1"))]
    write_tar(tmp_path / "tars" / "0.tar", plain("a") + latin + plain("c"))
    code, printed = importing(capsys, "--shards", tmp_path / "tars", "--out", tmp_path / "out")
    assert code == 0 and "1 captions are not UTF-8, such as that of 'b' in 0.tar" in printed
    assert rows_of(tmp_path / "out")["text"].tolist() == ["caption a", "Flu\ufffd", "caption c"]
    assert main(["pool", "check", str(tmp_path / "out")]) == 0
    assert "captions      1 of the same samples are not UTF-8, such as that of 0.tar b" in capsys.readouterr().out


def test_uids_of_another_form_are_named_before_others_are_made(tmp_path, capsys):
    write_tar(tmp_path / "tars" / "0.tar", plain("a", uid="00017") + plain("b", uid="00018"))
    code, printed = importing(capsys, "--shards", tmp_path / "tars", "--out", tmp_path / "out")
    assert code == 0 and "such as '00017'; uids are made from image hash and caption instead" in printed
    assert rows_of(tmp_path / "out")["uid"].tolist() == [uid_of("a"), uid_of("b")]


def test_a_folder_of_tars_that_is_indexed_as_a_pool_is_shown_the_way(tmp_path, capsys):
    write_tar(tmp_path / "tars" / "0.tar", plain("a"))
    assert main(["pool", "index", str(tmp_path / "tars")]) == 2
    assert f"`winnow pool import --shards {tmp_path / 'tars'} --out DIR`" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def json_tars(tmp_path):
    """Captions in the json, as MetaCLIP packs them: with escapes, beyond ASCII, empty, and one that is not there."""
    samples = [without_text(name, caption) for name, caption in zip("abcd", CAPTIONS, strict=True)]
    write_tar(tmp_path / "tars" / "0.tar", [member for sample in samples for member in sample])
    return tmp_path / "tars"


def test_captions_are_taken_from_the_json(json_tars, tmp_path, capsys):
    told = refused("no-usable-sample", tmp_path, json_tars)
    assert "4 samples have jpeg and json, but no caption (txt)" in told and "--column text=alt" in told
    code, told = importing(capsys, "--shards", json_tars, "--column", "text=alt", "--out", tmp_path / "out")
    assert code == 0 and "1 incomplete samples have no row" in told
    rows = rows_of(tmp_path / "out")
    assert rows["text"].tolist() == CAPTIONS[:3]
    made = [bytes.fromhex(hash_of(name)) + text.encode() for name, text in zip("abc", CAPTIONS, strict=False)]
    assert rows["uid"].tolist() == [hashlib.sha256(each).hexdigest()[:32] for each in made]
    index = read_index(tmp_path / "out")
    reader = SampleReader(index, np.arange(3))
    assert [reader.read(place)[1].decode() for place in range(3)] == CAPTIONS[:3]
    assert check_pool(tmp_path / "out").problems == []


def test_captions_from_the_json_are_sampled_and_resharded_into_txt(json_tars, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importing(capsys, "--shards", json_tars, "--column", "text=alt", "--out", "out")[0] == 0
    assert main(["pool", "sample", "out", "--size", "3", "--out", "part"]) == 0
    uids = rows_of(Path("out"))["uid"].tolist()
    Subset(sort_uids(parse_uids(uids + uids[:1], ""))).write(Path("subset.npy"))
    for pool in ("out", "part"):
        arguments = [f"pool_dir={pool}", "subset=subset.npy", f"out_dir={pool}-shards", "scale=small"]
        assert main(["reshard", *arguments]) == 0
        with tarfile.open(f"{pool}-shards/00000000.tar") as tar:
            found = {each.name: tar.extractfile(each).read() for each in tar}
        keys = [f"{uids[0]}-0", f"{uids[0]}-1", f"{uids[1]}-0", f"{uids[2]}-0"]
        assert list(found) == [f"{key}.{extension}" for key in keys for extension in ("jpeg", "json", "txt")]
        texts = [found[f"{key}.txt"].decode() for key in keys]
        assert texts == [CAPTIONS[0], *CAPTIONS[:3]]
        assert [json.loads(found[f"{key}.json"])["alt"] for key in keys] == texts
        assert found[f"{keys[3]}.jpeg"] == jpeg(COLOURS["c"])


@pytest.mark.parametrize(
    ("field", "code", "told"),
    [("alts", "column-missing", "Did you mean 'alt'?"), ("rank", "captions-not-text", "fields with text: alt")],
)
def test_a_field_that_holds_no_captions_is_refused(json_tars, tmp_path, field, code, told):
    assert told in refused(code, tmp_path, json_tars, columns={"text": field})


# --- A failed or killed import ---------------------------------------------------------------------------------------


def test_a_failed_import_leaves_nothing_and_another_may_take_its_place(tars, tmp_path, capsys):
    pd.DataFrame({"key": ["nowhere"], "text": ["t"]}).to_parquet(tmp_path / "meta.parquet")
    given = ["--shards", tars, "--out", tmp_path / "out"]
    code, told = importing(capsys, *given, "--metadata", tmp_path / "meta.parquet", "--key-column", "key")
    assert code == 2 and "none of 1 rows has a uid" in told and "delete" not in told
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    assert importing(capsys, *given, "--metadata", tmp_path / "meta.parquet", "--key-column", "key")[0] == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert importing(capsys, *given)[0] == 0


def test_a_killed_import_may_be_begun_anew_with_other_settings(tars, tmp_path, monkeypatch, capsys):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.pool.importing.metadata_from_tars", killed)
    given = ["--shards", tars, "--out", tmp_path / "out"]
    assert importing(capsys, *given, "--column", "score=similarity")[0] == 130
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"import-begun.json", "index"} <= left
    monkeypatch.undo()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    code, told = importing(capsys, *given)
    assert code == 0 and "begun with other settings and not finished; starting again" in told
    assert rows_of(tmp_path / "out").columns.tolist() == [
        "uid",
        "text",
        "sha256",
        "url",
        "original_width",
        "original_height",
    ]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


# --- Other data than tars --------------------------------------------------------------------------------------------

SHARDS_PAGE = (ROOT / "docs" / "shards.md").read_text()


def write_foreign(kind, folder):
    """Write five samples as strangers have them, under `folder`/data: return what names them."""
    data = folder / "data"
    data.mkdir()
    pictures = [jpeg(COLOURS[name]) for name in "abcde"]
    texts = [f"caption {name}" for name in "abcde"]
    if kind == "parquet":
        images = [{"bytes": each, "path": None} for each in pictures]
        table = pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
        pq.write_table(table.append_column("text", pa.array(texts)), data / "train-00000-of-00001.parquet")
        return data / "train-00000-of-00001.parquet"
    if kind == "bytes":
        pq.write_table(pa.table({"jpg": pictures, "text": texts}), data / "0.parquet")
        return data / "0.parquet"
    for name, picture in zip("abcde", pictures, strict=True):
        (data / f"{name}.jpg").write_bytes(picture)
    if kind == "csv":
        lines = [f"data/{name}.jpg\tcaption {name}" for name in "abcde"]
        (data / "train.csv").write_text("\n".join(["filepath\ttitle", *lines]) + "\n")
        return data / "train.csv"
    return data / "a.jpg"


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (
            "parquet",
            "holds pictures inside, in its column 'image' (structs of bytes and path, as the `datasets`",
        ),
        ("bytes", "0.parquet holds pictures inside, in its column 'jpg' (bytes)"),
        ("csv", "train.csv is a table of text with the columns filepath, title, without pictures"),
        ("pictures", "pictures lie there as files, such as"),
    ],
)
def test_other_data_than_tars_is_named_in_one_sentence_with_the_way_to_tars(tmp_path, kind, what):
    path = write_foreign(kind, tmp_path)
    for given, code in ((path.parent, "no-tars"), (path, "not-a-tar"), (path.parent / f"*{path.suffix}", "no-tars")):
        told = refused(code, tmp_path, given)
        assert what in told and "\n" not in told
        assert 'docs/shards.md, "To tars", has the lines that write them' in told
    assert "\n## To tars\n" in SHARDS_PAGE


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_lines_on_the_page_bring_other_data_into_tars(tmp_path, monkeypatch, capsys, kind):
    write_foreign(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    part = SHARDS_PAGE.partition("\n## To tars\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", part, re.S)
    (code,) = [block for block in blocks if kind in block]
    exec(code, {})
    assert importing(capsys, "--shards", "tars", "--out", "out")[0] == 0
    assert rows_of(Path("out"))["uid"].tolist() == [uid_of(name) for name in "abcde"]


def test_a_csv_as_metadata_is_named_with_the_way_to_parquet(tars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("meta").mkdir()
    Path("meta/m.csv").write_text("key,score\na,0.5\n")
    for given in ("meta", "meta/m.csv"):
        told = refused("metadata-not-parquet", tmp_path, tars, metadata=[Path(given)])
        (way,) = re.findall(r"by (pandas\..*\))", told)
    monkeypatch.chdir("meta")
    exec(way, {"pandas": pd})
    import_pool(tmp_path / "out", shards=[tars], metadata=[Path("m.parquet")], key_column="key")


def test_metadata_with_pictures_inside_is_told_to_be_such(tars, tmp_path):
    path = write_foreign("parquet", tmp_path)
    told = refused("no-way-to-samples", tmp_path, tars, metadata=[path])
    assert "holds pictures inside, in its column 'image'" in told
