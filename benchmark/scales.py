"""Scales: the fixed training recipes. A number here is part of the benchmark; changing one raises `recipe`.

A recipe cannot be changed from the command line; a test pins every field. A custom scale is a
YAML or JSON file (`scale=my_scale.yaml`): it names the scale it departs from (`base:`) and what is different; `model:`
may be the path, from there, of an open_clip configuration (JSON). Its results say that they are not comparable.

DataComp's scales take their numbers from three places:
- scale_configs.py of DataComp's repository (arXiv 2304.14108): model, batch size, learning rate, warm-up, samples
  seen, xlarge's beta2, and the flags with which it always calls open_clip: gradient checkpointing, resampled shards,
  automatic mixed precision (bfloat16 at xlarge), five checkpoints;
- open_clip's defaults, which those flags leave as they are: AdamW with betas .9 and .98 and eps 1e-6 for ViTs
  (params.py, after Radford et al. 2021), weight decay .2, no gradient clipping, cosine to zero (scheduler.py), random
  crops of 90 to 100 % of the area (transform.py), OpenAI's mean and standard deviation (constants.py);
- open_clip's loader (data.py): shards drawn with replacement, a shuffle buffer of 5,000 samples in each of 4 workers a
  GPU. With 1,024 samples of a batch on a GPU that is 20,000 samples in buffers for every 1,024 of the batch: in
  `window_blocks`, two blocks of 10,000, what a shard holds, for every 1,024.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.files import Json, digest, read_json, sha256_of
from benchmark.runtime.names import nearest_name


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, drawn from (seed, position) only.

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
    precision: str  # "fp32", "amp" (float16, losses scaled) or "amp_bf16"
    grad_checkpointing: bool

    augmentation: Augmentation
    mean: tuple[float, float, float]  # of pixel values in [0, 1]
    std: tuple[float, float, float]

    with_replacement: bool  # blocks drawn again each time instead of epoch by epoch
    block_size: int  # consecutive samples of the pool that stay together
    window_blocks: int  # blocks shuffled together
    spread_repeats: bool  # move a sample's copies out of one batch where that is possible

    num_checkpoints: int  # kept at even parts of the budget
    threads: int | None  # CPU threads of a rank; the sums of floats depend on them
    device: str  # what the recipe's reference runs used: "cpu" or "cuda"
    is_embedded: bool  # `winnow pool build` draws its pool

    base: str | None = None  # of a custom scale: the scale that it departs from

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps."""
        return -(-self.samples_seen // self.batch_size)

    @property
    def kept_steps(self) -> list[int]:
        """Return the steps after which a checkpoint is kept, at even parts of the budget; the last is the end."""
        return sorted({-(-self.steps * part // self.num_checkpoints) for part in range(1, self.num_checkpoints + 1)})

    @property
    def is_comparable(self) -> bool:
        """Tell whether its results may be compared with others': not those of a custom scale."""
        return self.base is None

    @property
    def pool_scale(self) -> str:
        """Return the name of the scale whose pool it uses."""
        return self.base or self.name

    def as_json(self) -> dict[str, Json]:
        """Return every field, for records."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.base is None:
            del values["base"]
        return values

    @property
    def hash(self) -> str:
        """Return the sha256 of all fields."""
        return digest(self.as_json())

    @property
    def identity(self) -> dict[str, Json]:
        """Return what records say of the recipe."""
        known = {"scale": self.name, "version": self.recipe, "hash": self.hash}
        return known if self.is_comparable else {**known, "comparable": False}


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


SMALL = Scale(
    name="small",
    recipe=1,
    pool_size=12_800_000,
    suite="datacomp",
    model="ViT-B-32",
    image_size=224,
    samples_seen=12_800_000,
    batch_size=4096,
    optimizer="adamw",
    learning_rate=5e-4,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.2,
    warmup_steps=500,
    schedule="cosine",
    grad_clip_norm=None,
    precision="amp",
    grad_checkpointing=True,
    augmentation=Augmentation("random_resized_crop", area=(0.9, 1.0)),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    with_replacement=True,
    block_size=10_000,
    window_blocks=8,
    spread_repeats=False,
    num_checkpoints=5,
    threads=None,
    device="cuda",
    is_embedded=False,
)

# On any of these pools, to see that everything works.
DEBUG = replace(SMALL, name="debug", samples_seen=128_000, batch_size=1024, learning_rate=1e-4, window_blocks=2)
MEDIUM = replace(SMALL, name="medium", pool_size=128_000_000, samples_seen=128_000_000)
LARGE = replace(
    SMALL,
    name="large",
    pool_size=1_280_000_000,
    samples_seen=1_280_000_000,
    model="ViT-B-16",
    batch_size=8192,
    window_blocks=16,
)
XLARGE = replace(
    SMALL,
    name="xlarge",
    pool_size=12_800_000_000,
    samples_seen=12_800_000_000,
    model="ViT-L-14",
    batch_size=90_112,
    learning_rate=1e-3,
    betas=(0.9, 0.95),
    warmup_steps=10_000,
    precision="amp_bf16",
    window_blocks=176,
)

# Ours: one GPU, a tenth of small's samples, any real pool of that many. Sampling is that of the embedded scales (every
# sample once before any comes twice, copies kept apart), a tenth of the steps warms up.
MICRO = replace(
    SMALL,
    name="micro",
    pool_size=1_280_000,
    samples_seen=1_280_000,
    batch_size=1024,
    warmup_steps=125,
    precision="amp_bf16",
    grad_checkpointing=False,
    with_replacement=False,
    block_size=1000,
    window_blocks=100,
    spread_repeats=True,
    num_checkpoints=1,
)

SCALES: dict[str, Scale] = {scale.name: scale for scale in (PICO, NANO, MICRO, DEBUG, SMALL, MEDIUM, LARGE, XLARGE)}

# Of custom scales: where the open_clip configuration of a model lies, by the name that says what is in it.
MODEL_FILES: dict[str, Path] = {}

MAX_WINDOW_BLOCKS = 1_000_000  # one window then holds everything
CUSTOM_SUFFIXES = (".yaml", ".yml", ".json")
CHOICES = {
    "optimizer": ("adamw",),
    "schedule": ("cosine",),
    "precision": ("fp32", "amp", "amp_bf16"),
    "device": ("cpu", "cuda"),
}
FIXED = ("name", "recipe", "pool_size", "suite", "is_embedded")  # what a custom scale has from its base


def get_scale(name: str) -> Scale:
    """Look a scale up by its name, or read the file of a custom scale; raises KeyError with the nearest name."""
    if name.endswith(CUSTOM_SUFFIXES):
        return read_scale(Path(name).expanduser())
    if name not in SCALES:
        raise UnknownNameError(
            f"unknown scale {name!r}.{nearest_name(name, SCALES)} Scales: {', '.join(SCALES)}; or the path of a file "
            "of your own, such as my_scale.yaml.",
            code="unknown-scale",
        )
    return SCALES[name]


def read_scale(path: Path) -> Scale:
    """Read a custom scale: `base: <scale>` and the fields that differ. Raises ValueError for what is not one."""
    if not path.is_file():
        raise NotFoundError(f"there is no scale file {path}", code="scale-not-found")
    try:
        given = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}", code="scale-invalid") from error
    if not isinstance(given, dict) or not isinstance(given.get("base"), str) or given["base"] not in SCALES:
        raise UserError(
            f"{path} must name the scale that it departs from, base: {', '.join(SCALES)}", code="scale-invalid"
        )
    base = SCALES[given.pop("base")]
    if path.stem in SCALES:
        raise UserError(f"{path} has the name of a scale of the benchmark; give the file another", code="scale-invalid")
    known = [field.name for field in fields(Scale) if field.name not in (*FIXED, "base")]
    for key in given:
        if key not in known:
            raise UserError(
                f"{path}: a scale has no {key!r} to set.{nearest_name(str(key), known)} {', '.join(known)}",
                code="scale-invalid",
            )
    values = _checked(path, base, given)
    if str(values.get("model", "")).endswith(".json"):
        values["model"] = own_model(path.parent / values["model"])
    return replace(base, name=path.stem, recipe=0, base=base.name, **values)


def own_model(path: Path) -> str:
    """Note where the configuration of a custom model lies; return its name, with a hash of what is in it.

    The hash covers the vocabulary that it names (`tokenizer_kwargs.bpe_path`, from the configuration's folder).
    """
    if not path.is_file():
        raise NotFoundError(f"there is no model configuration {path}", code="model-not-found")
    config = read_json(path)
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise UserError(
            f"{path} is not an open_clip configuration: it needs embed_dim, vision_cfg and text_cfg", code="model-unfit"
        )
    hashes = [sha256_of(path)]
    vocabulary = (config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if vocabulary is not None:
        if not (path.parent / vocabulary).is_file():
            raise NotFoundError(f"{path}: there is no vocabulary {path.parent / vocabulary}", code="model-not-found")
        hashes.append(sha256_of(path.parent / vocabulary))
    name = f"{path.stem}-{digest(hashes)[:12]}"
    MODEL_FILES[name] = path
    return name


def _checked(path: Path, base: Scale, given: dict[str, Any]) -> dict[str, Any]:
    """Validate the values of a custom scale against the types of the fields, and against what can work."""
    from pydantic import TypeAdapter, ValidationError

    if isinstance(given.get("augmentation"), dict):
        odd = set(given["augmentation"]) - {field.name for field in fields(Augmentation)}
        if odd:
            raise UserError(f"{path}: augmentation has no {', '.join(sorted(map(repr, odd)))}", code="scale-invalid")
    try:
        scale = TypeAdapter(Scale).validate_python({**asdict(base), **given})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['input']!r}: {first['msg']}", code="scale-invalid") from error
    wrong = [
        f"{name} is {value!r}, not one of {', '.join(CHOICES[name])}"
        for name, value in asdict(scale).items()
        if name in CHOICES and value not in CHOICES[name]
    ]
    for name in ("image_size", "samples_seen", "batch_size", "block_size", "window_blocks", "num_checkpoints"):
        if getattr(scale, name) < 1:
            wrong.append(f"{name} is {getattr(scale, name)}, less than 1")
    for name in ("learning_rate", "weight_decay", "warmup_steps"):
        if getattr(scale, name) < 0:
            wrong.append(f"{name} is {getattr(scale, name)}, less than 0")
    for name in ("learning_rate", "weight_decay", "eps", "grad_clip_norm", "betas", "mean", "std"):
        value = getattr(scale, name)
        if not all(math.isfinite(number or 0) for number in (value if isinstance(value, tuple) else (value,))):
            wrong.append(f"{name} is {value}, not finite")
    wrong += [
        f"{name} is {value}, not a number"
        for name, value in given.items()
        if isinstance(value, bool) and not isinstance(getattr(base, name), bool)
    ]
    if scale.eps <= 0 or (scale.grad_clip_norm or 1) <= 0 or not all(0 <= beta < 1 for beta in scale.betas):
        wrong.append(
            f"eps {scale.eps} and grad_clip_norm {scale.grad_clip_norm} must be above 0, betas {scale.betas} from 0 to "
            "below 1"
        )
    if scale.grad_clip_norm == 0:
        wrong.append("grad_clip_norm is 0, and nothing would be learned; null does not clip")
    if scale.window_blocks > MAX_WINDOW_BLOCKS:
        wrong.append(f"window_blocks is {scale.window_blocks}, more than {MAX_WINDOW_BLOCKS}")
    if scale.augmentation.pixels < 0:
        wrong.append(f"augmentation.pixels is {scale.augmentation.pixels}, less than 0")
    if scale.threads is not None and scale.threads < 1:
        wrong.append(f"threads is {scale.threads}, less than 1")
    if scale.augmentation.kind not in ("shift", "random_resized_crop"):
        wrong.append(f"augmentation.kind is {scale.augmentation.kind!r}, not shift or random_resized_crop")
    if not 0 < scale.augmentation.area[0] <= scale.augmentation.area[1] <= 1:
        wrong.append(f"augmentation.area is {scale.augmentation.area}, not two shares in order")
    if not all(value > 0 for value in scale.std):
        wrong.append(f"std is {scale.std}, not above 0")
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}", code="scale-invalid")
    return {name: getattr(scale, name) for name in given}
