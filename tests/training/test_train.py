"""Training: the step against open_clip's own code, exact resuming, and what is refused."""

import csv
import dataclasses
import gzip
import json
import math
import re
import tarfile
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from benchmark.cli.main import main
from benchmark.models.build import MODELS_DIR, build_model, build_tokenizer, write_vocabulary
from benchmark.pool.index import read_index
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import count_of, format_uids, parse_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import sha256_of
from benchmark.scales import SCALES, get_scale
from benchmark.training import data as data_module
from benchmark.training import exact, memory, step, train
from benchmark.training import state as state_module
from benchmark.training.data import TrainingData
from benchmark.training.memory import fitting_accumulation
from benchmark.training.ranks import Ranks
from benchmark.training.state import TrainState, newest_state
from tests.conftest import user_error

SHORT = dataclasses.replace(SCALES["pico"], samples_seen=320, batch_size=32, warmup_steps=3)
MADE_FROM = {"recipe": "short"}


@pytest.fixture(scope="module")
def data(pico_pool):
    index = read_index(pico_pool)
    return TrainingData.of(index, Subset.of(index.uids[:200]), SHORT)


def run(data, folder, seed=0, workers=0):
    folder.mkdir(parents=True, exist_ok=True)
    return train.train(data, seed, folder, MADE_FROM, device="cpu", workers=workers)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp") / "seed-0" / "checkpoint"
    record = run(data, folder)
    return folder, record


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", sorted({scale.model for scale in SCALES.values() if scale.is_embedded}))
def test_no_layer_mixes_the_samples_of_a_batch(name):
    model = build_model(name)
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    images = torch.randn(6, 3, 32, 32)
    tokens = torch.randint(1, 4000, (6, 24))
    model.train()
    whole = model(images, tokens)
    parts = [model(images[:2], tokens[:2]), model(images[2:], tokens[2:])]
    for key in ("image_features", "text_features"):
        torch.testing.assert_close(whole[key], torch.cat([part[key] for part in parts]), rtol=1e-4, atol=1e-5)


def test_the_vocabulary_is_the_beginning_of_clips(tmp_path):
    write_vocabulary(tmp_path / "bpe.txt.gz")
    shipped = gzip.decompress((MODELS_DIR / "bpe_3500.txt.gz").read_bytes())
    assert gzip.decompress((tmp_path / "bpe.txt.gz").read_bytes()) == shipped
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    assert gzip.decompress(source.read_bytes()).startswith(shipped) and shipped.count(b"\n") == 3500


def test_training_lowers_the_loss_and_records_every_step(undisturbed):
    folder, record = undisturbed
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert record.result["steps"] == 10 and record.result["samples"] == 200
    assert sorted(contents(folder)) == ["checkpoint.json", "model.safetensors", "train.jsonl"]


def test_the_same_run_gives_the_same_bytes_whatever_the_workers(data, undisturbed, tmp_path):
    run(data, tmp_path / "again", workers=0)
    run(data, tmp_path / "workers", workers=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "workers") == contents(undisturbed[0])


def test_another_seed_gives_other_weights(data, undisturbed, tmp_path):
    run(data, tmp_path / "seed", seed=1)
    assert contents(tmp_path / "seed")["model.safetensors"] != contents(undisturbed[0])["model.safetensors"]


@pytest.fixture
def many_saves(monkeypatch):
    monkeypatch.setattr(train, "NUM_SAVES", 10)


class KilledError(Exception):
    """Stands for a kill in these tests; the real one is in test_kill.py."""


