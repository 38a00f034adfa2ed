"""The performance scripts on next to nothing: that they run and what they compute, never how long it took."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmark.evaluation.checkpoints import open_model
from benchmark.models.build import build_tokenizer
from benchmark.pool.index import read_index
from benchmark.pool.pool import Pool
from benchmark.pool.samples import SampleReader
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import make_rule
from benchmark.training.data import crop_and_resize, draw_crop
from scripts.perf import (
    decoders,
    eval_report,
    eval_speed,
    filter_speed,
    make_jpeg_pool,
    report_size,
    train_report,
    train_speed,
)
from scripts.perf.process import Timing
from scripts.perf.train_report import Job, Outcome
from tests.conftest import user_error
from tests.wordnet_files import write_wordnet_files

PICO_JOB = Job("ours", "pico", "", 128, None, "cpu", stream=False, threads=1, workers=1)


def job_of(leg, pool_dir, **fields):
    return Job(**{**vars(PICO_JOB), "leg": leg, "pool_dir": str(pool_dir), **fields})


@pytest.fixture(scope="module")
def jpeg_pool(tmp_path_factory):
    pool_dir = tmp_path_factory.mktemp("made") / "pool"
    total = make_jpeg_pool.make_pool(pool_dir, 70, sizes=(24, 40), shard_size=40)
    return pool_dir, total


@pytest.mark.parametrize("leg", ["ours", "bare", "decoding"])
@pytest.mark.parametrize("stream", [False, True])
def test_our_legs_train_on_what_was_asked_for(pico_pool, leg, stream):
    before = torch.get_num_threads()
    outcome = train_speed.LEGS[leg](job_of(leg, pico_pool, samples=100, stream=stream, workers=0))
    assert (outcome.samples, outcome.threads) == (128, 1)  # two whole batches, on the recipe's one thread
    assert outcome.cpu_seconds > 0 and 0 <= outcome.decoding_seconds < outcome.seconds
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("leg", ["ours", "decoding", "open_clip"])
def test_first_steps_can_be_left_out(pico_pool, leg):
    outcome = train_speed.run_in_process(job_of(leg, pico_pool, samples=192, stream=True, skip=1))
    assert outcome.samples == 128 and outcome.seconds > 0 and outcome.cpu_seconds > 0
    with user_error("perf", match="--skip 3"):
        train_report.scale_of(job_of(leg, pico_pool, samples=192, skip=3))


def test_open_clips_own_trainer_runs_on_the_same_tars(pico_pool):
    outcome = train_speed.run_in_process(job_of("open_clip", pico_pool))
    assert (outcome.samples, outcome.threads, outcome.decoding_seconds) == (128, 1, 0)


def test_a_measurement_that_fails_says_why():
    with user_error("perf", match=r"theirs/1/1[\s\S]*KeyError: 'theirs'"):
        train_speed.run_in_process(job_of("theirs", "nowhere"))


def test_open_clip_has_our_model_and_our_tokens(tmp_path):
    name = train_speed.register_for_open_clip("pico_cnn", tmp_path)
    texts = ["a small red square", "Straße 42 " * 20]
    assert torch.equal(open_clip.get_tokenizer(name)(texts), build_tokenizer("pico_cnn")(texts))
    assert open_clip.get_model_config(name)["vision_cfg"] == open_clip.get_model_config("pico_cnn")["vision_cfg"]


def test_the_report_gives_medians_and_ratios(tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    arguments = ["--pool-dir", str(tmp_path), "--samples", "1200", "--open-clip-workers", "1", "--rounds", "3"]
    jobs = train_speed.make_jobs(train_speed.parse_options(arguments))
    assert [(job.leg, job.threads) for job in jobs] == [
        ("ours", None),
        ("bare", None),
        ("open_clip", None),
        ("open_clip", 1),
    ]
    rounds = [
        [
            Outcome(1200, 4.0 * slower, 1.0 * slower, 6.0, 1),
            Outcome(1200, 2.4 * slower, 0.0, 2.4, 1),
            Outcome(1200, 24.0 * slower, 0.0, 24.0, 2),
            Outcome(1200, 10.0 * slower, 0.0, 12.0, 1),
        ]
        for slower in (1, 2, 1)
    ]
    train_report.print_report(jobs, train_report.make_rows(jobs, rounds), 3)
    said = capsys.readouterr().out
    assert "| our loop, decoding once included | 1 | 0 | 300 | 150 to 300 | 200 |  |" in said
    assert "| our loop without it | 1 | 0 | 400 | 200 to 400 |  | 0.75 × |" in said
    assert "| open_clip's trainer | 2 | 1 | 50 | 25 to 50 | 50 | 6.00 × |" in said
    assert "open_clip's fastest row: 2.50 (2.50 to 2.50 by round); target 3.00: missed" in said
    assert "open_clip's thriftiest row: 2.00" in said
    assert "after decoding, to the bare model: 0.80 (0.80 to 0.80 by round); target 0.90: missed" in said


def test_what_cannot_be_measured_is_refused_before_anything_runs(pico_pool):
    options = train_speed.parse_options(["--pool-dir", str(pico_pool), "--open-clip-workers", "9"])
    with user_error("perf"):
        train_speed.make_jobs(options)
    with user_error("perf", match="--samples 3 "):
        train_speed.make_jobs(train_speed.parse_options(["--pool-dir", str(pico_pool), "--samples", "3"]))
    with user_error("perf"):
        train_speed.make_jobs(train_speed.parse_options(["--pool-dir", str(pico_pool / "assets")]))


def test_a_made_up_pool_is_one_that_training_can_read(jpeg_pool):
    pool_dir, total = jpeg_pool
    index = read_index(pool_dir)
    assert sorted(path.name for path in (pool_dir / "shards").iterdir()) == ["00000000.tar", "00000001.tar"]
    assert len(index) == Pool(pool_dir).count_rows() == 70 and len(set(index.uids.tolist())) == 70
    reader = SampleReader(index, np.arange(70))
    read = [reader.read(place) for place in range(70)]
    assert sum(len(image) for image, _ in read) == total
    sizes = [Image.open(io.BytesIO(image)).size for image, _ in read]
    assert all(24 <= max(size) <= 40 and min(size) >= 14 for size in sizes)
    assert len({image for image, _ in read}) == 70 and all(text.decode().split() for _, text in read)


def test_a_made_up_pool_is_a_function_of_its_seed(jpeg_pool, tmp_path):
    pool_dir, _ = jpeg_pool
    for seed in (0, 1):
        make_jpeg_pool.make_pool(tmp_path / str(seed), 40, sizes=(24, 40), shard_size=40, seed=seed)
    first, other = ((tmp_path / str(seed) / "shards" / "00000000.tar").read_bytes() for seed in (0, 1))
    assert first == (pool_dir / "shards" / "00000000.tar").read_bytes() != other
    with user_error("perf"):
        make_jpeg_pool.make_pool(pool_dir, 40, sizes=(24, 40))


def test_pictures_are_streamed_from_a_made_up_pool(jpeg_pool):
    outcome = train_speed.measure_ours(job_of("ours", jpeg_pool[0], samples=64, stream=True, workers=0))
    assert outcome.samples == 64


def test_every_decoder_is_compared_and_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for package in ("cv2", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, package, None)
    found, missing = decoders.available()
    assert missing == ["torchcodec", "simplejpeg", "opencv-python-headless"]
    jpegs = [make_jpeg_pool.encode(make_jpeg_pool.draw_picture(0, number, 260, 250)) for number in range(2)]
    lines = decoders.compare(found, jpegs, 1)
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {decoder.name}" for decoder in found]
    assert lines[2].endswith("| 1.00 × | identical | identical |")
    kinds = decoders.compare_kinds(found, decoders.other_kinds())
    assert kinds[2] == "| Pillow (open_clip) | identical | identical | identical | identical | identical | refused |"
    assert len(kinds) == 2 + len({decoder.name.split(",")[0] for decoder in found})


def test_resizings_get_trainings_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    crop = draw_crop(400, 300, (0.9, 1.0), decoders.SEED, 7)
    cut = Image.fromarray(pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])
    expected = cut.resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(decoders.crop_by_pillow(Image.fromarray(pixels), 7), np.asarray(expected))
    assert np.array_equal(decoders.crop_by_torch(pixels, 7), crop_and_resize(pixels, 224, crop))


def test_differences_are_counted_by_pixel():
    black = np.zeros((2, 2, 3), np.uint8)
    other = black.copy()
    other[0, 0] = (3, 0, 9)
    assert decoders.difference([(black, black)]) == "identical"
    assert decoders.difference([(other, black)]) == "75.0% same, off by 1.00, at most 9"
    assert decoders.difference([(black[:1], black)]) == "of another size"


@pytest.fixture(scope="module")
def metadata_pool(tmp_path_factory):
    """Two metadata shards as `filter_speed` makes them, with embeddings."""
    pool_dir = tmp_path_factory.mktemp("made") / "metadata_pool"
    filter_speed.make_pool(pool_dir, 3000, shard_rows=2000)
    filter_speed.add_embeddings(pool_dir, 20, dimension=8)
    return pool_dir


@pytest.mark.parametrize(
    ("name", "legs"),
    [
        ("clip_score", ("loop clip_score", "floor clip_score")),
        ("basic", ("loop basic", "floor basic")),
        ("image_based", ("bare product",)),
    ],
)
def test_the_plain_loops_choose_what_the_filters_choose(strategies, metadata_pool, name, legs):
    found = run_filters(Pool(metadata_pool), [make_rule(name, {})]).subset.uids
    assert 100 < len(found) < 2000
    for leg in legs:
        uids = filter_speed.LEGS[leg](metadata_pool)
        assert len(uids) == 0 if leg == "bare product" else np.array_equal(uids, found)


def test_the_loop_over_words_chooses_what_text_based_chooses(strategies, tmp_path, monkeypatch):
    write_wordnet_files(tmp_path / "nltk" / "corpora" / "wordnet")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])
    filter_speed.make_pool(tmp_path, 120)
    with pytest.warns(UserWarning, match="multilingual"):
        uids = filter_speed.loop_text_based(tmp_path)
    found = run_filters(Pool(tmp_path), [make_rule("text_based", {})]).subset.uids
    assert np.array_equal(uids, found) and 10 < len(found) < 110


def test_a_made_up_pools_metadata_is_a_function_of_its_seed(metadata_pool, tmp_path):
    for seed in (0, 1):
        filter_speed.make_pool(tmp_path / str(seed), 3000, seed=seed, shard_rows=2000)
    first, other, made = (
        pd.concat([pd.read_parquet(path) for path in sorted((folder / "metadata").glob("*.parquet"))])
        for folder in (tmp_path / "0", tmp_path / "1", metadata_pool)
    )
    assert first.equals(made) and not first.equals(other)
    assert first["uid"].nunique() == 3000 and first["clip_l14_similarity_score"].dtype == np.float32
    words, characters = first["text"].str.split().str.len(), first["text"].str.len()
    assert 0.6 < ((words > 2) & (characters > 5)).mean() < 0.75
    assert first["text"].value_counts().iloc[0] > 5


def test_filters_are_measured_as_whole_processes(metadata_pool, tmp_path):
    timing = filter_speed.measure("clip_score", metadata_pool, tmp_path, workers=1)
    assert timing.cpu_seconds > 0.2 and timing.main_mib > 50 and timing.worker_mib > 50
    assert not (tmp_path / "out").exists() and (tmp_path / "cache").exists()
    floor = filter_speed.measure("floor clip_score", metadata_pool, tmp_path)
    assert floor.worker_mib == 0 and floor.seconds > 0
    with pytest.raises(RuntimeError, match="'clip_scor'"):
        filter_speed.measure("clip_scor", metadata_pool, tmp_path)


def test_the_report_gives_slopes_and_how_far_targets_are():
    def taking(*cpu_seconds):
        return [Timing(2 * each, each, 100, 0) for each in cpu_seconds]

    timings = {
        ("clip_score", 1_000_000): taking(1.0, 9.0, 1.1),
        ("clip_score", 2_000_000): taking(1.5, 1.5, 1.6),
        ("floor clip_score", 2_000_000): taking(1.2),
        ("basic", 2_000_000): taking(10),
        ("loop basic", 2_000_000): taking(40),
        ("text_based", 1_000_000): taking(8),
        ("text_based", 2_000_000): taking(16),
        ("loop text_based", 1000): taking(4),
        ("loop text_based", 3000): taking(6),
        ("image_based", 2000): taking(5),
        ("image_based", 4000): taking(9),
        ("bare product", 2000): taking(3),
        ("bare product", 4000): taking(6.5),
    }
    said = filter_speed.report(timings)
    assert "| clip_score | 2,000,000 | 1.50 | 3.00 | 100 | 0.40 | 1.25 × |  |" in said
    assert "| basic | 2,000,000 | 10.00 | 20.00 | 100 |  |  | 0.25 × |" in said
    assert "- clip_score: 1.50 CPU s at 2,000,000 rows (target at 2,000,000: 1.8), 0.40 for a further million" in said
    assert "- basic: 0.25 of the loop at 2,000,000 rows" in said
    assert "- text_based: a row costs the loop 125 times as much, by the slopes" in said
    assert "- image_based: the bare product is 88% of it, by the slopes" in said
    memory = filter_speed.report_memory({("basic", 2, 16): Timing(1, 1, 150, 170)})
    assert memory.endswith("| basic | 2 | 16 | 150 | 170 |")


def test_two_sizes_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        filter_speed.main(["--rows", "1000"])
    assert "a slope needs two sizes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        filter_speed.main(["--only", "basc"])
    assert "unknown filters ['basc']" in capsys.readouterr().err


@pytest.fixture(scope="module")
def speed_sets(tmp_path_factory):
    """One task of small pictures and the model that is asked, as the measurement makes them."""
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_speed, "NUM_TASKS", 1)
        assert eval_speed.make_tasks(folder, 12) == eval_speed.make_tasks(folder, 12) == ["speed/0"]
    return folder, eval_speed.make_weights(folder, "nano_cnn")


def test_both_evaluations_are_asked_the_same(speed_sets, tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="clip_benchmark's command needs it, its functions do not")
    folder, (config, weights) = speed_sets
    opened = open_model(str(config), str(weights))
    seconds = eval_speed.time_ours(opened, folder, ["0"], tmp_path / "ours", 0)
    assert 0 < seconds["images"] < seconds["all"]
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(sys, "argv", [])
    command = ["eval", "--dataset", "wds/speed/0", "--model", config.stem, "--pretrained", str(weights), "--no_amp"]
    command += ["--dataset_root", str(folder / "wds_{dataset_cleaned}_test"), "--quiet", "--num_workers", "0"]
    command += ["--task", "zeroshot_classification", "--output", str(tmp_path / "theirs" / "{dataset}.json")]
    eval_speed.run_part("command", [str(config), *command])
    assert eval_speed.compare_scores(["speed/0"], tmp_path).endswith("at most 0.0e+00 apart")


@pytest.mark.parametrize("leg", ["bare encoder", "ours", "clip_benchmark"])
def test_every_encoder_of_pictures_is_measured(leg, speed_sets, tmp_path):
    _, model = speed_sets
    eval_speed.make_set(eval_speed.set_folder(tmp_path, "large"), eval_speed.large_pictures(3), "jpg", ["a"], ["{c}"])
    (tmp_path / "large.json").write_text("[1, 2, 3]")
    eval_speed.run_part("images", [leg, str(tmp_path / "leg.json"), *map(str, model), str(tmp_path), "0", "0"])
    assert json.loads((tmp_path / "leg.json").read_text())["images"] > 0


def test_every_text_classifier_is_the_same(speed_sets, tmp_path):
    _, model = speed_sets
    (tmp_path / "prompts.json").write_text(json.dumps(eval_speed.imagenet_prompts(4, 3)))
    found = []
    for leg in ("ours", "ours, three tasks", "ours, not cut", "clip_benchmark"):
        out = tmp_path / f"{len(found)}.json"
        eval_speed.run_part("texts", [leg, str(out), *map(str, model), str(tmp_path), "0"])
        assert json.loads(out.read_text())["texts"] > 0
        found.append(np.load(out.with_suffix(".npy")))
    assert found[0].shape == (4, 96)
    assert all(np.allclose(each, found[0], rtol=0, atol=1e-6) for each in found)


def test_evaluation_reports_medians_and_targets():
    one, each = "clip_benchmark, one call, 4 workers, 1 threads", "clip_benchmark, a call for each, 4 workers"
    lines = eval_report.report_tasks({"`winnow evaluate`": [10, 20, 10], one: [40, 40, 50], each: [90, 90, 90]}, 2000)
    assert "| `winnow evaluate` | 10.0 | 10.0 to 20.0 | 2,000 |  |" in lines
    assert f"| {one} | 40.0 | 40.0 to 50.0 | 500 | 4.00 × |" in lines
    assert "- to clip_benchmark's fastest, one call: 4.00 (2.00 to 5.00 by round); target 3.00: reached" in lines
    lines = eval_report.report_images({"bare encoder": [10.0], "ours": [8.0]})
    assert lines[-1] == "- images alone, to the bare encoder: 0.80 (0.80 to 0.80 by round); target 0.90: **missed**"
    rows = {"ours": [2.0], "ours, three tasks": [2.0], "ours, not cut": [8.0], "clip_benchmark": [12.0]}
    said = "\n".join(eval_report.report_texts(rows, 2000))
    assert (
        "one task, to clip_benchmark: 6.00" in said
        and "three tasks of one classifier, to clip_benchmark: 18.00" in said
    )
    assert "of the first by cutting: 4.00; by batches and threads: 1.50" in said


def test_unknown_parts_of_an_evaluation_are_refused(capsys):
    with pytest.raises(SystemExit):
        eval_speed.parse_options(["--only", "images,sounds"])
    assert "unknown parts ['sounds']; there are tasks, images, texts" in capsys.readouterr().err


def test_a_report_is_measured_as_a_whole_process(metadata_pool, tmp_path):
    timing = report_size.measure(metadata_pool, tmp_path / "work")
    assert timing.cpu_seconds > 0.2 and timing.main_mib > 50
    assert (tmp_path / "work" / "clip_score" / "report" / "index.html").is_file()
