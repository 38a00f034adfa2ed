"""Rows of Hugging Face data sets: found in caches as `datasets` and our download write them, unpacked, read back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.evaluation.evaluate import evaluate
from benchmark.evaluation.results import metrics_of, read_predictions
from benchmark.evaluation.samples import read_samples
from benchmark.evaluation.tasks import Association, Retrieval, Task, ZeroShotClassification
from benchmark.pool.tars import iter_members
from benchmark.runtime.paths import as_location
from benchmark.toolbox import hub_rows
from benchmark.toolbox.hub_rows import find_rows, local_set, unpack_rows
from tests.conftest import user_error
from tests.evaluation.test_evaluate import AS_IT_IS, ToyEncoder, encode_png, toy_tokenizer

ROOT = Path(__file__).resolve().parents[2]
FLICKR = Retrieval(name="retrieval/toy", title="Toy", hub_rows="nlphuji/toy_retrieval")
GAVIL = Association(name="misc/toy", title="Cues", hub_rows="nlphuji/toy_gavil", main_metric="avg_jaccard_score")

JPEG = b"\xff\xd8\xff\xe0 not decoded here"
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 "
RED, GREEN, BLUE = (encode_png(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RETRIEVAL = pa.schema([("image", IMAGE), ("caption", pa.list_(pa.string())), ("imgid", pa.int64())])
ASSOCIATION = pa.schema(
    [
        ("candidates", pa.list_(pa.string())),
        ("candidate_images", pa.list_(IMAGE)),
        ("associations", pa.list_(pa.string())),
        ("cue", pa.string()),
        ("score_fool_the_ai", pa.int64()),
    ]
)
# As `datasets` calls them: what a script wrote, and what plain files became.
SCRIPT = "nlphuji___toy_retrieval/TEST/1.1.0/9f0a/toy_retrieval-test.arrow"
PARQUET = "nlphuji___toy_retrieval/0123abcd/data/test-00000-of-00001.parquet"


def picture(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


CAPTIONS = [
    ["red", "a red square", "3", "4", "five", "and a sixth"],
    ["two\nlines", "ends in a backslash\\\n", "grün\u2028 of one caption\r"],
    ["x"],
]
PICTURES = [RED, JPEG, WEBP]
PAIRS = [
    {"image": picture(data, f"{number}.jpg"), "caption": captions, "imgid": number}
    for number, (data, captions) in enumerate(zip(PICTURES, CAPTIONS, strict=True))
]


def question(cue: str, associations: list[str], **candidates: bytes) -> dict[str, Any]:
    return {
        "cue": cue,
        "candidates": list(candidates),
        "candidate_images": [picture(data, f"{name}.jpg") for name, data in candidates.items()],
        "associations": associations,
        "score_fool_the_ai": 1,
    }


QUESTIONS = [
    question("red", ["rose", "brick"], sea=BLUE, rose=RED, leaf=GREEN, brick=RED),  # two names of the same bytes
    question("green", ["sea"], leaf=GREEN, sea=BLUE),
    question("é", ["rose"], rose=GREEN, leaf=GREEN),  # another picture of a name that was there
]


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = RETRIEVAL, batch_rows: int = 2) -> Path:
    """Write rows as `datasets` does (an Arrow stream of several batches), or as parquet, by the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=batch_rows)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(table, max_chunksize=batch_rows)
    return path


def unpacked(eval_dir: Path, folder: Path, task: Task = FLICKR) -> Path:
    rows = find_rows(eval_dir, task.hub_rows)
    assert rows is not None
    unpack_rows(task, rows, folder)
    return folder


def image_and_text(folder: Path) -> list[tuple[str, bytes, list[str]]]:
    """Return extension, image and captions of each sample, in the evaluation's order."""
    found = []
    for sample in read_samples(folder):
        with sample.tar_path.open("rb") as file:
            file.seek(sample.offset)
            data = file.read(sample.size)
        captions = [line.replace("\\n", "\n") for line in sample.labels["txt"].decode().split("\n")]
        found.append((sample.image_name.rpartition(".")[2], data, captions))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def found_names(eval_dir: Path, name: str = FLICKR.hub_rows) -> list[str]:
    rows = find_rows(eval_dir, name)
    return [] if rows is None else [str(file.path.relative_to(rows.cache)) for file in rows.files]


