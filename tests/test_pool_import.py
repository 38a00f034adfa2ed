"""`winnow pool import`: somebody else's tars and parquet files become a pool whose rows and samples meet."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.cli import main
from benchmark.index import read_index
from benchmark.pool_check import check_pool
from benchmark.pool_import import import_pool
from benchmark.tars import write_tar
from benchmark.uids import format_uids
from tests.conftest import jpeg, members, uid

ROOT = Path(__file__).resolve().parent.parent
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
    assert "rows          4; 1 incomplete samples are in none" in told and "made from image hash and caption" in told
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
    import_pool(tmp_path / "p", shards_dir=uid_tars, metadata=[tmp_path / "m.parquet"])
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
    import_pool(tmp_path / "pool", shards_dir=uid_tars, metadata=[tmp_path / "m.parquet"])
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
    import_pool(tmp_path / "whole", shards_dir=tars, metadata=metadata)
    code = (
        "import os, pathlib, signal, sys\nfrom pathlib import Path\nfrom benchmark.pool_import import import_pool\n"
        "original = pathlib.Path.replace\ncount = number = 0\n"
        "def replace(self, target):\n    global count\n    count += 1\n"
        "    if count == number:\n        os.kill(os.getpid(), signal.SIGKILL)\n    return original(self, target)\n"
        "pathlib.Path.replace = replace\nout, tars, *metadata = map(Path, sys.argv[1:])\n"
        "while True:\n    number += 1\n    child = os.fork()\n    if child == 0:\n"
        "        import_pool(out, shards_dir=tars, metadata=metadata)\n        os._exit(0)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n    print(status, flush=True)\n"
        "    if status != -signal.SIGKILL:\n        break\n"
    )
    command = [sys.executable, "-c", code, *map(str, [tmp_path / "killed", tars, *metadata])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
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
        (None, ["--out", "s3://bucket"], "--out s3://bucket is no local folder"),
        (None, ["--out", "tars"], "--out tars is not empty"),
        (None, ["--shards", "."], "--shards .: there is no tar"),
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
