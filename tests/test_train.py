"""Training: the step against open_clip's own code, exact resuming, and what is refused."""

import dataclasses
import gzip
import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmark import stage, step, train
from benchmark.index import read_index
from benchmark.models import MODELS_DIR, build_model, write_vocabulary
from benchmark.scales import SCALES
from benchmark.step import LossScaler, make_optimizer
from benchmark.subset import Subset
from benchmark.train import TrainingData, load_state, newest_state

SHORT = dataclasses.replace(SCALES["pico"], samples_seen=320, batch_size=32, warmup_steps=3)
MADE_FROM = {"recipe": "short"}


@pytest.fixture(scope="module")
def data(pico_pool):
    index = read_index(pico_pool)
    return TrainingData(index, Subset.of(index.uids[:200]), SHORT)


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


def test_a_damaged_state_falls_back_to_the_one_before(data, undisturbed, tmp_path, monkeypatch, many_saves, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KilledError):
            run(data, tmp_path / "run")
    newest = tmp_path / "run" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    run(data, tmp_path / "run")
    assert "state.safetensors is damaged" in capsys.readouterr().err
    assert contents(tmp_path / "run") == contents(undisturbed[0])


def test_the_state_of_another_run_is_refused(data, tmp_path, monkeypatch, many_saves):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KilledError):
            run(data, tmp_path)
    with pytest.raises(ValueError, match="state of a run with other settings"):
        newest_state(tmp_path, "another")
    name = newest_state(tmp_path, stage.digest(MADE_FROM))
    model = build_model("pico_cnn")
    step, _ = load_state(tmp_path / name, model, make_optimizer(model, SHORT), LossScaler(SHORT, "cpu"))
    assert step == 3


def test_a_diverged_run_stops_with_its_step(data, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "contrastive_loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(ValueError, match="training diverged at step 0: loss nan"):
        run(data, tmp_path)
    assert not contents(tmp_path)


def test_too_many_undecodable_samples_stop_the_run(data, tmp_path, monkeypatch):
    held = data.batches(0).held
    few = np.arange(len(held.is_decodable)) % 50 > 0  # 2 % are not
    monkeypatch.setattr(data, "_held", dataclasses.replace(held, is_decodable=few))
    with pytest.raises(ValueError, match="could not be decoded, more than 1% of the samples seen"):
        run(data, tmp_path)


def test_weights_are_float32_tensors_of_the_model(undisturbed):
    weights = load_file(undisturbed[0] / "model.safetensors")
    assert set(weights) == set(build_model("pico_cnn").state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