# --- Finding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        SCRIPT,
        PARQUET,
        "nlphuji___toy_retrieval/default/0.0.0/f130/toy_retrieval-test.arrow",
        "nlphuji___parquet/nlphuji--toy_retrieval-27a3/0.0.0/0b6d/parquet-test.arrow",
        "nlphuji__toy_retrieval/0123abcd/any.parquet",
        "toy_retrieval/TEST/1.1.0/9f0a/toy_retrieval-test.arrow",
        "datasets--nlphuji--toy_retrieval/snapshots/0123/TEST/test/0000.parquet",
    ],
)
@pytest.mark.parametrize("cache", ["hf_cache", "."])
def test_rows_are_found_wherever_they_are_cached(name: str, cache: str, tmp_path: Path) -> None:
    write_rows(tmp_path / cache / name, PAIRS)
    assert found_names(tmp_path) == [name]
    assert [captions for _, _, captions in image_and_text(unpacked(tmp_path, tmp_path / "set"))] == CAPTIONS


@pytest.mark.parametrize(
    "name",
    [
        "nlphuji___toy_retrieval/TEST/1.1.0/9f0a.incomplete/toy_retrieval-test.arrow",
        "nlphuji___toy_retrieval/TEST/1.1.0/9f0a/toy_retrieval-train.arrow",
        "nlphuji___toy_retrieval/TEST/1.1.0/9f0a/cache-1234.arrow",
        "nlphuji___toy_retrieval/0123/data/train-00000-of-00001.parquet",
        "nlphuji___toy_retrieval/0123/TEST/validation/0000.parquet",
        "nlphuji___toy_retrieval/0123/data/test-00000-of-00001.parquet.tmp",
        "nlphuji___parquet/nlphuji--another-27a3/0.0.0/0b6d/parquet-test.arrow",
        "nlphuji___parquet/nlphuji--toy_retrieval-v2-27a3/0.0.0/0b6d/parquet-test.arrow",
        "another___toy_retrieval/TEST/1.1.0/9f0a/toy_retrieval-test.arrow",
    ],
)
def test_what_is_no_test_set_or_unfinished_is_passed_over(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "elsewhere.parquet", PAIRS)
    (tmp_path / "hf_cache" / name).parent.mkdir(parents=True)
    shutil.copy(tmp_path / "elsewhere.parquet", tmp_path / "hf_cache" / name)
    assert found_names(tmp_path) == []
    write_rows(tmp_path / "hf_cache" / SCRIPT, PAIRS)
    assert found_names(tmp_path) == [SCRIPT]


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        write_rows(tmp_path / f"nlphuji___toy_retrieval/c0/{number}.parquet", PAIRS[:1])
    assert [name.rpartition("/")[2] for name in found_names(tmp_path)] == ["2.parquet", "9.parquet", "10.parquet"]

    for number in (2, 0, 1):
        name = f"TEST/1.1.0/9f0a/toy_retrieval-test-{number:05d}-of-00003.arrow"
        write_rows(tmp_path / "hf_cache" / "nlphuji___toy_retrieval" / name, PAIRS[number : number + 1])
    assert [captions for _, _, captions in image_and_text(unpacked(tmp_path, tmp_path / "set"))] == CAPTIONS


@pytest.mark.parametrize("other", [PARQUET, SCRIPT.replace("9f0a", "aaaa"), SCRIPT.replace("___", "__")])
def test_two_caches_of_one_set_are_an_error_that_names_both(other: str, tmp_path: Path) -> None:
    for name in (SCRIPT, other):
        write_rows(tmp_path / "hf_cache" / name, PAIRS)
    with user_error("eval-set-invalid") as raised:
        find_rows(tmp_path, FLICKR.hub_rows)
    assert all(str((tmp_path / "hf_cache" / name).parent) in str(raised.value) for name in (SCRIPT, other))


@pytest.mark.parametrize("end", ["test-{}-of-00003.parquet", "TEST/1.0/h/toy-test-{}-of-00003.arrow"])
def test_shards_that_lack_are_named(end: str, tmp_path: Path) -> None:
    for number in ("00000", "00002"):
        write_rows(tmp_path / "nlphuji___toy_retrieval" / end.format(number), PAIRS)
    with user_error("eval-set-invalid", match="2 of 3 .*1"):
        find_rows(tmp_path, FLICKR.hub_rows)


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("toy", "../toy/rows", "a/b/c", ""):
        with user_error("task-invalid"):
            find_rows(tmp_path, name)


# --- Unpacking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SCRIPT, PARQUET])
def test_pairs_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "hf_cache" / name, PAIRS)
    folder = unpacked(tmp_path, tmp_path / "set")
    expected = list(zip(["png", "jpg", "webp"], PICTURES, CAPTIONS, strict=True))
    assert image_and_text(folder) == expected
    assert [sample.key for sample in read_samples(folder)] == ["s0000000", "s0000001", "s0000002"]
    assert (folder / "dataset_type.txt").read_text() == "retrieval\n"


