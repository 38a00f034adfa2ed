"""The recipes are frozen: a changed number voids every result and must raise `recipe`."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from benchmark.scales import SCALES, get_scale

EMBEDDED = {
    "recipe": 2,
    "image_size": 32,
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.002,
    "betas": (0.9, 0.98),
    "eps": 1e-06,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "grad_clip_norm": 1.0,
    "precision": "fp32",
    "grad_checkpointing": False,
    "augmentation": {"kind": "shift", "pixels": 1, "area": (1.0, 1.0)},
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "with_replacement": False,
    "block_size": 1000,
    "window_blocks": 1000000,
    "spread_repeats": True,
    "num_checkpoints": 1,
    "threads": 1,
    "device": "cpu",
    "is_embedded": True,
}
RECIPES = {
    "pico": {
        "pool_size": 4000,
        "suite": "pico",
        "model": "pico_cnn",
        "samples_seen": 6400,
        "warmup_steps": 10,
        **EMBEDDED,
    },
    "nano": {
        "pool_size": 60000,
        "suite": "nano",
        "model": "nano_cnn",
        "samples_seen": 60000,
        "warmup_steps": 94,
        **EMBEDDED,
    },
}


def test_every_scale_is_pinned():
    assert {name: asdict(scale) for name, scale in SCALES.items()} == {
        name: {"name": name, **fields} for name, fields in RECIPES.items()
    }


def test_steps_are_the_samples_seen_over_the_batch_rounded_up():
    assert {name: scale.steps for name, scale in SCALES.items()} == {"pico": 100, "nano": 938}


def test_a_scale_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SCALES["nano"].batch_size = 1


def test_an_unknown_scale_is_met_with_the_nearest():
    with pytest.raises(KeyError, match=r"unknown scale 'nanoo'. Did you mean 'nano'?"):
        get_scale("nanoo")