def stop_at(monkeypatch, step_number):
    original = train.train_step

    def step_or_stop(model, optimizer, images, tokens, scale, step, **options):
        if step == step_number:
            raise KilledError
        return original(model, optimizer, images, tokens, scale, step, **options)

    monkeypatch.setattr(train, "train_step", step_or_stop)


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_stopped_run_goes_on_to_the_same_bytes(data, undisturbed, tmp_path, monkeypatch, many_saves, step):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KilledError):
            run(data, tmp_path / "run")
    assert "model.safetensors" not in contents(tmp_path / "run")
    run(data, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(undisturbed[0])


def cut(data):
    return data[:1000]


def overwritten(data):
    return data[: len(data) // 2] + b"damaged " * 5 + data[len(data) // 2 + 40 :]


def half_empty(data):
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def of_another_step(data):
    assert data.count(b'"step":"6"') == 1
    return data.replace(b'"step":"6"', b'"step":"7"')


def of_another_name(data):
    return data.replace(b'"model.logit_scale"', b'"model.logit_scalf"', 1)


@pytest.mark.parametrize("damage", [cut, overwritten, half_empty, of_another_step, of_another_name, lambda data: b""])
def test_a_damaged_state_falls_back_to_the_one_before(
    data, undisturbed, tmp_path, monkeypatch, many_saves, capsys, damage
):
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KilledError):
            run(data, tmp_path / "run")
    newest = tmp_path / "run" / "state.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    run(data, tmp_path / "run")
    assert re.search(r"state.safetensors is damaged \(.*\); the one before is taken", capsys.readouterr().err)
    assert contents(tmp_path / "run") == contents(undisturbed[0])


def test_the_state_of_another_run_is_refused(data, tmp_path, monkeypatch, many_saves):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KilledError):
            run(data, tmp_path)
    with user_error("record-differs", match='recipe.*"short".*"long"'):
        newest_state(tmp_path, {"recipe": "long", "order": data.hash_order()})
    with user_error("record-differs", match="order"):
        other = data.samples.copy()
        other[[0, 1]] = other[[1, 0]]
        run(TrainingData(data.reader.index, other, SHORT), tmp_path)
    name = newest_state(tmp_path, {**MADE_FROM, "order": data.hash_order()})
    state = TrainState.begin(SHORT, 0, "cpu")
    state.load(tmp_path / name)
    assert state.step == len(state.curves.stats) == 3


