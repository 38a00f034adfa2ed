"""The training step: a function of a model, an optimiser, a recipe and a batch, so that anyone can check it.

What it must agree with is open_clip's own trainer (open_clip_train/train.py); a test compares them.
"""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.models.pixels import normalise
from benchmark.scales import Scale
from benchmark.training.ranks import SINGLE_PROCESS, Ranks, unwrap

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, Sec. 2.5


@dataclass(frozen=True)
class StepStats:
    """What one optimiser step reports."""

    loss: float  # of the global batch
    learning_rate: float
    logit_scale: float
    grad_norm: float  # before clipping; infinite where float16 overflowed, and the step was skipped


@dataclass
class Curves:
    """The step statistics of a run so far, part of its state."""

    stats: list[StepStats] = field(default_factory=list)
    undecodable: int = 0
    repeats: int = 0  # samples that stood in their batch already

    def add(self, stats: StepStats, undecodable: int, repeats: int) -> None:
        """Take in a step."""
        self.stats.append(stats)
        self.undecodable += undecodable
        self.repeats += repeats

    def as_tensor(self) -> Tensor:
        rows = [list(asdict(stats).values()) for stats in self.stats]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4)

    @classmethod
    def from_tensor(cls, rows: Tensor, undecodable: int, repeats: int) -> Curves:
        return cls([StepStats(*row) for row in rows.tolist()], undecodable, repeats)


class LossScaler:
    """Scales the loss of a float16 recipe, so that small gradients do not vanish; of other recipes does nothing."""

    def __init__(self, scale: Scale, device: str) -> None:
        self.is_needed = scale.precision == "amp" and device == "cuda"
        self.scaler = torch.amp.GradScaler(device, enabled=self.is_needed)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss, scaled where that is needed."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def state(self) -> str:
        """Return what a later process needs to go on."""
        return json.dumps(self.scaler.state_dict())

    def load(self, state: str) -> None:
        """Go on from a saved state."""
        self.scaler.load_state_dict(json.loads(state))

    @property
    def has_failed(self) -> bool:
        """Tell whether gradients overflow though the loss is not scaled up at all."""
        return self.is_needed and self.scaler.get_scale() < 1


def make_optimizer(model: nn.Module, scale: Scale) -> torch.optim.Optimizer:
    """Build AdamW as open_clip does: no weight decay for vectors, norms, biases and the logit scale."""
    assert scale.optimizer == "adamw"
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_spared = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (spared if is_spared else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": scale.weight_decay}],
        lr=scale.learning_rate,
        betas=scale.betas,
        eps=scale.eps,
        fused=True,
    )


