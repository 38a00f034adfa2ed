"""The training step against open_clip's own trainer: losses, rates and weights after twenty batches, in every mode."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import open_clip
import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import nn

from benchmark.models.build import build_model
from benchmark.models.pixels import normalise
from benchmark.pool.index import read_index
from benchmark.pool.subset import Subset
from benchmark.scales import SCALES
from benchmark.training.data import TrainingData
from benchmark.training.exact import recipe_threads
from benchmark.training.step import LossScaler, contrastive_loss, learning_rate_at, make_optimizer, train_step

STEPS = 20
BRIEF = dataclasses.replace(SCALES["pico"], batch_size=16, samples_seen=STEPS * 16, warmup_steps=3, learning_rate=5e-4)
# Small, but of the kind that the large scales train: patches, attention, no convolutional tricks.
TINY_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 4014, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with recipe_threads(BRIEF):
        yield


@pytest.fixture(scope="module")
def batches(pico_pool):
    """Twenty batches of real pairs."""
    index = read_index(pico_pool)
    data = TrainingData.of(index, Subset.of(index.uids), BRIEF)
    batches = data.batches(0)
    return [batches[step] for step in range(STEPS)]


class Double(nn.Module):
    """A model in float64: what is left of a difference after twenty steps is not rounding."""

    def __init__(self, model):
        super().__init__()
        self.model = model.double()
        self.logit_scale = self.model.logit_scale

    def forward(self, images, tokens):
        return self.model(images.double(), tokens)


def build(name):
    if name != "tiny_vit":
        return build_model(name, 5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return open_clip.CLIP(**TINY_VIT, output_dict=True)


def ours(model, batches, scale, **options):
    optimizer = make_optimizer(model, scale)
    model.train()
    return [
        train_step(model, optimizer, batch.images, batch.tokens, scale, step, **options)
        for step, batch in enumerate(batches)
    ]


class Recorded(open_clip.ClipLoss):
    def forward(self, *arguments, **named):
        losses = super().forward(*arguments, **named)
        self.seen.append((losses["contrastive_loss"].item(), self.optimizer.param_groups[0]["lr"]))
        return losses


def open_clips(model, batches, scale, accumulation=1, device="cpu", scaler=None):
    """Train with open_clip_train.train.train_one_epoch; return (loss, learning rate) of every step."""
    named = list(model.named_parameters())
    exclude = lambda n, p: p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n  # noqa: E731
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": scale.weight_decay},
        ],
        lr=scale.learning_rate,
        betas=scale.betas,
        eps=scale.eps,
    )
    loss = Recorded(local_loss=True, gather_with_grad=True)
    loss.seen, loss.optimizer = [], optimizer
    parts = [
        (normalise(images, scale), tokens.long())
        for batch in batches
        for images, tokens in zip(batch.images.chunk(accumulation), batch.tokens.chunk(accumulation), strict=True)
    ]

    class Loader(list):
        num_batches, num_samples = len(parts), len(parts) * len(parts[0][0])

    arguments = SimpleNamespace(
        device=device,
        precision=scale.precision,
        distill=False,
        accum_freq=accumulation,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=scale.grad_clip_norm,
        batch_size=len(parts[0][0]),
        world_size=1,
        rank=0,
        local_rank=0,
        log_every_n_steps=100,
        log_local=False,
        wandb=False,
        save_logs=False,
    )
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=Loader(parts))}
    schedule = cosine_lr(optimizer, scale.learning_rate, scale.warmup_steps, scale.steps)
    train_one_epoch(model, data, loss, 0, optimizer, scaler, schedule, None, arguments)
    assert len(loss.seen) == len(parts)
    return loss.seen[accumulation - 1 :: accumulation]


def same(one, other, tolerance):
    return dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=tolerance)


def compare(model, batches, scale, accumulation=1, theirs=None):
    """Train both ways from the same weights; return the greatest difference of losses, rates and weights."""
    theirs = theirs or copy.deepcopy(model)
    expected = open_clips(theirs, batches, scale, accumulation)
    stats = ours(model, batches, scale, accumulation=accumulation)
    weights = zip(model.parameters(), theirs.parameters(), strict=True)
    return (
        max(abs(one.loss - loss) for one, (loss, _) in zip(stats, expected, strict=True)),
        max(abs(one.learning_rate - rate) for one, (_, rate) in zip(stats, expected, strict=True)),
        max(float((one - other).abs().max().detach()) for one, other in weights),
    )


def test_the_loss_is_open_clips():
    generator = torch.Generator().manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in range(2))
    expected = open_clip.ClipLoss()(images, texts, torch.tensor(14.3))
    torch.testing.assert_close(contrastive_loss(images, texts, torch.tensor(14.3)), expected)


@pytest.mark.parametrize("name", sorted(SCALES))
def test_learning_rates_are_open_clips(name):
    scale = SCALES[name]
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
    schedule = cosine_lr(optimizer, scale.learning_rate, scale.warmup_steps, scale.steps)
    warmup, steps = scale.warmup_steps, scale.steps
    for step in {0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1} & set(range(steps)):
        schedule(step)
        assert learning_rate_at(step, scale) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_the_learning_rate_warms_up_to_the_full_one_and_ends_near_zero():
    assert learning_rate_at(0, BRIEF) == BRIEF.learning_rate / 3
    assert learning_rate_at(2, BRIEF) == learning_rate_at(3, BRIEF) == BRIEF.learning_rate
    assert 0 < learning_rate_at(STEPS - 1, BRIEF) < BRIEF.learning_rate / 50


@pytest.mark.parametrize("model", ["pico_cnn", "tiny_vit"])
@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_twenty_steps_are_those_of_open_clips_trainer(batches, model, clip, accumulation):
    scale = dataclasses.replace(BRIEF, grad_clip_norm=clip)
    model = Double(build(model))
    theirs = copy.deepcopy(model)
    # open_clip adds the logit scale's gradient up once for every micro-batch; ours counts it once.
    theirs.logit_scale.register_hook(lambda gradient: gradient / accumulation)
    loss, rate, weight = compare(model, batches, scale, accumulation, theirs)
    assert loss < 1e-9 and rate < 1e-15 and weight < 1e-9


@pytest.mark.parametrize("model", ["pico_cnn", "tiny_vit"])
def test_and_in_float32_but_for_rounding(batches, model):
    """Adam divides by gradients, so where one is next to nothing its rounding moves a weight; losses hardly."""
    loss, rate, weight = compare(build(model), batches, BRIEF)
    assert loss < 1e-5 and rate < 1e-15 and weight < 1e-4


def test_where_open_clips_accumulation_counts_too_much_is_known(batches):
    """Without clipping Adam's scale-free step hides it; with clipping it takes length from all other gradients."""
    model = Double(build("tiny_vit"))
    hidden, _, _ = compare(copy.deepcopy(model), batches, dataclasses.replace(BRIEF, grad_clip_norm=None), 4)
    seen, _, _ = compare(model, batches, BRIEF, 4)
    assert hidden < 1e-4 < seen