def test_a_diverged_run_stops_with_its_step(data, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "contrastive_loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with user_error("training-failed", match="step 0: loss nan"):
        run(data, tmp_path)
    assert not contents(tmp_path)


def test_too_many_undecodable_samples_stop_the_run(data, tmp_path, monkeypatch):
    held = data.batches(0).held
    few = np.arange(len(held.is_decodable)) % 50 > 0  # 2 % are not
    monkeypatch.setattr(data, "_held", dataclasses.replace(held, is_decodable=few))
    with user_error("image-undecodable", match="1%") as caught:
        run(data, tmp_path)
    assert caught.value.code == "image-undecodable"


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_pictures_are_named_with_tar_and_key_and_can_be_taken_out(
    pico_pool, tmp_path, monkeypatch, workers
):
    """Of every tar the first two samples; the subset has two copies of some."""
    pool_dir, bad = tmp_path / "pool", {}
    for path in sorted((pico_pool / "shards").glob("*.tar"))[:2]:
        with tarfile.open(path) as tar:
            files = [(each.name, tar.extractfile(each).read()) for each in list(tar)[:180]]
        keys = list(dict.fromkeys(name.partition(".")[0] for name, _ in files))[:2]
        bad |= {(path.name, key): json.loads(dict(files)[f"{key}.json"])["uid"] for key in keys}
        picture = re.compile(rf"({'|'.join(keys)})\.(jpg|png|webp|jpeg)")
        write_tar(
            pool_dir / "shards" / path.name,
            [(name, b"no picture" if picture.fullmatch(name) else content) for name, content in files],
        )
    index = read_index(pool_dir)
    subset = Subset.of(np.concatenate([index.uids, index.uids[:10]]))
    seed_dir = tmp_path / "exp" / "seed-0"
    subset.write(seed_dir.parent / "subset.npy")
    monkeypatch.setattr(data_module, "fits_memory", lambda order: not workers)
    with pytest.raises(UserError) as caught:
        run(TrainingData.of(index, subset, SHORT), seed_dir / "checkpoint", workers=workers)
    told, logs = str(caught.value), seed_dir / "logs"
    with (logs / "undecodable.csv").open(newline="") as file:
        listed = {(row["tar"], row["key"]): row["uid"] for row in csv.DictReader(file)}
    assert len(listed) >= 3 and listed.items() <= bad.items()
    for tar, key in list(listed)[:3]:
        assert f"{key!r} in {tar}" in told
    assert f"{len(listed)} pictures met so far are listed in {logs / 'undecodable.csv'}" in told
    (command,) = re.findall(r"winnow (subset minus .*--out \S+),", told)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    left = load_subset(tmp_path / "decodable.npy").uids
    assert len(left) == len(subset) - int(count_of(parse_uids(sorted(listed.values()), ""), subset.uids).sum())
    assert not set(format_uids(left)) & set(listed.values())
    with user_error("image-undecodable", match=f"{len(listed)} "):  # the same again: each once
        run(TrainingData.of(index, subset, SHORT), seed_dir / "checkpoint", workers=workers)


def test_out_of_memory_says_what_would_need_less(data, tmp_path, monkeypatch):
    def greedy(*arguments, accumulation, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(train, "train_step", greedy)
    with pytest.raises(MemoryError, match=r"step 0, 32 .*accumulation=2.*16 "):
        run(data, tmp_path / "one")
    monkeypatch.setattr(train, "train_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(data, tmp_path / "other")


@pytest.mark.parametrize(
    ("gigabytes", "accumulation"),
    [(80, 1), (45, 1), (44, 2), (25, 2), (24, 4), (5.2, 64), (4.4, None)],
)
def test_the_accumulation_that_fits_is_found_from_two_small_measurements(gigabytes, accumulation):
    """A model of 4 GB that needs 36 GB more for 1,024 samples; a tenth of the memory stays free."""
    asked = []

    def peak_at(samples):
        asked.append(samples)
        return 4e9 + 36e9 * samples / 1024

    assert fitting_accumulation(peak_at, gigabytes * 1e9, 1024) == accumulation
    assert asked == [16, 32]


def test_what_a_step_held_is_free_before_memory_is_measured(monkeypatch):
    """The error that ends a step holds its frames, and they hold its activations."""
    held = []

    def step():
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    class OnGpu(list):
        images = SimpleNamespace(device=SimpleNamespace(type="cuda"))

    def peak(model, batch, scale, samples):
        return 4 * samples + (0 if held[0]() is None else 1000)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 100))
    monkeypatch.setattr(memory, "peak_memory", peak)
    advice = memory.memory_advice(nn.Linear(1, 1), OnGpu(range(64)), SHORT, 3, 1, Ranks())
    with (
        pytest.raises(MemoryError, match=r"step 3, 64 .*accumulation=4.*16 "),
        advice,
    ):
        step()


@pytest.mark.parametrize(("most", "accumulation"), [(200, 8), (40, 8), (1, None)])
def test_the_measurements_are_smaller_where_memory_is_short(most, accumulation):
    def peak_at(samples):
        if samples > most:
            raise torch.OutOfMemoryError
        return samples

    assert fitting_accumulation(peak_at, 600, 4096) == accumulation


@pytest.mark.parametrize(
    ("saving", "unsaved", "is_saved"), [(0.2, 0.3, True), (5.0, 100.0, False), (5.0, 300.0, True), (30.0, 601.0, True)]
)
def test_a_state_that_takes_long_to_write_is_written_less_often(tmp_path, saving, unsaved, is_saved):
    saved = []
    state = SimpleNamespace(
        step=1, saving=saving, saved=time.monotonic() - unsaved, save=lambda *arguments: saved.append(arguments)
    )
    train._save_if_due(state, tmp_path, MADE_FROM, SHORT, False)
    assert bool(saved) == is_saved
    train._save_if_due(state, tmp_path, MADE_FROM, SHORT, True)  # whenever it is asked for
    assert len(saved) == is_saved + 1


def test_checkpoints_that_would_not_fit_are_refused_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match=r"11 MB.*1 MB"):
        run(data, tmp_path)
    assert not contents(tmp_path)


