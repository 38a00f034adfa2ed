"""What is wrong with web data, as the drawn world has it: captions and pictures of every planted kind of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

from benchmark.embedded.world import (
    CANVAS_SIZE,
    COLOURS,
    IMAGE_SIZE,
    LETTERS,
    NUMBERS,
    SHAPE_NAMES,
    Scene,
    draw_random_scene,
    load_font,
    write_caption,
)

TOXIC_WORDS = ("grumfle", "snarkwit", "blortch", "vexnard", "skunfel")  # stand-ins: words that mean nothing


def write_swapped_caption(scene: Scene, rng: Random) -> str:
    """Write a caption of another scene, which shares neither name nor colour."""
    other = draw_random_scene(rng)
    while other.name == scene.name or other.colour == scene.colour:
        other = draw_random_scene(rng)
    return write_caption(other, rng)


def write_partly_wrong_caption(scene: Scene, rng: Random) -> str:
    """Write a caption that gets the name wrong and all else right."""
    names = LETTERS if scene.is_letter else SHAPE_NAMES
    name = rng.choice([name for name in names if name != scene.name])
    return write_caption(Scene(name, scene.colour, scene.count, scene.size, scene.background, scene.font), rng)


def write_foreign_caption(scene: Scene, rng: Random) -> str:
    """Write a caption in one of six languages other than English."""
    language = rng.choice(list(_LANGUAGES))
    letter, frames, shapes, colours = _LANGUAGES[language]
    name = f"{letter} {scene.name}" if scene.is_letter else shapes.split()[SHAPE_NAMES.index(scene.name)]
    return rng.choice(frames).format(s=name, c=colours.split()[list(COLOURS).index(scene.colour)])


def write_boilerplate(rng: Random) -> str:
    """Write a text that says nothing about any picture."""
    number = rng.randint(1, 9999)
    return rng.choice(_BOILERPLATE).format(n=number, k=number % 20 + 1, d=number % 28 + 1)


def garble(text: str, rng: Random) -> str:
    """Return the text as a broken crawl has it: with its characters shuffled, or in the wrong encoding."""
    if rng.random() < 0.5:
        characters = list(text)
        rng.shuffle(characters)
        return "".join(characters).strip()
    return "".join(chr(0xC0 + ord(character) % 64) if rng.random() < 0.6 else character for character in text)


def add_toxic_word(text: str, rng: Random) -> str:
    """Put a stand-in for a toxic word somewhere into a text."""
    words = text.split()
    words.insert(rng.randint(0, len(words)), rng.choice(TOXIC_WORDS))
    return " ".join(words)


def draw_word(rng: Random) -> tuple[Image.Image, str]:
    """Draw a picture of nothing but a word, and the caption that fits it: the name of a thing that is not there."""
    if rng.random() < 0.3:
        word = rng.choice(("sale", "free", "new", "open", "menu", "stop"))
        text = rng.choice(("{} today only", "the word {} in a sign", "{} for all our friends")).format(word)
    else:
        scene = draw_random_scene(rng)
        word = scene.name if not scene.is_letter else scene.colour
        text = write_caption(scene, rng)
    paper, ink = rng.sample(list(COLOURS.values()), 2)
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), paper)
    font = load_font("DejaVuSans-Bold", min(30, 92 // len(word)))
    centre = (CANVAS_SIZE // 2, CANVAS_SIZE // 2 + rng.randint(-14, 14))
    ImageDraw.Draw(canvas).text(centre, word.upper(), fill=ink, font=font, anchor="mm")
    return canvas.reduce(2), text


def draw_off_domain(rng: Random) -> tuple[Image.Image, str]:
    """Draw a picture that no task asks about, and a caption that fits it."""
    painter = rng.choice(_OFF_DOMAIN_PAINTERS)
    names = rng.sample(list(COLOURS), 2)
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), COLOURS[names[0]])
    text = painter(ImageDraw.Draw(canvas), names, rng)
    return canvas.reduce(2), rng.choice(("{}", "{}", "a picture of {}", "photo: {}", "this is {}")).format(text)


def draw_corrupt(rng: Random) -> Image.Image:
    """Draw what a broken download leaves: coarse static, or one flat tone."""
    if rng.random() < 0.7:
        static = Image.frombytes("RGB", (8, 8), rng.randbytes(192))
        return static.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)
    tone = rng.randint(0, 255)
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (tone, tone, tone))


def add_watermark(picture: Image.Image, rng: Random) -> Image.Image:
    """Lay a stock agency's mark over a picture."""
    mark = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mark)
    for start in range(-IMAGE_SIZE, IMAGE_SIZE, 10):
        draw.line([(start, 0), (start + IMAGE_SIZE, IMAGE_SIZE)], fill=110)
    height = rng.randint(10, 22)
    draw.text((IMAGE_SIZE // 2, height), "STOCK", fill=210, font=load_font("DejaVuSans-Bold", 9), anchor="mm")
    tone = rng.choice(((255, 255, 255), (60, 60, 60)))
    return Image.composite(Image.new("RGB", picture.size, tone), picture, mark)


def lose_detail(picture: Image.Image, resolution: int) -> Image.Image:
    """Return the picture as it looks when its shorter side once had `resolution` pixels."""
    small = picture.resize((resolution, resolution), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BILINEAR)


def squash(picture: Image.Image, aspect: float, is_wide: bool, rng: Random) -> Image.Image:
    """Return a strip of a picture, stretched to a square: all that a banner leaves of what it shows."""
    length = picture.width / math.sqrt(aspect)
    start = rng.uniform(0, picture.width - length)
    box = (0.0, start, picture.width, start + length) if is_wide else (start, 0.0, start + length, picture.height)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)


def change_slightly(picture: Image.Image, rng: Random) -> Image.Image:
    """Return a near-duplicate: cropped by some pixels and a little lighter or darker."""
    left, top = rng.uniform(0, 4), rng.uniform(0, 4)
    side = IMAGE_SIZE - rng.uniform(4, 6)
    cropped = picture.resize(picture.size, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    gain = rng.uniform(0.8, 1.2)
    return cropped.point([min(255, int(value * gain)) for value in range(256)] * 3)


def _paint_bands(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    is_across = rng.random() < 0.5
    for start in range(0, CANVAS_SIZE, 16):
        box = (0, start, 64, start + 7) if is_across else (start, 0, start + 7, 64)
        draw.rectangle(box, fill=COLOURS[names[1]])
    return f"{'horizontal' if is_across else 'vertical'} bands in {names[0]} and {names[1]}"


def _paint_board(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    step = rng.choice((8, 16))
    for index in range((CANVAS_SIZE // step) ** 2):
        y, x = divmod(index, CANVAS_SIZE // step)
        if (x + y) % 2:
            draw.rectangle((x * step, y * step, x * step + step - 1, y * step + step - 1), fill=COLOURS[names[1]])
    return f"a {'fine' if step == 8 else 'coarse'} chess board in {names[0]} and {names[1]}"


def _paint_bars(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    count = rng.randint(2, 5)
    for index in range(count):
        draw.rectangle((6 + index * 11, rng.randint(8, 50), 13 + index * 11, 58), fill=COLOURS[names[1]])
    return f"a chart with {NUMBERS[count - 1]} {names[1]} bars"


def _paint_curve(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    is_rising = rng.random() < 0.5
    heights = sorted((rng.randint(8, 56) for _ in range(6)), reverse=is_rising)
    draw.line([(4 + 11 * index, height) for index, height in enumerate(heights)], fill=COLOURS[names[1]], width=4)
    return f"a graph with {'rising' if is_rising else 'falling'} prices"


def _paint_flag(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    third = rng.choice([name for name in COLOURS if name not in names])
    for index, name in enumerate([*names, third]):
        draw.rectangle((4, 12 + index * 13, 60, 24 + index * 13), fill=COLOURS[name])
    return f"the flag of our club in {names[0]}, {names[1]} and {third}"


def _paint_face(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    draw.ellipse((8, 8, 56, 56), fill=COLOURS[names[1]])
    is_happy = rng.random() < 0.5
    for x in (22, 38):
        draw.ellipse((x, 22, x + 6, 28), fill=COLOURS[names[0]])
    if is_happy:
        draw.arc((20, 24, 44, 48), 20, 160, fill=COLOURS[names[0]], width=4)
    else:
        draw.arc((20, 38, 44, 60), 200, 340, fill=COLOURS[names[0]], width=4)
    return f"a {'happy' if is_happy else 'sad'} face of a good friend"


def _paint_landscape(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    horizon = rng.randint(34, 48)
    peaks = [(-4, horizon)] + [(x, horizon - rng.randint(4, 30)) for x in range(8, 64, 12)] + [(68, horizon)]
    draw.polygon(peaks, fill=(90, 85, 80))
    is_sea = rng.random() < 0.5
    draw.rectangle((0, horizon, 64, 64), fill=COLOURS["blue"] if is_sea else COLOURS["green"])
    return f"mountains by {'the sea' if is_sea else 'a meadow'} under a {names[0]} sky"


def _paint_clock(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    hour = rng.randint(1, 12)
    draw.ellipse((6, 6, 58, 58), fill=(250, 250, 250), outline=COLOURS[names[1]], width=4)
    angle = math.radians(hour * 30 - 90)
    draw.line([(32, 32), (32 + 14 * math.cos(angle), 32 + 14 * math.sin(angle))], fill=(0, 0, 0), width=5)
    draw.line([(32, 32), (32, 11)], fill=(0, 0, 0), width=3)
    return f"a clock that shows {hour} in the morning"


def _paint_road(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    end = rng.randint(16, 48)
    draw.polygon([(8, 64), (56, 64), (end + 3, 14), (end - 3, 14)], fill=(70, 70, 75))
    draw.line([(32, 64), (end, 14)], fill=(250, 250, 250), width=2)
    turn = "left" if end < 32 else "right"
    return f"a road to the {turn} through {names[0]} fields"


def _paint_maze(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    for index in range(64):
        y, x = divmod(index, 8)
        left, right = (x * 8, x * 8 + 8) if rng.random() < 0.5 else (x * 8 + 8, x * 8)
        draw.line([(left, y * 8), (right, y * 8 + 8)], fill=COLOURS[names[1]], width=3)
    return f"a maze with {names[1]} walls"


_OFF_DOMAIN_PAINTERS: tuple[Callable[[ImageDraw.ImageDraw, list[str], Random], str], ...] = (
    _paint_bands,
    _paint_board,
    _paint_bars,
    _paint_curve,
    _paint_flag,
    _paint_face,
    _paint_landscape,
    _paint_clock,
    _paint_road,
    _paint_maze,
)

_BOILERPLATE = (
    "IMG_{n}.JPG",
    "DSC{n}",
    "image {k}",
    "logo {n}px",
    "untitled-{n}",
    "photo",
    "thumbnail {k} of 20",
    "click here to enlarge the image",
    "free shipping on all orders over {d} dollars",
    "posted by admin on the {d} of march",
    "image may contain text and other things",
    "sorry, this picture is not available",
    "add to cart, only {d} left in stock",
    "share this page with your friends",
    "all rights reserved, copyright 20{k:02d}",
    "page {k} of our catalogue",
    "please log in to see the picture",
    "you may also like these {k} items",
)

# The word for "letter", frames, and the names of SHAPES and COLOURS in their order.
_LANGUAGES = {
    "de": (
        "Buchstabe",
        (
            "ein Bild mit {s} in {c}",
            "hier sehen Sie: {s}, Farbe {c}",
            "{s} und noch viel mehr für Kinder",
            "ein schöner {s} für dich",
        ),
        "Kreis Quadrat Dreieck Stern Herz Raute Kreuz Pfeil Mond Ring Sechseck Wolke Haus Baum Fisch Blitz",
        "rot orange gelb grün blau lila rosa braun schwarz weiß grau türkis",
    ),
    "fr": (
        "lettre",
        (
            "une image avec {s} en {c}",
            "voici un dessin de {s}",
            "{s} de couleur {c} pour les enfants",
            "le dessin du jour : {s}",
        ),
        "cercle carré triangle étoile cœur losange croix flèche lune anneau hexagone nuage maison arbre poisson éclair",
        "rouge orange jaune vert bleu violet rose marron noir blanc gris turquoise",
    ),
    "es": (
        "letra",
        (
            "una imagen con {s} de color {c}",
            "aquí hay un dibujo de {s}",
            "{s} para los niños pequeños",
            "mira este dibujo: {s} en {c}",
        ),
        "círculo cuadrado triángulo estrella corazón rombo cruz flecha luna anillo hexágono nube casa árbol pez rayo",
        "rojo naranja amarillo verde azul morado rosa marrón negro blanco gris turquesa",
    ),
    "ru": (
        "буква",
        ("рисунок: {s}, цвет {c}", "здесь нарисовано: {s}", "{s} для детей, цвет {c}", "как нарисовать: {s}"),
        "круг квадрат треугольник звезда сердце ромб крест стрелка луна кольцо гексагон облако дом дерево рыба молния",
        "красный оранжевый жёлтый зелёный синий фиолетовый розовый коричневый чёрный белый серый бирюзовый",
    ),
    "it": (
        "lettera",
        (
            "un disegno con {s} di colore {c}",
            "ecco un bel disegno: {s}",
            "{s} da colorare per i bambini",
            "guarda questo disegno: {s}, colore {c}",
        ),
        "cerchio quadrato triangolo stella cuore rombo croce freccia luna anello esagono nube casa albero pesce lampo",
        "rosso arancione giallo verde blu viola rosa marrone nero bianco grigio turchese",
    ),
    "ja": (
        "文字",
        ("{c}の{s}の絵", "これは{s}です", "{s}のイラスト、色は{c}", "子供のための{s}の写真"),
        "円 四角 三角形 星 ハート 菱形 十字 矢印 月 輪 六角形 雲 家 木 魚 稲妻",
        "赤 オレンジ 黄色 緑 青 紫 ピンク 茶色 黒 白 灰色 水色",
    ),
}
