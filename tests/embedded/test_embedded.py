"""The embedded pool: keyed drawing, CommonPool's layout, resuming, evaluation sets that no pool holds."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import benchmark.embedded.pool as pool_module
from benchmark.embedded.captions import write_caption
from benchmark.embedded.evalsets import GROUP_NAMES, evaluation_sets, generate_examples
from benchmark.embedded.pairs import (
    DUPLICATE_SHARE,
    FIRST_DUPLICATE,
    GENERATOR_VERSION,
    KIND_SHARES,
    KINDS,
    NEAR_SHARE,
    Pair,
    generate_pair,
)
from benchmark.embedded.pictograms import (
    CATEGORIES,
    CATEGORY_OF,
    PICTOGRAMS,
    POOL_DESIGNERS,
    REFERENCE_DESIGNERS,
    UNSEEN_DESIGNERS,
    VEHICLES,
    glyphs_of,
    other_concepts,
)
from benchmark.embedded.pool import build_pool
from benchmark.embedded.shapes import SHAPE_NAMES
from benchmark.embedded.world import EVALUATION_DIGITS, POOL_WORLD, REFERENCE_WORLD, World, digits_of, draw_random_scene
from benchmark.registry import SUITES, load_tasks
from benchmark.runtime.records import Record, write_record
from benchmark.scales import SCALES
from tests.conftest import user_error

TINY = replace(SCALES["pico"], pool_size=1700)  # two tars, three metadata shards


@pytest.fixture(scope="module")
def pool_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "tiny"
    build_pool(folder, TINY, workers=0)
    return folder


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [generate_pair(0, index) for index in range(TINY.pool_size)]


def test_a_pair_does_not_depend_on_what_was_drawn_before(pairs: list[Pair]) -> None:
    for index in (1699, 3, 700):
        assert generate_pair(0, index) == pairs[index]


def test_uids_follow_from_version_seed_and_index() -> None:
    expected = hashlib.sha256(f"winnow/{GENERATOR_VERSION}/5/17".encode()).digest()[:16].hex()
    assert generate_pair(5, 17).uid == expected
    assert generate_pair(6, 17).uid != expected


def test_kinds_have_the_shares_of_the_mix(pairs: list[Pair]) -> None:
    first, later = pairs[:FIRST_DUPLICATE], pairs[FIRST_DUPLICATE:]  # the first pairs repeat nothing
    for kind, wanted in KIND_SHARES.items():
        if kind != "clean":
            assert np.mean([kind in pair.kinds for pair in first]) == pytest.approx(wanted, abs=0.05), kind
    share = {kind: np.mean([kind in pair.kinds for pair in later]) for kind in KINDS}
    assert share["duplicate"] == pytest.approx(DUPLICATE_SHARE, abs=0.04)
    assert share["exact_duplicate"] == pytest.approx((1 - NEAR_SHARE) * share["duplicate"], abs=0.03)
    assert 0.07 < np.mean([pair.is_clean for pair in pairs]) < 0.16


def test_clean_captions_have_three_words(pairs: list[Pair]) -> None:
    assert min(len(pair.text.split()) for pair in pairs if pair.is_clean) == 3


def test_small_pictures_lose_detail(pairs: list[Pair]) -> None:
    def sharpness(pair: Pair) -> float:
        grey = np.asarray(Image.open(io.BytesIO(pair.image)).convert("L"), dtype=float)
        return float(np.abs(np.diff(grey, axis=1)).max())

    usual = [pair for pair in pairs if pair.is_clean and "small" not in pair.kinds]
    poor = [pair for pair in pairs if pair.kinds == {"small", "low_resolution"}]
    assert all(min(pair.original_width, pair.original_height) >= 200 for pair in usual)
    assert all(min(pair.original_width, pair.original_height) < 200 for pair in poor)
    assert np.median([*map(sharpness, poor)]) < 0.75 * np.median([*map(sharpness, usual)])


def test_exact_duplicates_share_their_bytes_with_an_earlier_pair(pairs: list[Pair]) -> None:
    sources = {pair.image for pair in pairs[:FIRST_DUPLICATE]}
    assert not any("duplicate" in pair.kinds for pair in pairs[:FIRST_DUPLICATE])
    exact = [pair for pair in pairs if "exact_duplicate" in pair.kinds]
    near = [pair for pair in pairs if "duplicate" in pair.kinds and "exact_duplicate" not in pair.kinds]
    assert len(exact) > 20 and all(pair.image in sources for pair in exact)
    assert len(near) > 20 and not any(pair.image in sources for pair in near)


def test_metadata_has_commonpools_columns_and_features(pool_dir: Path, pairs: list[Pair]) -> None:
    paths = sorted((pool_dir / "metadata").glob("*.parquet"))
    assert [len(path.stem) for path in paths] == [32, 32, 32]
    uids: list[str] = []
    for path in paths:
        table = pq.read_table(path)
        assert [(field.name, field.type) for field in table.schema] == [
            ("uid", pa.string()),
            ("url", pa.string()),
            ("text", pa.string()),
            ("original_width", pa.int64()),
            ("original_height", pa.int64()),
            ("clip_b32_similarity_score", pa.float32()),
            ("clip_l14_similarity_score", pa.float32()),
            ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
            ("sha256", pa.string()),
        ]
        uids += table["uid"].to_pylist()
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as features:
            assert sorted(features) == ["b32_img", "b32_txt", "l14_img", "l14_txt"]
            for name in ("b32", "l14"):
                image, text = features[f"{name}_img"], features[f"{name}_txt"]
                assert image.dtype == text.dtype == np.float16 and len(image) == len(text) == table.num_rows
                np.testing.assert_allclose(np.linalg.norm(image.astype(float), axis=1), 1, atol=2e-3)
                scores = (image.astype(float) * text.astype(float)).sum(axis=1)
                np.testing.assert_allclose(scores, table[f"clip_{name}_similarity_score"].to_numpy(), atol=2e-3)
    assert sorted(uids) == sorted(pair.uid for pair in pairs)
    assert uids != [pair.uid for pair in pairs]  # an order of its own
    planted = pd.read_parquet(pool_dir / "planted.parquet").set_index("uid")
    assert list(planted.columns) == ["is_clean", *KINDS]
    assert planted.loc[[pair.uid for pair in pairs], "is_clean"].tolist() == [pair.is_clean for pair in pairs]


def test_shards_hold_every_pair_but_the_dead_links(pool_dir: Path, pairs: list[Pair]) -> None:
    members = _tar_members(pool_dir / "shards")
    expected = {}
    for index, pair in enumerate(pairs):
        if not pair.is_dead_link:
            expected[f"{index // 1000:08d}{index % 1000:04d}"] = pair
    assert 5 < len(pairs) - len(expected) < 35
    assert [name for name in members if name.endswith(".jpg")] == [f"{key}.jpg" for key in expected]
    rows = pd.concat([pd.read_parquet(path) for path in (pool_dir / "metadata").glob("*.parquet")]).set_index("uid")
    for key, pair in expected.items():
        about = json.loads(members[f"{key}.json"])
        assert members[f"{key}.jpg"] == pair.image
        assert members[f"{key}.txt"].decode() == pair.text == about["caption"] == rows.loc[pair.uid, "text"]
        sha256 = hashlib.sha256(pair.image).hexdigest()
        assert about["sha256"] == sha256 == rows.loc[pair.uid, "sha256"]
        assert (about["uid"], about["key"], about["width"], about["height"]) == (pair.uid, key, 32, 32)
        assert Image.open(io.BytesIO(pair.image)).size == (32, 32)


def test_similarity_tells_aligned_from_swapped_and_not_from_useless(pool_dir: Path, pairs: list[Pair]) -> None:
    rows = pd.concat([pd.read_parquet(path) for path in (pool_dir / "metadata").glob("*.parquet")]).set_index("uid")
    score = rows["clip_l14_similarity_score"]

    def median(kind: str) -> float:
        return float(score[[pair.uid for pair in pairs if kind in pair.kinds]].median())

    clean = float(score[[pair.uid for pair in pairs if pair.is_clean]].median())
    assert clean > median("swapped") + 0.3
    assert clean > median("other_language") + 0.2
    assert clean < median("off_domain") + 0.1


def test_bytes_do_not_depend_on_workers_or_interruptions(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "write_record", _dying_at("pool.json"))
        with pytest.raises(KeyboardInterrupt):
            build_pool(again, TINY, workers=2)
    (again / "shards" / "00000001.tar").unlink()
    (again / "eval" / "wds_pico-shapes_test" / "test" / "nshards.txt").unlink()
    sorted((again / "metadata").glob("*.parquet"))[1].unlink()
    (again / "shards" / "00000001.tar.tmp").write_bytes(b"half")
    with user_error("record-differs", match="pool_seed"):
        build_pool(again, TINY, pool_seed=1)
    build_pool(again, TINY, workers=0)
    assert _all_files(again) == _all_files(pool_dir)


def test_a_finished_pool_is_skipped_and_another_refused(pool_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in pool_dir.rglob("*") if path.name != ".lock"}
    build_pool(pool_dir, TINY)
    assert "pool: up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in pool_dir.rglob("*") if path.name != ".lock"}
    with user_error("record-differs", match="pool_seed"):
        build_pool(pool_dir, TINY, pool_seed=3)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my work")
    with user_error("folder-not-empty", match=r"thesis\.txt"):
        build_pool(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_workers_draw_without_torch() -> None:
    program = "import sys, benchmark.embedded.pool; print('torch' in sys.modules, 'open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_evaluation_sets_are_laid_out_as_webdatasets(pool_dir: Path) -> None:
    tasks = load_tasks()
    folders = {tasks[name].folder_name for name in SUITES["pico"].tasks}
    assert len(folders) == 16 and {path.name for path in (pool_dir / "eval").iterdir()} == folders
    shapes = pool_dir / "eval" / "wds_pico-shapes_test"
    assert (shapes / "classnames.txt").read_text().splitlines() == list(SHAPE_NAMES)
    assert all("{c}" in line for line in (shapes / "zeroshot_classification_templates.txt").read_text().splitlines())
    assert (shapes / "test" / "nshards.txt").read_text().strip() == "1"
    members = _tar_members(shapes / "test")
    assert list(members)[:4] == ["s0000000.png", "s0000000.cls", "s0000001.png", "s0000001.cls"]
    assert len(members) == 400
    retrieval = pool_dir / "eval" / "wds_pico-retrieval_test"
    assert (retrieval / "dataset_type.txt").read_text().strip() == "retrieval"
    captions = [data.decode() for name, data in _tar_members(retrieval / "test").items() if name.endswith(".txt")]
    assert len(set(captions)) == 200


@pytest.mark.parametrize(("prefix", "per_group"), [("nano", 240), ("pico", 48)])
def test_groups_are_balanced_within_every_class(prefix: str, per_group: int) -> None:
    (worst_group,) = [each for each in evaluation_sets(prefix) if each.name == "worst_group"]
    counts = np.zeros((len(SHAPE_NAMES), len(GROUP_NAMES)), dtype=int)
    for example in generate_examples(worst_group):
        assert example.group is not None
        counts[example.label, example.group] += 1
    assert counts.sum(axis=0).tolist() == [per_group] * 4
    assert (counts == counts[0, 0]).all()


def test_no_evaluation_image_is_in_a_pool(pool_dir: Path, pairs: list[Pair]) -> None:
    def pixels(data: bytes) -> bytes:
        return Image.open(io.BytesIO(data)).convert("RGB").tobytes()

    seen = {pixels(pair.image) for pair in pairs}
    for folder in (pool_dir / "eval").iterdir():
        for name, data in _tar_members(folder / "test").items():
            assert not name.endswith(".png") or pixels(data) not in seen


def test_association_asks_for_a_category_among_others(pool_dir: Path) -> None:
    folder = pool_dir / "eval" / "wds_pico-association_test"
    lines = (folder / "instances.jsonl").read_text().splitlines()
    assert len(lines) == 50 and (folder / "dataset_type.txt").read_text() == "association\n"
    keys = {name.removesuffix(".png") for name in _tar_members(folder / "test")}
    concepts = list(CATEGORY_OF)
    for line in lines:
        instance = json.loads(line)
        right = [
            key
            for key in instance["candidates"]
            if CATEGORY_OF[concepts[int(key[1:]) % len(concepts)]] == instance["cue"]
        ]
        assert sorted(right) == instance["associations"]
        assert len(instance["candidates"]) in (10, 12) and set(instance["candidates"]) <= keys
    assert {json.loads(line)["cue"] for line in lines} == {*CATEGORIES, "vehicle"}


def test_every_concept_is_drawn_by_the_pools_designers_and_by_the_unseen_one() -> None:
    for name in PICTOGRAMS + VEHICLES:
        assert glyphs_of(name, POOL_DESIGNERS) and glyphs_of(name, UNSEEN_DESIGNERS), name
    for name in other_concepts():
        assert glyphs_of(name, POOL_DESIGNERS) and glyphs_of(name, REFERENCE_DESIGNERS), name
    assert not set(other_concepts()) & {*PICTOGRAMS, *VEHICLES} and len(other_concepts()) > 50


def test_the_reference_models_world_is_not_the_tasks() -> None:
    assert not set(REFERENCE_WORLD.designers) & {*POOL_WORLD.designers, *UNSEEN_DESIGNERS}
    assert not set(REFERENCE_WORLD.fonts) & set(POOL_WORLD.fonts)
    parts = [set(digits_of(part)) for part in (POOL_WORLD.digits, REFERENCE_WORLD.digits, EVALUATION_DIGITS)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    for kind in ("shapes", "letters", "textures", "pictograms"):
        assert set(getattr(REFERENCE_WORLD, kind)) < set(getattr(POOL_WORLD, kind)), kind


@pytest.mark.parametrize("world", [POOL_WORLD, REFERENCE_WORLD], ids=["pool", "reference"])
def test_captions_fill_every_frame(world: World) -> None:
    rng = Random(1)
    for _ in range(2000):
        text = write_caption(draw_random_scene(rng, world), rng, world)
        assert len(text.split()) >= 3 and "{" not in text and "  " not in text


def _dying_at(name: str) -> Callable[[Path, Record], None]:
    """Return a `write_record` that is killed when it comes to the record of that name."""

    def write(path: Path, record: Record) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write_record(path, record)

    return write


def _tar_members(folder: Path) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    return members


def _all_files(folder: Path) -> dict[str, str]:
    """Return the hash of every file but the lock and the costs, which are outside every hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "costs.jsonl")
    }