def test_large_types_and_another_order_of_fields_are_read(tmp_path: Path) -> None:
    image = pa.struct([("path", pa.null()), ("bytes", pa.large_binary())])
    schema = pa.schema([("caption", pa.large_list(pa.large_string())), ("image", image)])
    rows = [{"image": picture(row["image"]["bytes"]), "caption": row["caption"]} for row in PAIRS]
    write_rows(tmp_path / SCRIPT, rows, schema)
    assert [captions for _, _, captions in image_and_text(unpacked(tmp_path, tmp_path / "set"))] == CAPTIONS


@pytest.mark.parametrize(("limit", "value"), [("TAR_SAMPLES", 2), ("TAR_BYTES", 4000)])
def test_tars_are_of_bounded_size(limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / SCRIPT, PAIRS)
    monkeypatch.setattr(hub_rows, limit, value)  # two samples of a picture and captions take 4096 bytes
    folder = unpacked(tmp_path, tmp_path / "set")
    keys = [[member.key for member in iter_members(path)] for path in sorted((folder / "test").glob("*.tar"))]
    sizes = {"TAR_SAMPLES": [4, 2], "TAR_BYTES": [2, 2, 2]}[limit]
    assert [len(of_tar) for of_tar in keys] == sizes
    assert (folder / "test" / "nshards.txt").read_text() == f"{len(sizes)}\n"
    assert [captions for _, _, captions in image_and_text(folder)] == CAPTIONS


@pytest.mark.parametrize("extension", ["arrow", "parquet"])
def test_questions_come_back_as_they_were(extension: str, tmp_path: Path) -> None:
    write_rows(tmp_path / f"nlphuji___toy_gavil/c/x-test.{extension}", QUESTIONS, ASSOCIATION)
    folder = unpacked(tmp_path, tmp_path / "set", GAVIL)
    images = {}
    for sample in read_samples(folder):
        with sample.tar_path.open("rb") as file:
            file.seek(sample.offset)
            images[sample.key] = file.read(sample.size)
    assert sorted(images.values()) == sorted([BLUE, RED, RED, GREEN, GREEN])  # sea, rose, brick, leaf, green rose
    lines = (folder / "instances.jsonl").read_text().splitlines()
    for line, row in zip(lines, QUESTIONS, strict=True):
        there = json.loads(line)
        assert there["cue"] == row["cue"]
        assert [images[key] for key in there["candidates"]] == [image["bytes"] for image in row["candidate_images"]]
        name_of = dict(zip(there["candidates"], row["candidates"], strict=True))
        assert [name_of[key] for key in there["associations"]] == row["associations"]


def test_questions_are_evaluated(tmp_path: Path) -> None:
    write_rows(tmp_path / "nlphuji___toy_gavil/c/x-test.arrow", QUESTIONS[:2], ASSOCIATION)
    unpacked(tmp_path, tmp_path / "sets" / GAVIL.folder_name, GAVIL)
    options: dict[str, Any] = {"preprocess": AS_IT_IS, "inputs": {"checkpoint": "c0"}}
    evaluate(ToyEncoder(), toy_tokenizer, [GAVIL], tmp_path / "sets", tmp_path / "out", **options)
    predictions = read_predictions(tmp_path / "out", GAVIL)
    assert predictions["associations"].to_pylist() == [[1, 3], [1]]
    assert metrics_of(GAVIL, predictions)["avg_jaccard_score"] == 0.5  # red is found; green is not in the sea


# --- Images in files of their own ----------------------------------------------------------------------------------


def test_images_without_bytes_are_read_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hf_cache"
    inner = Path("downloads/extracted/2d89/downloads/1.png")
    (cache / inner).parent.mkdir(parents=True)
    (cache / inner).write_bytes(BLUE)
    paths = [str(cache / inner), f"/home/her/downloads/hf/{inner}", str(inner)]  # here, where it was made, relative
    write_rows(cache / SCRIPT, [{"image": picture(None, path), "caption": ["x"]} for path in paths])
    assert [data for _, data, _ in image_and_text(unpacked(tmp_path, tmp_path / "set"))] == [BLUE] * 3