def learning_rate_at(step: int, scale: Scale) -> float:
    """Return the rate of a step: linear warm-up, then cosine to zero, as open_clip's `cosine_lr`."""
    assert scale.schedule == "cosine"
    if step < scale.warmup_steps:
        return scale.learning_rate * (step + 1) / scale.warmup_steps
    progress = (step - scale.warmup_steps) / (scale.steps - scale.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) * scale.learning_rate


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, ranks: Ranks = SINGLE_PROCESS
) -> Tensor:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021, Fig. 3) of normalised features (n, dimension).

    Of several ranks each scores its own samples against those of all, and their mean is the loss of the global batch
    (open_clip's local loss with gathered features).
    """
    if ranks.size == 1:
        logits = logit_scale * image_features @ text_features.T  # (images, texts)
        labels = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    all_images, all_texts = ranks.gather(image_features), ranks.gather(text_features)
    labels = ranks.rank * len(image_features) + torch.arange(len(image_features), device=image_features.device)
    of_images = functional.cross_entropy(logit_scale * image_features @ all_texts.T, labels)
    return (of_images + functional.cross_entropy(logit_scale * text_features @ all_images.T, labels)) / 2


def autocast(scale: Scale, device: str) -> AbstractContextManager:
    """Return the block in which the recipe's precision holds; float16 is a GPU's, a CPU takes bfloat16 for it."""
    if scale.precision == "fp32":
        return nullcontext()
    half = torch.float16 if scale.precision == "amp" and device == "cuda" else torch.bfloat16
    return torch.autocast(device, dtype=half)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    tokens: Tensor,
    scale: Scale,
    step: int,
    *,
    accumulation: int = 1,
    scaler: LossScaler | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> StepStats:
    """Take one optimiser step on pictures (n, size, size, 3) uint8 and tokens (n, context length).

    They are this rank's part of the global batch, on the model's device. `accumulation` cuts them into as many
    micro-batches, of which one at a time is held with its activations; the gradient is still that of the whole batch.
    """
    learning_rate = learning_rate_at(step, scale)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    scaler = scaler or LossScaler(scale, images.device.type)
    backward = _backward_whole if accumulation == 1 else _backward_in_parts
    loss = backward(model, images, tokens, scale, accumulation, scaler, ranks)
    scaler.scaler.unscale_(optimizer)
    limit = math.inf if scale.grad_clip_norm is None else scale.grad_clip_norm
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    scaler.scaler.step(optimizer)
    scaler.scaler.update()
    logit_scale = unwrap(model).logit_scale
    assert isinstance(logit_scale, Tensor)
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    mean_loss = ranks.sums(loss.item())[0] / ranks.size
    return StepStats(mean_loss, learning_rate, math.exp(logit_scale.item()), grad_norm.item())


def _backward_whole(
    model: nn.Module, images: Tensor, tokens: Tensor, scale: Scale, _: int, scaler: LossScaler, ranks: Ranks
) -> Tensor:
    with autocast(scale, images.device.type):
        outputs = model(normalise(images, scale), tokens.long())
        loss = contrastive_loss(outputs["image_features"], outputs["text_features"], outputs["logit_scale"], ranks)
    scaler.backward(loss)
    return loss.detach()


def _backward_in_parts(
    model: nn.Module,
    images: Tensor,
    tokens: Tensor,
    scale: Scale,
    accumulation: int,
    scaler: LossScaler,
    ranks: Ranks,
) -> Tensor:
    """Backward through the whole batch with the activations of one micro-batch (GradCache, Gao et al. 2021, Sec. 3).

    The features come first, without activations, then the loss's gradient at the features, then each micro-batch's
    forward once more and its backward from there. open_clip computes the loss again for every micro-batch, and so adds
    the logit scale's gradient up as often; here it counts once.
    """
    device = images.device.type
    parts = list(zip(images.chunk(accumulation), tokens.chunk(accumulation), strict=True))
    with torch.no_grad(), autocast(scale, device):
        outputs = [unwrap(model)(normalise(part, scale), words.long()) for part, words in parts]
    image_features, text_features = (
        torch.cat([output[key] for output in outputs]).requires_grad_() for key in ("image_features", "text_features")
    )
    logit_scale = outputs[0]["logit_scale"].detach().requires_grad_()
    del outputs
    with autocast(scale, device):
        loss = contrastive_loss(image_features, text_features, logit_scale, ranks)
    scaler.backward(loss)
    assert image_features.grad is not None and text_features.grad is not None
    gradients = zip(image_features.grad.chunk(accumulation), text_features.grad.chunk(accumulation), strict=True)
    for number, ((part, words), (image_grad, text_grad)) in enumerate(zip(parts, gradients, strict=True), 1):
        is_last = number == accumulation
        with _without_averaging(model) if not is_last else nullcontext():
            with autocast(scale, device):
                output = model(normalise(part, scale), words.long())
            ends = [output["image_features"], output["text_features"]]
            starts = [image_grad, text_grad]
            if is_last:
                ends.append(output["logit_scale"])
                starts.append(logit_scale.grad)
            torch.autograd.backward(ends, starts)
    return loss.detach()


def _without_averaging(model: nn.Module) -> AbstractContextManager:
    """Return the block in which gradients stay on their rank, to be averaged with the last micro-batch's."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
