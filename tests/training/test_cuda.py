"""Training and evaluation on a GPU, where there is one: open_clip's steps, the same bytes after a kill, memory."""

import copy
import dataclasses
import re

import pytest
import torch

from benchmark.pool.index import read_index
from benchmark.pool.subset import Subset
from benchmark.scales import SCALES
from benchmark.training import train
from benchmark.training.data import TrainingData
from benchmark.training.step import LossScaler, make_optimizer, train_step
from tests.training.test_step import build, open_clips

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
STEPS = 10
BRIEF = dataclasses.replace(
    SCALES["pico"], batch_size=64, samples_seen=STEPS * 64, warmup_steps=3, learning_rate=5e-4, device="cuda"
)


def data_of(pico_pool, scale):
    index = read_index(pico_pool)
    return TrainingData.of(index, Subset.of(index.uids[:640]), scale)


@pytest.mark.parametrize("model", ["pico_cnn", "tiny_vit"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("amp", 1e-2), ("amp_bf16", 1e-2)])
def test_ten_losses_are_those_of_open_clips_trainer(pico_pool, model, precision, tolerance):
    scale = dataclasses.replace(BRIEF, precision=precision)
    made = data_of(pico_pool, scale).batches(0)
    batches = [made[step] for step in range(STEPS)]
    model = build(model).to("cuda").train()
    scaler = torch.amp.GradScaler("cuda") if precision == "amp" else None
    expected = open_clips(copy.deepcopy(model), batches, scale, device="cuda", scaler=scaler)
    optimizer, scaler = make_optimizer(model, scale), LossScaler(scale, "cuda")
    losses = []
    for step, batch in enumerate(batch.to("cuda") for batch in batches):
        losses.append(train_step(model, optimizer, batch.images, batch.tokens, scale, step, scaler=scaler).loss)
    assert losses == pytest.approx([loss for loss, _ in expected], abs=tolerance)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("precision", ["fp32", "amp", "amp_bf16"])
def test_a_killed_run_goes_on_to_the_same_bytes(pico_pool, tmp_path, monkeypatch, precision):
    data = data_of(pico_pool, dataclasses.replace(BRIEF, precision=precision))
    monkeypatch.setattr(train, "NUM_SAVES", STEPS)
    original = train.train_step

    def run(folder):
        folder.mkdir(parents=True, exist_ok=True)
        train.train(data, 0, folder, {"recipe": precision}, device="cuda")
        return (folder / "model.safetensors").read_bytes()

    def killed(model, optimizer, images, tokens, scale, step, **options):
        if step == 6:
            raise KilledError
        return original(model, optimizer, images, tokens, scale, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", killed)
        with pytest.raises(KilledError):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed") == run(tmp_path / "undisturbed")


def test_out_of_memory_says_what_fits_and_that_fits(pico_pool, tmp_path, monkeypatch):
    """The card is made to look small, and the step that fails holds more than that."""
    data = data_of(pico_pool, dataclasses.replace(BRIEF, batch_size=640, samples_seen=640))
    original = train.train_step

    def short_of_memory(model, optimizer, images, tokens, scale, step, *, accumulation, **options):
        if accumulation == 1:
            activations = torch.empty(200 << 20, dtype=torch.uint8, device="cuda")
            raise torch.OutOfMemoryError(f"CUDA out of memory after {len(activations)} bytes")
        return original(model, optimizer, images, tokens, scale, step, accumulation=accumulation, **options)

    monkeypatch.setattr(train, "train_step", short_of_memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 100 << 20))

    def run(folder, accumulation):
        folder.mkdir(parents=True)
        train.train(data, 0, folder, {}, device="cuda", accumulation=accumulation)

    with pytest.raises(MemoryError, match=r"step 0, 640 .*accumulation=") as error:
        run(tmp_path / "whole", 1)
    accumulation = int(re.search(r"accumulation=(\d+)", str(error.value))[1])
    torch.cuda.reset_peak_memory_stats()
    run(tmp_path / "parts", accumulation)
    assert accumulation > 1 and torch.cuda.max_memory_allocated() < 100 << 20
