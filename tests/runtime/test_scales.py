"""The recipes are frozen: a changed number voids every result and must raise `recipe`."""

from dataclasses import FrozenInstanceError, asdict

import open_clip
import pytest
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import AugmentationCfg
from open_clip_train.data import _SAMPLE_SHUFFLE_SIZE
from open_clip_train.params import parse_args

from benchmark.scales import SCALES, get_scale
from tests.conftest import user_error

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
    "base": None,
}
# What every one of DataComp's scales shares; the sources stand in scales.py.
DATACOMP = {
    "recipe": 1,
    "suite": "datacomp",
    "image_size": 224,
    "optimizer": "adamw",
    "eps": 1e-06,
    "weight_decay": 0.2,
    "schedule": "cosine",
    "grad_clip_norm": None,
    "grad_checkpointing": True,
    "augmentation": {"kind": "random_resized_crop", "pixels": 0, "area": (0.9, 1.0)},
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "with_replacement": True,
    "block_size": 10000,
    "spread_repeats": False,
    "num_checkpoints": 5,
    "threads": None,
    "device": "cuda",
    "is_embedded": False,
    "base": None,
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
    "micro": {
        **DATACOMP,
        "pool_size": 1280000,
        "model": "ViT-B-32",
        "samples_seen": 1280000,
        "batch_size": 1024,
        "learning_rate": 0.0005,
        "betas": (0.9, 0.98),
        "warmup_steps": 125,
        "precision": "amp_bf16",
        "grad_checkpointing": False,
        "with_replacement": False,
        "block_size": 1000,
        "window_blocks": 100,
        "spread_repeats": True,
        "num_checkpoints": 1,
    },
    "debug": {
        **DATACOMP,
        "pool_size": 12800000,
        "model": "ViT-B-32",
        "samples_seen": 128000,
        "batch_size": 1024,
        "learning_rate": 0.0001,
        "betas": (0.9, 0.98),
        "warmup_steps": 500,
        "precision": "amp",
        "window_blocks": 2,
    },
    "small": {
        **DATACOMP,
        "pool_size": 12800000,
        "model": "ViT-B-32",
        "samples_seen": 12800000,
        "batch_size": 4096,
        "learning_rate": 0.0005,
        "betas": (0.9, 0.98),
        "warmup_steps": 500,
        "precision": "amp",
        "window_blocks": 8,
    },
    "medium": {
        **DATACOMP,
        "pool_size": 128000000,
        "model": "ViT-B-32",
        "samples_seen": 128000000,
        "batch_size": 4096,
        "learning_rate": 0.0005,
        "betas": (0.9, 0.98),
        "warmup_steps": 500,
        "precision": "amp",
        "window_blocks": 8,
    },
    "large": {
        **DATACOMP,
        "pool_size": 1280000000,
        "model": "ViT-B-16",
        "samples_seen": 1280000000,
        "batch_size": 8192,
        "learning_rate": 0.0005,
        "betas": (0.9, 0.98),
        "warmup_steps": 500,
        "precision": "amp",
        "window_blocks": 16,
    },
    "xlarge": {
        **DATACOMP,
        "pool_size": 12800000000,
        "model": "ViT-L-14",
        "samples_seen": 12800000000,
        "batch_size": 90112,
        "learning_rate": 0.001,
        "betas": (0.9, 0.95),
        "warmup_steps": 10000,
        "precision": "amp_bf16",
        "window_blocks": 176,
    },
}


def test_every_scale_is_pinned():
    assert {name: asdict(scale) for name, scale in SCALES.items()} == {
        name: {"name": name, **fields} for name, fields in RECIPES.items()
    }


def test_hashes_are_those_that_results_carry():
    """If one changes, every result of that scale is void: raise `recipe`."""
    assert {name: scale.hash[:8] for name, scale in SCALES.items()} == {
        "pico": "9b5488a0",
        "nano": "f608e2ff",
        "micro": "75277b3e",
        "debug": "f22971b8",
        "small": "31be1439",
        "medium": "fd663c38",
        "large": "590ec29d",
        "xlarge": "5e273c4b",
    }


def test_steps_are_the_samples_seen_over_the_batch_rounded_up():
    assert {name: scale.steps for name, scale in SCALES.items()} == {
        "pico": 100,
        "nano": 938,
        "micro": 1250,
        "debug": 125,
        "small": 3125,
        "medium": 31250,
        "large": 156250,
        "xlarge": 142046,
    }


def test_checkpoints_are_kept_at_even_parts_of_the_budget():
    assert SCALES["small"].kept_steps == [625, 1250, 1875, 2500, 3125]
    assert SCALES["xlarge"].kept_steps == [28410, 56819, 85228, 113637, 142046]
    assert SCALES["nano"].kept_steps == [938]


