"""CLIP similarity by a model of one's own: against open_clip called in a plain loop, gone on with, by its weights."""

import io
import re
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmark.cli.main import main
from benchmark.embedded.captions import write_caption
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.world import draw_random_scene
from benchmark.experiment.choice import Choice
from benchmark.models.build import build_model, build_tokenizer
from benchmark.pool import images as images_module
from benchmark.pool.pool import Pool
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import format_uids
from benchmark.runtime.failures import EXIT_USER
from benchmark.runtime.files import sha256_of
from benchmark.selection import cache, row_independence
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from benchmark.toolbox.encoders import Encoder, find_weights, load_encoder
from tests.conftest import members, uid, user_error

MODEL = "pico_cnn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    save_file(build_model(MODEL, seed=3).state_dict(), path)
    return path


def drawn_pair(number):
    rng = Random(f"pair/{number}")
    scene = draw_random_scene(rng)
    picture = draw_picture(scene, rng)
    file = io.BytesIO()
    picture.resize((32 + number % 3 * 20, 40)).save(file, "PNG")
    return file.getvalue(), write_caption(scene, rng)


@pytest.fixture
def pool_dir(tmp_path):
    """Twenty rows on two shards; 3 has no caption, 7 a broken image, 11 none at all."""
    folder = tmp_path / "pool"
    (folder / "metadata").mkdir(parents=True)
    for shard, numbers in enumerate((range(13), range(13, 20))):
        texts = [None if number == 3 else drawn_pair(number)[1] for number in numbers]
        table = pa.table({"uid": [uid(number) for number in numbers], "text": pa.array(texts, pa.string())})
        pq.write_table(table, folder / "metadata" / f"{shard}.parquet")
    samples = [
        members(f"{number:03d}", number, image=b"\xff\xd8 broken" if number == 7 else drawn_pair(number)[0])
        for number in range(20)
        if number != 11
    ]
    write_tar(folder / "shards" / "00000000.tar", chain(*samples[::-1]))
    return folder


def rule(checkpoint, fraction=0.3):
    return Rule("clip_similarity", {"clip_model": MODEL, "checkpoint": str(checkpoint)}, Cut("fraction", fraction))


