"""English captions of scenes, which leave attributes out."""

from __future__ import annotations

from random import Random

from benchmark.embedded.pictograms import CATEGORY_OF
from benchmark.embedded.world import DIGITS, NUMBERS, POOL_WORLD, Scene, World


def write_caption(scene: Scene, rng: Random, world: World | None = None) -> str:
    """Write an English caption of at least three words, in one of several styles, that leaves attributes out."""
    frames = (world or POOL_WORLD).frames
    colour = f"{scene.colour} " if rng.random() < 0.25 else ""
    size = "" if rng.random() < 0.85 else ("big " if scene.size == "large" else "little ")
    ending = f" on a {_GROUND_WORDS[scene.background]} background" if rng.random() < 0.1 else ""
    noun = scene.name
    style = scene.kind
    if scene.kind == "texture":
        size = ending = ""
    elif scene.kind == "pictogram":
        if rng.random() < 0.15:
            noun = f"{noun} {rng.choice(frames['icon words'])}"
        if scene.name in CATEGORY_OF and rng.random() < 0.5:
            style = "category"
    elif scene.kind == "shape":
        noun = rng.choice(("shape", "object")) if rng.random() < 0.1 else noun
        if scene.place and rng.random() < 0.5:
            ending = rng.choice(frames["places"]).format(scene.place) + ending
        if scene.count > 1:
            number = NUMBERS[scene.count - 1] if rng.random() < 0.85 else "some"
            noun, size, style = plural(noun), f"{number} {size}", "shapes"
    phrase = f"{size}{colour}{noun}"
    values = {
        "p": phrase,
        "a": _article(phrase),
        "n": scene.name,
        "c": colour.strip() or rng.choice(frames["no colour"]),
        "k": CATEGORY_OF.get(scene.name, ""),
        "d": str(DIGITS.index(scene.name)) if scene.kind == "digit" else "",
        "s": size + colour,
    }
    text = " ".join((rng.choice(frames[style]).format(**values) + ending).split())
    return text if text.count(" ") >= 2 else f"{rng.choice(frames['longer'])} {text}"


def write_full_caption(scene: Scene, rng: Random) -> str:
    """Write a caption that names everything a caption ever names."""
    size = "big" if scene.size == "large" else "little"
    ground = "" if scene.kind == "texture" else f" on a {_GROUND_WORDS[scene.background]} background"
    match scene.kind:
        case "letter":
            return f"a {size} {scene.colour} letter {scene.name}{ground}"
        case "digit":
            return f"the {scene.colour} handwritten digit {scene.name}{ground}"
        case "texture":
            return f"a {scene.colour} {scene.name} pattern"
        case "pictogram":
            return f"a {size} {scene.colour} {scene.name} icon{ground}"
    what = scene.name if scene.count == 1 else plural(scene.name)
    number = NUMBERS[scene.count - 1] if scene.count > 1 else "a"
    place = f" at the {scene.place}" if scene.place else ""
    frame = rng.choice(("{}", "a photo of {}"))
    return frame.format(f"{number} {size} {scene.colour} {what}{place}{ground}")


def plural(noun: str) -> str:
    """Return the plural of a noun of this world."""
    if noun in ("fish",):
        return noun
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


_GROUND_WORDS = {
    "plain": "plain",
    "gradient": "shaded",
    "stripes": "striped",
    "dots": "dotted",
    "noise": "grainy",
    "clutter": "messy",
}


def _article(phrase: str) -> str:
    if phrase.endswith("s") and not phrase.endswith(("ss", "bus", "compass")):
        return "some"
    return "an" if phrase[0] in "aeiou" else "a"
