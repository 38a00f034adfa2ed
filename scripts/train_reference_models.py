"""Train the embedded pool's reference models (stand-ins for OpenAI's CLIP L/14 and B/32) and print what they know.

    python scripts/train_reference_models.py [--out DIR]

They learn from drawings of their own, which no pool and no evaluation set has: another designer's pictograms, other
fonts and handwriting, fewer kinds, other words. A third of what they see is aligned but useless (other pictures, words,
nothing at all), so that their similarity cannot tell it from what is useful.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from benchmark.embedded import noise
from benchmark.embedded.captions import write_caption
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.world import (
    COLOURS,
    IMAGE_SIZE,
    POOL_WORLD,
    REFERENCE_WORLD,
    Scene,
    World,
    draw_random_scene,
    with_pictogram,
)
from benchmark.models.build import build_model, build_tokenizer
from benchmark.models.pixels import normalise
from benchmark.models.reference import ARCHITECTURE, REFERENCE_MODELS, reference_path
from benchmark.runtime.files import write_bytes
from benchmark.scales import SCALES
from benchmark.training.data import shift_images
from benchmark.training.step import make_optimizer, train_step

SEED = 7001  # of the drawings; their keys begin otherwise than those of pools and evaluation sets
NUM_PAIRS = 80_000
SAMPLES_SEEN = {"l14": 240_000, "b32": 80_000}
LEARNING_RATE = 1e-3
OFF_DOMAIN_SHARE, WORD_SHARE, WORD_OVER_SHARE, EMPTY_SHARE = 0.2, 0.07, 0.09, 0.03
LOW_RESOLUTION_SHARE, WATERMARK_SHARE = 0.25, 0.08  # so that similarity does not see these either


def main() -> None:
    """Generate, train, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=reference_path("l14").parent, help="folder of the weights")
    arguments = parser.parse_args()
    torch.set_num_threads(SCALES["nano"].threads or 1)
    pictures, texts = draw_pairs("train", NUM_PAIRS)
    tokens = build_tokenizer(ARCHITECTURE)(texts)
    for name in REFERENCE_MODELS:
        start = time.monotonic()
        model = train(pictures, tokens, SAMPLES_SEEN[name], seed=REFERENCE_MODELS.index(name))
        print(f"{name}: {SAMPLES_SEEN[name]} samples seen in {time.monotonic() - start:.0f} s; {describe(model)}")
        weights = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
        about = {
            "script": "scripts/train_reference_models.py",
            "architecture": ARCHITECTURE,
            "drawings_seed": str(SEED),
            "model_seed": str(REFERENCE_MODELS.index(name)),
            "num_pairs": str(NUM_PAIRS),
            "samples_seen": str(SAMPLES_SEEN[name]),
        }
        write_bytes(arguments.out / reference_path(name).name, save(weights, metadata=about))


def draw_pairs(part: str, count: int) -> tuple[np.ndarray, list[str]]:
    """Generate the pairs of a part: pictures (count, 32, 32, 3), uint8, and their captions, all of them aligned."""
    pictures = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    texts = []
    for index in tqdm(range(count), desc=f"generate {part}", disable=None):
        rng = Random(f"winnow/reference/{SEED}/{part}/{index}")
        picture, text = _draw_pair(rng)
        if rng.random() < LOW_RESOLUTION_SHARE:
            picture = noise.lose_detail(picture, rng.randint(9, 28))
        if rng.random() < WATERMARK_SHARE:
            picture = noise.add_watermark(picture, rng)
        pictures[index] = np.asarray(picture)
        texts.append(text)
    return pictures, texts