@pytest.mark.parametrize(
    "path",
    [
        "{outside}",
        "../outside.png",
        "/x/downloads/../../outside.png",
        "/x/downloads//{outside}",
        "link.png",
        "/x/downloads/gone.png",
        "",
        "zero\0",
        "x" * 5000,
    ],
)
def test_no_file_outside_the_cache_is_read(path: str, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(RED)
    cache = tmp_path / "hf_cache"
    (cache / "downloads").mkdir(parents=True)
    (cache / "link.png").symlink_to(tmp_path / "outside.png")
    path = path.format(outside=tmp_path / "outside.png")
    write_rows(cache / SCRIPT, [PAIRS[0], {"image": picture(None, path), "caption": ["x"]}])
    with user_error("eval-set-invalid", match="row 1 "):
        unpacked(tmp_path, tmp_path / "set")
    assert not (tmp_path / "set" / "test" / "nshards.txt").exists()


# --- What is wrong with rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (RETRIEVAL.remove(1), r"test.\w+: .*'caption' \(list<string>\)"),
        (RETRIEVAL.set(1, pa.field("caption", pa.string())), "'caption' is string; .*list<string>"),
        (RETRIEVAL.set(0, pa.field("image", pa.binary())), "'image' is binary; .*struct<bytes: bin"),
        (
            RETRIEVAL.set(0, pa.field("image", pa.struct([("bytes", pa.binary())]))),
            "'image' is struct<bytes: binary>;",
        ),
    ],
)
@pytest.mark.parametrize("extension", ["arrow", "parquet"])
def test_wrong_columns_are_named(schema: pa.Schema, message: str, extension: str, tmp_path: Path) -> None:
    write_rows(tmp_path / f"nlphuji___toy_retrieval/c/x-test.{extension}", [], schema)
    with user_error("eval-set-invalid", match=message):
        unpacked(tmp_path, tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "image .*null"),
        ({"image": picture(None)}, "bytes.*path"),
        ({"image": picture(b"GIF89a" + bytes(9))}, "15 bytes .*b'GIF89a"),
        ({"image": picture(b"")}, " 0 bytes"),
        ({"caption": None}, "caption .*null"),
        ({"caption": ["a", None]}, "caption .*null"),
        ({"caption": []}, "caption"),
        ({"caption": ["a", " \n"]}, "caption"),
        ({"caption": [r"C:\new"]}, "backslash"),
    ],
)
def test_a_wrong_pair_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / SCRIPT, [*PAIRS, {**PAIRS[0], **change}])
    with user_error("eval-set-invalid", match=f"{path}, row 3.*{message}"):
        unpacked(tmp_path, tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cue": ""}, "cue"),
        ({"associations": []}, "associations"),
        ({"associations": ["rose", "tulip"]}, "'tulip'"),
        ({"candidates": ["leaf", "rose", "sea"]}, "3 candidates and 2 images"),
        ({"candidates": ["rose", "rose"]}, "twice"),
        ({"candidate_images": [picture(RED), None]}, "candidate_images .*null"),
        ({"cue": None}, "cue .*null"),
    ],
)
def test_a_wrong_question_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [QUESTIONS[0], {**QUESTIONS[2], **change}]
    path = write_rows(tmp_path / "nlphuji___toy_gavil/c/x.parquet", rows, ASSOCIATION)
    with user_error("eval-set-invalid", match=f"{path}, row 1.*{message}"):
        unpacked(tmp_path, tmp_path / "set", GAVIL)