def test_a_full_disk_leaves_the_state_before_whole(data, undisturbed, tmp_path, monkeypatch, many_saves):
    """The fourth state does not fit: what safetensors says of a full disk."""
    calls = []

    def save_or_not(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 4:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(state_module, "save_file", save_or_not)
        with pytest.raises(OSError, match="No space left on device"):
            run(data, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"state.safetensors", "state-before.safetensors"}
    run(data, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(undisturbed[0])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (nn.BatchNorm2d(3), r"\(visual.extra\).*BatchNorm"),
        (nn.Dropout(0.1), r"\(visual.extra\).*dropout"),
        (open_clip.transformer.PatchDropout(0.5), r"\(visual.extra\).*dropout"),
        (nn.Dropout(0.0), None),
    ],
)
def test_a_model_whose_runs_would_not_be_exact_is_refused(monkeypatch, part, said):
    unfit = build_model("pico_cnn")
    unfit.visual.extra = part
    monkeypatch.setattr(state_module, "build_model", lambda *_: unfit)
    if said is None:
        assert TrainState.begin(SHORT, 0, "cpu").model is unfit
    else:
        with user_error("model-unfit", match=said):
            TrainState.begin(SHORT, 0, "cpu")


def test_a_model_of_another_loss_is_refused(monkeypatch):
    biased = build_model("pico_cnn")
    biased.logit_bias = nn.Parameter(torch.zeros(1))
    monkeypatch.setattr(state_module, "build_model", lambda *_: biased)
    with user_error("model-unfit"):
        TrainState.begin(SHORT, 0, "cpu")


# --- as DataComp's scales train, with a small model -----------------------------------------------------------------

TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def like_small(tmp_path_factory):
    """small's recipe with a small model and budget: streamed, cropped, in half precision, with replacement."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "tiny.json").write_text(json.dumps(TINY_VIT))
    (folder / "like_small.yaml").write_text(
        "base: small\nmodel: tiny.json\nimage_size: 32\nsamples_seen: 320\nbatch_size: 32\nwarmup_steps: 2\n"
        "block_size: 50\nthreads: 1\n"
    )
    return get_scale(str(folder / "like_small.yaml"))


@pytest.fixture(scope="module")
def streamed(like_small, pico_pool, tmp_path_factory):
    index = read_index(pico_pool)
    data = TrainingData.of(index, Subset.of(index.uids[:300]), like_small)
    assert data.batches(0).held is None
    folder = tmp_path_factory.mktemp("streamed") / "seed-0" / "checkpoint"
    return data, folder, run(data, folder, workers=None)


def test_a_recipe_like_datacomps_keeps_its_checkpoints(streamed):
    _, folder, record = streamed
    kept = [f"model-step-{step:08d}.safetensors" for step in (2, 4, 6, 8)]
    assert sorted(contents(folder)) == ["checkpoint.json", *kept, "model.safetensors", "train.jsonl"]
    assert record.result["kept"] == {
        str(step): sha256_of(folder / name) for step, name in zip((2, 4, 6, 8), kept, strict=True)
    }
    assert len({*record.result["kept"].values(), record.result["weights"]}) == 5
    assert record.result["decoder"].startswith("simplejpeg ")
    losses = [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(losses) == 10 and max(losses[-2:]) < min(losses[:3])


def test_a_kept_checkpoint_that_is_gone_is_said_and_does_not_cost_the_run(streamed, tmp_path, monkeypatch, capsys):
    data, folder, _ = streamed
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KilledError):
            run(data, tmp_path / "run")
    (tmp_path / "run" / "model-step-00000002.safetensors").unlink()
    record = run(data, tmp_path / "run")
    assert "model-step-00000002.safetensors is gone; the learning curve will lack it" in capsys.readouterr().err
    assert record.result["kept"]["2"] is None and record.result["kept"]["4"] is not None
    assert contents(tmp_path / "run")["model.safetensors"] == contents(folder)["model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"text_cfg": {**TINY_VIT["text_cfg"], "vocab_size": 1000}},
            "32 px .*IndexError",
        ),
        ({"vision_cfg": {"timm_model_name": "resnet10t", "image_size": 32}}, "BatchNorm"),
        ({"vision_cfg": {**TINY_VIT["vision_cfg"], "patch_dropout": 0.5}}, "dropout"),
        ({"init_logit_bias": -10}, "loss"),
        ({"vision_cfg": {**TINY_VIT["vision_cfg"], "depth": 3}}, "'depth'"),
        ({"vision_cfg": None}, "vision_cfg"),
    ],
)
def test_a_model_of_ones_own_that_cannot_be_trained_is_refused_in_a_sentence(tmp_path, changes, said):
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY_VIT, **changes}))
    (tmp_path / "mine.yaml").write_text("base: small\nmodel: tiny.json\nimage_size: 32\n")
    with user_error("model-unfit", match=said):
        TrainState.begin(get_scale(str(tmp_path / "mine.yaml")), 0, "cpu")


def test_the_vocabulary_of_a_model_of_ones_own_is_part_of_the_recipe(tmp_path):
    text = {"context_length": 16, "vocab_size": 4014, "width": 16, "heads": 1, "layers": 1}
    config = {**TINY_VIT, "text_cfg": {**text, "tokenizer_kwargs": {"bpe_path": "words.txt.gz"}}}
    (tmp_path / "siglip.json").write_text(json.dumps(config))  # of which name open_clip would make another tokenizer
    (tmp_path / "mine.yaml").write_text("base: small\nmodel: siglip.json\nimage_size: 32\n")
    with user_error("model-not-found", match=r"words\.txt\.gz"):
        get_scale(str(tmp_path / "mine.yaml"))
    hashes = []
    lines = gzip.decompress((MODELS_DIR / "bpe_3500.txt.gz").read_bytes()).split(b"\n")
    for words in (lines, lines[:1] + lines[:0:-1]):
        (tmp_path / "words.txt.gz").write_bytes(gzip.compress(b"\n".join(words)))
        scale = get_scale(str(tmp_path / "mine.yaml"))
        hashes.append(scale.hash)
    assert len(set(hashes)) == 2
    assert build_tokenizer(scale.model)(["a red square"]).shape == (1, 16)


@pytest.mark.parametrize("step", [3, 6])
def test_and_goes_on_to_the_same_bytes(streamed, tmp_path, monkeypatch, step):
    data, folder, _ = streamed
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KilledError):
            run(data, tmp_path / "run", workers=2)
    run(data, tmp_path / "run", workers=0)
    assert contents(tmp_path / "run") == contents(folder)


def test_a_models_file_is_part_of_the_recipe(like_small, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY_VIT, "embed_dim": 8}))
    (tmp_path / "like_small.yaml").write_text("base: small\nmodel: tiny.json\n")
    other = get_scale(str(tmp_path / "like_small.yaml"))
    assert other.model != like_small.model and other.model.startswith("tiny-")
    assert build_model(other.model).visual.output_dim == 8
    (tmp_path / "like_small.yaml").write_text("base: small\nmodel: none.json\n")
    with user_error("model-not-found", match=r"none\.json"):
        get_scale(str(tmp_path / "like_small.yaml"))
    with user_error("unknown-model", match="'ViT-B-33'.*'ViT-B-32'"):
        build_model("ViT-B-33")


def test_weights_are_float32_tensors_of_the_model(undisturbed):
    weights = load_file(undisturbed[0] / "model.safetensors")
    assert set(weights) == set(build_model("pico_cnn").state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_on_a_gpu_an_operation_without_a_fixed_order_is_refused_in_a_sentence(data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set"
        )

    monkeypatch.setattr(train, "train_step", refuse)
    with user_error("model-unfit", match="'pico_cnn'.*adaptive_max_pool2d_backward_cuda"):
        run(data, tmp_path / "run")


def test_sums_have_one_order_on_a_gpu_and_afterwards_are_as_they_were(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with exact.repeatable_sums("cuda"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fills
    with exact.repeatable_sums("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