def train(pictures: np.ndarray, tokens: Tensor, samples_seen: int, seed: int) -> CLIP:
    """Train a model with the recipe of scale `nano` at half its learning rate, epoch by epoch."""
    nano = SCALES["nano"]
    scale = replace(
        nano,
        samples_seen=samples_seen,
        warmup_steps=samples_seen // nano.batch_size // 10,
        learning_rate=LEARNING_RATE,
    )
    model = build_model(ARCHITECTURE, seed).train()
    assert isinstance(model, CLIP)
    optimizer = make_optimizer(model, scale)
    rng = np.random.default_rng(seed)
    epochs = -(-scale.steps * scale.batch_size // len(tokens))
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(epochs)])
    for step in tqdm(range(scale.steps), desc="train", disable=None):
        positions = np.arange(step * scale.batch_size, (step + 1) * scale.batch_size)
        rows = order[positions]
        images = shift_images(pictures[rows], scale.augmentation.pixels, seed, positions)
        train_step(model, optimizer, torch.from_numpy(images), tokens[torch.from_numpy(rows)], scale, step)
    model.eval()
    return model


@torch.inference_mode()
def describe(model: CLIP) -> str:
    """Return held-out accuracies, and median similarity of aligned and of swapped pairs."""
    scale, tokenizer = SCALES["nano"], build_tokenizer(ARCHITECTURE)
    parts = []
    for world, whose in ((REFERENCE_WORLD, "own"), (POOL_WORLD, "the pool's")):
        for title, classes, template in (
            ("shapes", world.shapes, "a picture of a {}"),
            ("colours", tuple(COLOURS), "a {} shape"),
            ("letters", tuple(world.letters), "the letter {}"),
            ("pictograms", world.pictograms, "a {}"),
            ("patterns", world.textures, "a {} pattern"),
        ):
            labels = np.arange(400) % len(classes)
            pictures = np.stack(
                [_draw_class(world, title, classes[label], index) for index, label in enumerate(labels)]
            )
            images = model.encode_image(normalise(torch.from_numpy(pictures), scale), normalize=True)
            prompts = model.encode_text(tokenizer([template.format(name) for name in classes]), normalize=True)
            correct = (images @ prompts.T).argmax(dim=1).numpy() == labels  # (images, classes)
            parts.append(f"{whose} {title} {correct.mean():.2f}")
    pictures, texts = draw_pairs("test", 1000)
    images = model.encode_image(normalise(torch.from_numpy(pictures), scale), normalize=True)
    captions = model.encode_text(tokenizer(texts), normalize=True)
    aligned = (images * captions).sum(dim=1).median().item()
    swapped = (images * captions.roll(1, 0)).sum(dim=1).median().item()
    return ", ".join([*parts, f"median similarity {aligned:.2f} aligned, {swapped:.2f} swapped"])


def _draw_class(world: World, title: str, name: str, index: int) -> np.ndarray:
    """Draw a picture of a class, (32, 32, 3), uint8."""
    rng = Random(f"winnow/reference/{SEED}/test/{title}/{index}")
    colour = rng.choice(list(COLOURS))
    match title:
        case "shapes":
            scene = Scene("shape", name, colour)
        case "colours":
            scene = Scene("shape", rng.choice(world.shapes), name)
        case "letters":
            scene = Scene("letter", name, colour, font=rng.choice(world.fonts))
        case "pictograms":
            scene = with_pictogram(Scene("pictogram", "", colour), name, world.designers, rng)
        case _:
            scene = Scene("texture", name, colour)
    return np.asarray(draw_picture(scene, rng))


def _draw_pair(rng: Random) -> tuple[Image.Image, str]:
    shares = {
        noise.draw_off_domain: OFF_DOMAIN_SHARE,
        noise.draw_word: WORD_SHARE,
        noise.draw_word_over: WORD_OVER_SHARE,
    }
    place = rng.random()
    for draw, share in shares.items():
        if place < share:
            return draw(rng, REFERENCE_WORLD)
        place -= share
    if place < EMPTY_SHARE:
        return noise.draw_nothing(rng)
    scene = draw_random_scene(rng, REFERENCE_WORLD)
    return draw_picture(scene, rng), write_caption(scene, rng, REFERENCE_WORLD)


if __name__ == "__main__":
    main()
