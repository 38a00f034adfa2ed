"""Scales: the fixed training recipes. A number here is part of the benchmark; changing one raises `recipe`.

A recipe cannot be changed from the command line; `tests/test_scales.py` pins every field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from benchmark.names import nearest_name
from benchmark.stage import Json, digest


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, drawn from (seed, position) alone.

    `shift` moves the picture by up to `pixels` in each direction, edges repeated.
    `random_resized_crop` is open_clip's: an area share within `area`, then a bicubic resize.
    """

    kind: str  # "shift" or "random_resized_crop"
    pixels: int = 0
    area: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Scale:
    """Everything that fixes a training run but the pool, the subset and the seed."""

    name: str
    recipe: int  # version: numbers of different recipes are not comparable
    pool_size: int  # samples in the nominal pool
    suite: str  # the suite that scores it

    model: str  # an open_clip configuration
    image_size: int  # pixels
    samples_seen: int
    batch_size: int  # over all ranks and micro-batches

    optimizer: str
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float  # spares biases, norms and the logit scale, as open_clip does
    warmup_steps: int
    schedule: str  # "cosine" to zero
    grad_clip_norm: float | None
    precision: str  # "fp32", "amp" or "amp_bf16"
    grad_checkpointing: bool

    augmentation: Augmentation
    mean: tuple[float, float, float]  # of pixel values in [0, 1]
    std: tuple[float, float, float]

    with_replacement: bool  # blocks drawn anew each time instead of epoch by epoch
    block_size: int  # consecutive samples of the pool that stay together
    window_blocks: int  # blocks shuffled together
    spread_repeats: bool  # move a sample's copies out of one batch where that is possible

    num_checkpoints: int  # kept at even parts of the budget
    threads: int | None  # CPU threads of a rank; the sums of floats depend on them
    device: str  # what the recipe's reference runs used: "cpu" or "cuda"
    is_embedded: bool  # `winnow pool build` draws its pool

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps."""
        return -(-self.samples_seen // self.batch_size)

    def as_json(self) -> dict[str, Json]:
        """Return every field, for records."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def hash(self) -> str:
        """Return the sha256 of all fields."""
        return digest(self.as_json())


NANO = Scale(
    name="nano",
    recipe=2,
    pool_size=60_000,
    suite="nano",
    model="nano_cnn",
    image_size=32,
    samples_seen=60_000,
    batch_size=64,
    optimizer="adamw",
    learning_rate=2e-3,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.1,
    warmup_steps=94,  # a tenth of the steps
    schedule="cosine",
    grad_clip_norm=1.0,
    precision="fp32",
    grad_checkpointing=False,
    augmentation=Augmentation("shift", pixels=1),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    with_replacement=False,
    block_size=1000,
    window_blocks=1_000_000,  # one window holds everything
    spread_repeats=True,
    num_checkpoints=1,
    threads=1,  # two save a third of the time on two idle cores, and double it when one of them is busy
    device="cpu",
    is_embedded=True,
)

PICO = replace(NANO, name="pico", suite="pico", pool_size=4_000, model="pico_cnn", samples_seen=6_400, warmup_steps=10)

SCALES: dict[str, Scale] = {scale.name: scale for scale in (PICO, NANO)}


def get_scale(name: str) -> Scale:
    """Look a scale up; raises KeyError with the nearest name."""
    if name not in SCALES:
        raise KeyError(f"unknown scale {name!r}.{nearest_name(name, SCALES)} Scales: {', '.join(SCALES)}.")
    return SCALES[name]