@pytest.mark.parametrize("clip", [1.0, None])
def test_accumulation_gives_the_same_run(batches, clip):
    scale = dataclasses.replace(BRIEF, grad_clip_norm=clip)
    model = Double(build("tiny_vit"))
    whole = ours(copy.deepcopy(model), batches, scale)
    for accumulation in (2, 8):
        parts = ours(copy.deepcopy(model), batches, scale, accumulation=accumulation)
        for one, other in zip(whole, parts, strict=True):
            assert same(one, other, 1e-9)


def test_gradient_checkpointing_gives_the_same_run(batches):
    plain, saving = build("tiny_vit"), build("tiny_vit")
    saving.set_grad_checkpointing()
    assert saving.transformer.grad_checkpointing and saving.visual.transformer.grad_checkpointing
    for one, other in zip(ours(plain, batches[:5], BRIEF), ours(saving, batches[:5], BRIEF), strict=True):
        assert same(one, other, 1e-6)


@pytest.mark.parametrize("precision", ["amp", "amp_bf16"])
def test_half_precision_is_on_and_near(batches, precision):
    """On a CPU both compute in bfloat16, whose last bit is a part in 256."""
    seen = []
    model = build("tiny_vit")
    model.transformer.resblocks[0].mlp.c_fc.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    half = ours(model, batches[:3], dataclasses.replace(BRIEF, precision=precision))
    full = ours(build("tiny_vit"), batches[:3], BRIEF)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert set(seen) == {torch.bfloat16}
    for one, other in zip(half, full, strict=True):
        assert one.loss != other.loss and one.loss == pytest.approx(other.loss, abs=0.05)


def scaled(scale):
    """A float16 recipe's loss scaler, on the CPU."""
    scaler = LossScaler(scale, "cpu")
    scaler.is_needed, scaler.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return scaler


@pytest.mark.parametrize("accumulation", [1, 4])
def test_scaling_the_loss_changes_nothing(batches, accumulation):
    model = Double(build("tiny_vit"))
    plain = ours(copy.deepcopy(model), batches[:5], BRIEF)
    half = ours(model, batches[:5], BRIEF, accumulation=accumulation, scaler=scaled(BRIEF))
    for one, other in zip(plain, half, strict=True):
        assert same(one, other, 1e-9)


def test_an_overflow_skips_the_step_and_scales_down(batches):
    model, scaler = build("tiny_vit"), scaled(BRIEF)
    optimizer = make_optimizer(model, BRIEF)
    before = [parameter.clone() for parameter in model.parameters()]
    model.visual.proj.register_hook(lambda gradient: gradient * math.inf)
    stats = train_step(model, optimizer, batches[0].images, batches[0].tokens, BRIEF, 0, scaler=scaler)
    assert not math.isfinite(stats.grad_norm) and math.isfinite(stats.loss)
    assert all((one == other).all() for one, other in zip(model.parameters(), before, strict=True))
    assert scaler.scaler.get_scale() == 2.0**9 and not scaler.has_failed
    again = scaled(BRIEF)
    again.load(scaler.state())
    assert again.scaler.get_scale() == 2.0**9


def test_the_logit_scale_stays_below_a_hundred(batches):
    model = build("tiny_vit")
    with torch.no_grad():
        model.logit_scale.fill_(10.0)
    assert ours(model, batches[:1], BRIEF)[0].logit_scale == pytest.approx(100)