def kept_cosines(pool_dir):
    paths = sorted((pool_dir / "signals").glob("clip_cosine-*/*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in paths])


def kept_bytes(pool_dir):
    return [path.read_bytes() for path in sorted((pool_dir / "signals").glob("clip_*/*.parquet"))]


def test_scores_are_those_of_open_clip_in_a_plain_loop(pool_dir, checkpoint, strategies, capsys):
    outcome = run_filters(Pool(pool_dir), [rule(checkpoint)])
    model, _, prepare = open_clip.create_model_and_transforms(MODEL, pretrained=str(checkpoint))
    expected = {}
    with torch.inference_mode():
        for number in set(range(20)) - {3, 7, 11}:
            image, text = drawn_pair(number)
            picture = model.eval().encode_image(prepare(Image.open(io.BytesIO(image)).convert("RGB"))[None])
            caption = model.encode_text(build_tokenizer(MODEL)([text]))
            expected[uid(number)] = float(torch.cosine_similarity(picture, caption))
    found = {row["uid"]: row["value"] for row in kept_cosines(pool_dir).to_pylist()}
    assert {name for name, value in found.items() if value is None} == {uid(3), uid(7), uid(11)}
    for name, cosine in expected.items():
        assert found[name] == pytest.approx(cosine, abs=1e-6)
    best = sorted(expected, key=expected.__getitem__)[-6:]
    assert format_uids(outcome.subset.uids) == sorted(best)
    assert outcome.reports[0].missing == 3
    assert (
        "signal 'clip_cosine': 1 of 20 rows have no image in the shards, 1 one that cannot" in capsys.readouterr().err
    )


def test_neither_slices_nor_workers_nor_rows_asked_before_change_a_byte(
    pool_dir, checkpoint, strategies, monkeypatch, tmp_path
):
    run_filters(Pool(pool_dir), [rule(checkpoint)])
    expected = kept_bytes(pool_dir)
    assert len(expected) == 4
    for name, slice_images, options in (("slices", 3, {}), ("workers", 256, {"workers": 2})):
        monkeypatch.setattr(images_module, "SLICE_IMAGES", slice_images)
        (pool_dir / "signals").rename(tmp_path / name)
        run_filters(Pool(pool_dir), [rule(checkpoint)], **options)
        assert kept_bytes(pool_dir) == expected, name


def test_stopped_half_way_it_goes_on_with_the_rest(pool_dir, checkpoint, strategies, monkeypatch):
    run_filters(Pool(pool_dir), [rule(checkpoint)])
    expected = kept_bytes(pool_dir)
    for path in (pool_dir / "signals").glob("*/*.parquet"):
        path.unlink()
    monkeypatch.setattr(images_module, "SLICE_IMAGES", 3)
    monkeypatch.setattr(cache, "PART_SECONDS", 0.0)
    # Or the number depends on what ran before in this process.
    monkeypatch.setattr(row_independence, "NUM_REPEATED_COSTLY", 0)
    encode, seen = Encoder.encode_images, []

    def failing(self, images):
        if sum(seen) >= 6:
            raise MemoryError("stopped")
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Encoder, "encode_images", failing)
    with user_error("strategy-failed", match="'clip_cosine'.*MemoryError: stopped"):
        run_filters(Pool(pool_dir), [rule(checkpoint)])
    assert kept_bytes(pool_dir) == []
    monkeypatch.setattr(Encoder, "encode_images", encode)
    outcome = run_filters(Pool(pool_dir), [rule(checkpoint)])
    assert outcome.costs["clip_cosine"].rows == 20 - sum(seen) - 2 and kept_bytes(pool_dir) == expected


def test_another_cut_looks_at_no_image(pool_dir, checkpoint, strategies):
    run_filters(Pool(pool_dir), [rule(checkpoint)])
    outcome = run_filters(Pool(pool_dir), [rule(checkpoint, 0.5)])
    assert len(outcome.subset) == 10 and outcome.costs["clip_cosine"].rows == 0


def test_the_record_names_the_weights_by_their_hash(pool_dir, checkpoint, strategies, tmp_path):
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    save_file(build_model(MODEL, seed=4).state_dict(), other)
    first, same, changed = (rule(path).resolve(Pool(pool_dir)).as_json() for path in (checkpoint, copy, other))
    assert first == same and str(checkpoint) not in str(first)
    assert first["options"]["checkpoint"] != changed["options"]["checkpoint"]
    assert first["signals"] != changed["signals"]


def test_what_a_gpu_computed_is_kept_and_recorded_apart(pool_dir, checkpoint, strategies):
    pool = Pool(pool_dir)
    here, there = (rule(checkpoint).resolve(pool, device=device).identity for device in ("cpu", "cuda"))
    assert here["signals"]["clip_cosine"] | {"device": "cuda"} == there["signals"]["clip_cosine"]
    assert Choice((rule(checkpoint),)).inputs(pool) | {"device": "cuda"} == Choice(
        (rule(checkpoint),), device="cuda"
    ).inputs(pool)
    blind = Rule("random", {"seed": 0}, Cut("fraction", 0.5))
    assert Choice((blind,)).inputs(pool) == Choice((blind,), device="cuda").inputs(pool)


def test_weights_that_open_clip_knows_by_name_are_recorded_by_name_and_hash(pool_dir, checkpoint, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: str(checkpoint))
    rule = Rule("clip_similarity", {"clip_model": "ViT-B-32", "checkpoint": "laion2b_s34b_b79k"})
    named = rule.resolve(Pool(pool_dir)).identity["options"]["checkpoint"]
    assert named == f"laion2b_s34b_b79k:{sha256_of(checkpoint)}"

    def unreachable(config):
        raise ConnectionError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with user_error("unreachable", match="laion2b_s34b_b79k.*ViT-B-32.*no network"):
        rule.resolve(Pool(pool_dir))
    with user_error("checkpoint-foreign", match="x=openai.*ViT-B-32-quickgelu"):
        find_weights("ViT-B-32", "openai", "x")
    assert find_weights("ViT-B-32-quickgelu", "openai", "x") == Path("openai")


def test_a_file_of_weights_is_given_images_as_the_model_expects(monkeypatch, tmp_path):
    seen = []

    def create(name, pretrained, **options):
        seen.append(options)
        return torch.nn.Identity(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    (tmp_path / "w.pt").touch()
    for name in ("ViT-B-16-SigLIP", "ViT-L-14", "ViT-B-32"):
        monkeypatch.setattr("benchmark.models.build.build_tokenizer", lambda name: None)
        load_encoder(clip_model=name, checkpoint=str(tmp_path / "w.pt"), device="cpu")
    siglip, large, base = seen
    assert siglip["image_mean"] == (0.5, 0.5, 0.5) and siglip["image_resize_mode"] == "squash"
    assert "image_mean" not in large  # its weights disagree
    assert base["image_mean"] == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["clip_model=ViT-B-32"], "filters.clip_similarity.checkpoint: must be given; ViT-B-32 needs the path of its"),
        (["clip_model=ViT-B-32", "checkpoint=no.pt"], "there is no file no.pt; ViT-B-32 needs .* or one of openai, "),
        (["clip_model=ViT-B-33"], "unknown model 'ViT-B-33'. Did you mean 'ViT-B-32'?"),
        (["clip_model=reference_b16"], "clip_model='reference_b16' is not a reference model; use reference_b32 or "),
    ],
)
def test_what_cannot_be_loaded_is_told_before_any_work(pool_dir, strategies, tmp_path, capsys, options, message):
    given = [f"filters.clip_similarity.{option}" for option in options]
    at = [f"pool_dir={pool_dir}", "scale=pico", f"exp_dir={tmp_path / 'e'}"]
    assert main(["filter", *at, "filters=clip_similarity", *given]) == EXIT_USER
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert re.search(message, told), told
    assert not (pool_dir / "signals").exists()


def test_the_reference_model_gives_the_metadata_scores_again(pico_pool, strategies, tmp_path):
    pool = Pool(pico_pool, signals_dir=tmp_path)
    run_filters(
        pool, [Rule("clip_similarity", {"clip_model": "reference_b32", "checkpoint": None}, Cut("fraction", 1))]
    )
    path = pool.metadata_paths[0]
    found = pq.read_table(next(tmp_path.glob(f"clip_cosine-*/{path.name}")))["value"].to_numpy(zero_copy_only=False)
    known = pq.read_table(path)["clip_b32_similarity_score"].to_numpy()
    assert np.nanmax(np.abs(found - known)) < 1e-5 and np.isnan(found).mean() < 0.05
