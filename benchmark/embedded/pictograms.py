"""Named pictograms from icon fonts: the same concept drawn by several designers, read from qtawesome's font files.

The files are read where the package lies; qtawesome itself, which needs Qt, is never imported.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from benchmark.runtime.errors import UserError


@dataclass(frozen=True)
class Designer:
    """An icon font: its file, its table of names, and the suffixes that mark the variants of one glyph."""

    files: tuple[str, ...]  # without extension; the table of names has `-charmap` before the version
    variants: tuple[str, ...]


DESIGNERS = {
    "awesome": Designer(("fontawesome6-solid-webfont-6.7.2", "fontawesome6-regular-webfont-6.7.2"), ("",)),
    "material": Designer(("materialdesignicons6-webfont-6.9.96",), ("", "-outline")),
    "phosphor": Designer(("phosphor-1.3.0",), ("", "-fill", "-bold", "-light")),
    "remix": Designer(("remixicon-2.5.0",), ("-fill", "-line")),
}

# Concept: its glyphs in Font Awesome, Material, Phosphor (the reference models' designer) and Remix (in no pool).
# Phosphor lacks some: the reference models do not know those.
_CONCEPTS = """
anchor      | anchor                 | anchor              | anchor               | anchor
basketball  | basketball             | basketball          | basketball           | basketball
bell        | bell                   | bell                | bell bell-simple     | notification
book        | book                   | book                | book book-bookmark   | book book-2
briefcase   | briefcase              | briefcase           | briefcase            | briefcase
bug         | bug                    | bug ladybug         | bug bug-beetle       | bug
cake        | cake-candles           | cake cake-variant   | cake                 | cake cake-2
calculator  | calculator             | calculator          | calculator           | calculator
camera      | camera                 | camera              | camera               | camera
compass     | compass                | compass             | compass              | compass
crown       | crown                  | crown               | crown crown-simple   | vip-crown vip-crown-2
cup         | mug-hot mug-saucer     | coffee              | coffee               | cup
eye         | eye                    | eye                 | eye                  | eye
fingerprint | fingerprint            | fingerprint         | fingerprint          | fingerprint
fire        | fire fire-flame-curved | fire                | fire fire-simple     | fire
flag        | flag                   | flag                | flag                 | flag
flask       | flask                  | flask               | flask                | flask
ghost       | ghost                  | ghost               | ghost                | ghost ghost-2
gift        | gift                   | gift                | gift                 | gift
globe       | earth-americas globe   | earth web           | globe                | earth global
hammer      | hammer                 | hammer              |                      | hammer
headphones  | headphones             | headphones          | headphones           | headphone
key         | key                    | key                 | key                  | key key-2
leaf        | leaf                   | leaf                | leaf                 | leaf
lightbulb   | lightbulb              | lightbulb           | lightbulb            | lightbulb
lock        | lock                   | lock                | lock lock-simple     | lock lock-2
microphone  | microphone             | microphone          | microphone           | mic
newspaper   | newspaper              | newspaper           | newspaper            | newspaper
palette     | palette                | palette             | palette              | palette
phone       | phone                  | phone               | phone                | phone
plant       | seedling               | sprout              |                      | plant seedling
plug        | plug                   | power-plug          |                      | plug plug-2
robot       | robot                  | robot               | robot                | robot
scales      | scale-balanced         | scale-balance       | scales               | scales scales-3
scissors    | scissors               | content-cut         | scissors             | scissors scissors-2
shirt       | shirt                  | tshirt-crew         | t-shirt              | t-shirt
skull       | skull                  | skull               |                      | skull skull-2
sun         | sun                    | weather-sunny       | sun                  | sun
trophy      | trophy                 | trophy              | trophy               | trophy
umbrella    | umbrella               | umbrella            | umbrella             | umbrella
"""
_VEHICLES = """
airplane    | plane                  | airplane            | airplane             | plane
bicycle     | bicycle                | bike bicycle        | bicycle              | bike
bus         | bus bus-simple         | bus                 | bus                  | bus bus-2
car         | car car-side           | car car-hatchback   | car car-simple       | car roadster
motorcycle  | motorcycle             | motorbike           |                      | motorbike
rocket      | rocket                 | rocket              | rocket rocket-launch | rocket rocket-2
ship        | ship ferry             | ferry               | boat                 | ship ship-2
taxi        | taxi                   | taxi                |                      | taxi
train       | train train-subway     | train subway        | train train-simple   | train subway
truck       | truck                  | truck               | truck                | truck
"""
CATEGORIES = {  # what captions sometimes add, and association asks for
    "tool": ("hammer", "scissors", "plug", "key", "scales", "compass", "lightbulb"),
    "nature": ("bug", "leaf", "plant", "sun", "fire"),
    "office": ("book", "briefcase", "calculator", "newspaper", "phone"),
    "party": ("cake", "gift", "crown", "trophy", "basketball"),
    "music": ("headphones", "microphone", "bell"),
}
POOL_DESIGNERS = ("awesome", "material")
REFERENCE_DESIGNERS = ("phosphor",)
UNSEEN_DESIGNERS = ("remix",)

_SKIPPED = re.compile(  # signs for the parts of an interface, which no caption describes
    r"arrow|caret|chevron|align|text|currency|gender|sort|folder|file|calendar|clipboard|circle|square|dots|plus|minus"
    r"|battery|wifi|signal|check|cell|clock|star|heart|moon|cloud|house|home|fish|tree|diamond|triangle|hexagon|number"
    r"|selection|radio|toggle|record|stop|pause|play|skip|rewind|forward|-|^x$|^at$"
)

# Other concepts that ImageNet-21k names: with them in the pool, text-based filtering would keep far more than it does
# of CommonPool, where few captions name a class.
_OF_IMAGENET = re.compile(
    r"^(backspace|bank|baseball|bed|bird|bookmark|cat|cube|disc|dog|door|eraser|factory|flashlight|flower|football"
    r"|gauge|headset|horse|keyboard|knife|lamp|laptop|magnet|monitor|mouse|nut|octagon|paperclip|pen|pencil|pizza"
    r"|shield|shower|sword|television|thermometer|timer|tray|voicemail|volleyball|wall|wallet|watch|wheelchair)$"
)


@dataclass(frozen=True)
class Glyph:
    """One pictogram of one designer."""

    file: str  # of the font
    character: str


def _read_table(text: str) -> dict[str, tuple[str, ...]]:
    rows = (line.split("|") for line in text.strip().splitlines())
    return {name.strip(): tuple(cell.strip() for cell in cells) for name, *cells in rows}


_NAMES = _read_table(_CONCEPTS) | _read_table(_VEHICLES)
PICTOGRAMS = tuple(_read_table(_CONCEPTS))
VEHICLES = tuple(_read_table(_VEHICLES))
CATEGORY_OF = {name: category for category, names in CATEGORIES.items() for name in names} | dict.fromkeys(
    VEHICLES, "vehicle"
)


@lru_cache
def glyphs_of(concept: str, designers: tuple[str, ...]) -> tuple[Glyph, ...]:
    """Return the drawings of a concept by these designers, all variants; none where they have not drawn it."""
    found = []
    for designer in designers:
        cells = _NAMES.get(concept)
        names = [concept] if cells is None else cells[list(DESIGNERS).index(designer)].split()
        table = _characters(designer)
        spelt = [name + variant for name in names for variant in DESIGNERS[designer].variants]
        found += [glyph for name in spelt for glyph in table.get(name, ())]
    return tuple(found)


@lru_cache
def other_concepts() -> tuple[str, ...]:
    """Return what no task asks about: names that Material and Phosphor share, none of ImageNet's, by the alphabet."""
    shared = set(_characters("material")) & set(_characters("phosphor"))
    ours = set(_NAMES) | {glyph for cells in _NAMES.values() for cell in cells for glyph in cell.split()}
    return tuple(sorted(each for each in shared - ours if not (_SKIPPED.search(each) or _OF_IMAGENET.search(each))))


@lru_cache(maxsize=256)
def load_icon_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """Load an icon font at a size in pixels."""
    return ImageFont.truetype(_fonts_dir() / f"{file}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _characters(designer: str) -> dict[str, tuple[Glyph, ...]]:
    table: dict[str, tuple[Glyph, ...]] = {}
    for file in DESIGNERS[designer].files:
        stem, _, version = file.rpartition("-")
        names = json.loads((_fonts_dir() / f"{stem}-charmap-{version}.json").read_text())
        for name, code in names.items():
            table[name] = (*table.get(name, ()), Glyph(file, chr(int(code, 16))))
    return table


@lru_cache
def _fonts_dir() -> Path:
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the embedded pool draws pictograms from qtawesome's fonts: pip install qtawesome", code="package-missing"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "fonts"