@pytest.mark.parametrize("name", [name for name, scale in SCALES.items() if not scale.is_embedded])
def test_what_is_open_clips_is_what_open_clip_has(name):
    scale = SCALES[name]
    given = parse_args(["--model", scale.model])
    assert scale.weight_decay == given.wd and scale.eps == given.eps
    assert scale.betas == (given.beta1, given.beta2 if name != "xlarge" else 0.95)
    assert scale.grad_clip_norm == given.grad_clip_norm and scale.schedule == given.lr_scheduler
    assert scale.augmentation.area == AugmentationCfg().scale
    assert (scale.mean, scale.std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    assert open_clip.get_model_config(scale.model)["vision_cfg"]["image_size"] == scale.image_size
    if scale.with_replacement:
        # Buffers of 5,000 samples in 4 workers for every 1,024 samples of a batch; shards hold 10,000.
        samples = _SAMPLE_SHUFFLE_SIZE * given.workers * max(1, scale.batch_size // 1024)
        assert scale.window_blocks * scale.block_size == samples


def test_a_scale_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SCALES["nano"].batch_size = 1


def test_an_unknown_scale_is_met_with_the_nearest():
    with user_error("unknown-scale", match="'nanoo'.*'nano'"):
        get_scale("nanoo")


def custom(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_a_scale_of_ones_own_is_a_file(tmp_path):
    scale = get_scale(custom(tmp_path, "base: small\nsamples_seen: 40960\nlearning_rate: 1e-3\nbetas: [0.9, 0.95]\n"))
    assert (scale.name, scale.base, scale.pool_scale, scale.recipe) == ("mine", "small", "small", 0)
    assert (scale.samples_seen, scale.learning_rate, scale.betas, scale.steps) == (40960, 1e-3, (0.9, 0.95), 10)
    assert scale.model == "ViT-B-32" and not scale.is_comparable
    assert scale.identity == {"scale": "mine", "version": 0, "hash": scale.hash, "comparable": False}
    assert "comparable" not in SCALES["small"].identity
    other = get_scale(custom(tmp_path, "base: small\nsamples_seen: 40961\n", "mine.json"))
    assert other.hash != scale.hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("samples_seen: 5", "must name the scale that it departs from, base: pico, nano"),
        ("base: tiny", "must name the scale that it departs from"),
        ("base: [small]", "must name the scale that it departs from"),
        ("- base", "must name the scale"),
        ("base: [small", "is not valid YAML"),
        ("base: nano\nbatchsize: 5", "a scale has no 'batchsize' to set. Did you mean 'batch_size'?"),
        ("base: nano\nis_embedded: false", "a scale has no 'is_embedded' to set"),
        ("base: nano\nbatch_size: many", "batch_size: 'many'"),
        ("base: nano\nbatch_size: 0", "batch_size is 0, less than 1"),
        ("base: nano\nlearning_rate: .nan", "learning_rate is nan, not finite"),
        ("base: nano\nprecision: fp8", "precision is 'fp8', not one of fp32, amp, amp_bf16"),
        ("base: nano\nbetas: [0.9]", "betas"),
        ("base: nano\nbetas: [1.5, 2]", "betas (1.5, 2.0) from 0 to below 1"),
        ("base: nano\neps: -1", "eps -1.0"),
        ("base: nano\ngrad_clip_norm: -1", "grad_clip_norm -1.0 must be above 0"),
        ("base: nano\ngrad_clip_norm: 0", "grad_clip_norm is 0, and nothing would be learned"),
        ("base: nano\nstd: [.inf, 1, 1]", "std is (inf, 1.0, 1.0), not finite"),
        ("base: nano\nbatch_size: true", "batch_size is True, not a number"),
        ("base: nano\nsuite: nonsense", "a scale has no 'suite' to set"),
        ("base: nano\nwindow_blocks: 100000000000", "more than 1000000"),
        ("base: nano\naugmentation: {kind: shift, pixels: -1}", "augmentation.pixels is -1"),
        ("base: nano\naugmentation: {kind: flip}", "augmentation.kind is 'flip'"),
        ("base: nano\naugmentation: {kind: shift, by: 1}", "augmentation has no 'by'"),
        ("base: nano\naugmentation: {kind: shift, area: [0.9, 0.5]}", "augmentation.area is (0.9, 0.5)"),
    ],
)
def test_what_is_no_scale_is_refused_in_a_sentence(tmp_path, text, said):
    with user_error("scale-invalid", match=r"mine\.yaml") as error:
        get_scale(custom(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_has_no_scales_name(tmp_path):
    with user_error("scale-invalid"):
        get_scale(custom(tmp_path, "base: nano", "nano.yaml"))
    with user_error("scale-not-found"):
        get_scale(str(tmp_path / "absent.yaml"))