@pytest.mark.parametrize("extension", ["arrow", "parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(extension: str, kept: float, tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"nlphuji___toy_retrieval/c/x-test.{extension}", PAIRS * 20)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with user_error("file-damaged", match=f"{path}"):
        unpacked(tmp_path, tmp_path / "set")


def test_a_stream_that_is_cut_between_two_batches_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / SCRIPT, PAIRS)
    path.write_bytes(path.read_bytes()[:-8])
    assert len(pa.ipc.open_stream(path.read_bytes()).read_all()) == 3  # Arrow sees nothing wrong with it
    with user_error("file-damaged"):
        unpacked(tmp_path, tmp_path / "set")


def test_no_rows_and_other_kinds_of_tasks_are_errors(tmp_path: Path) -> None:
    path = write_rows(tmp_path / SCRIPT, [])
    with user_error("eval-set-invalid", match=f"{path}"):
        unpacked(tmp_path, tmp_path / "set")
    classes = ZeroShotClassification(name="toy/classes", title="Toy", hub_rows=FLICKR.hub_rows)
    with user_error("task-invalid", match="classification"):
        unpacked(tmp_path, tmp_path / "set", classes)


# --- The unpacked set in the user's cache --------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_in_our_layout_comes_first(own_cache: Path, tmp_path: Path) -> None:
    own = tmp_path / FLICKR.folder_name
    assert local_set(FLICKR, tmp_path) == own  # neither is there: the caller says so
    write_rows(tmp_path / "hf_cache" / SCRIPT, PAIRS)
    assert local_set(FLICKR, tmp_path).is_relative_to(own_cache)
    own.mkdir()
    assert local_set(FLICKR, tmp_path) == own


def test_rows_are_unpacked_once_and_again_when_they_change(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "a" / "hf_cache" / SCRIPT, PAIRS)
    first = local_set(FLICKR, tmp_path / "a")
    assert len(image_and_text(first)) == 3
    assert "retrieval/toy: unpacking the rows of nlphuji/toy_retrieval into" in capsys.readouterr().out
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with monkeypatch.context() as patched:
        patched.setattr(hub_rows, "unpack_rows", None)
        assert local_set(FLICKR, tmp_path / "a") == local_set(FLICKR, tmp_path / "b") == first
    assert capsys.readouterr().out == ""

    write_rows(path, PAIRS[:2])
    second = local_set(FLICKR, tmp_path / "a")
    assert (len(image_and_text(second)), len(image_and_text(first))) == (2, 3)
    monkeypatch.setattr(hub_rows, "VERSION", hub_rows.VERSION + 1)
    assert local_set(FLICKR, tmp_path / "a") not in (first, second)


def test_a_set_that_fails_leaves_nothing(own_cache: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / SCRIPT, [*PAIRS, {**PAIRS[0], "caption": []}])
    with user_error("eval-set-invalid", match="caption"):
        local_set(FLICKR, tmp_path)
    assert tree(own_cache / "eval_sets") == {}


def test_rows_that_change_while_they_are_unpacked_are_refused(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / SCRIPT, PAIRS)
    read = hub_rows._count_rows
    monkeypatch.setattr(hub_rows, "_count_rows", lambda given: (os.utime(path, (1, 1)), read(given))[1])
    with user_error("file-changed"):
        local_set(FLICKR, tmp_path)
    assert tree(own_cache / "eval_sets") == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from benchmark.toolbox import hub_rows
from benchmark.runtime.files import rename
from benchmark.evaluation.tasks import Association

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write(path, members, write=hub_rows.write_tar, count=[0]):
    count[0] += 1
    write(path, members if count[0] < 2 else (member for part in (members, map(kill, [0])) for member in part))

hub_rows.TAR_SAMPLES = 2
setattr(hub_rows, sys.argv[2], kill if sys.argv[2] == "rename" else write)
task = Association(name="misc/toy", title="Cues", hub_rows="nlphuji/toy_gavil")
hub_rows.local_set(task, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["write_tar", "rename"])
def test_killed_and_begun_again_the_set_is_the_same(
    moment: str, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_rows, "TAR_SAMPLES", 2)
    write_rows(tmp_path / "sets/nlphuji___toy_gavil/c/x-test.arrow", QUESTIONS, ASSOCIATION)
    undisturbed = tree(unpacked(tmp_path / "sets", tmp_path / "undisturbed", GAVIL))
    assert {"test/0.tar", "test/1.tar", "test/2.tar", "instances.jsonl"} < set(undisturbed)

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "sets"), moment]
    assert subprocess.run(command, env=environment, stdout=subprocess.PIPE).returncode == -signal.SIGKILL
    left = tree(own_cache / "eval_sets")
    assert left and all(".tmp/" in name for name in left)  # begun, and nothing that could be taken for a set
    (own_cache / "eval_sets" / sorted(left)[0]).with_name("left.txt").touch()  # as by another version

    found = local_set(GAVIL, tmp_path / "sets")
    assert tree(found) == undisturbed
    assert [path.name for path in found.parent.iterdir() if path.name != ".lock"] == [found.name]


def test_rows_at_a_url_are_fetched(own_cache: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sets/hf_cache" / PARQUET, PAIRS)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/sets/", "/hub-rows/", recursive=True)
    remote = as_location("memory://hub-rows")
    try:
        assert [captions for _, _, captions in image_and_text(local_set(FLICKR, remote))] == CAPTIONS
        write_rows(tmp_path / "named.parquet", [{"image": picture(None, "/etc/passwd"), "caption": ["x"]}])
        memory.put_file(str(tmp_path / "named.parquet"), f"/hub-rows/hf_cache/{PARQUET}")
        with user_error("eval-set-invalid", match="copy "):
            local_set(FLICKR, remote)
    finally:
        memory.rm("/hub-rows", recursive=True)
