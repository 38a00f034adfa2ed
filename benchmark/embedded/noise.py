"""What is wrong with web data, as the synthetic world has it: captions and pictures of every planted kind of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from benchmark.embedded.captions import write_caption
from benchmark.embedded.pictograms import PICTOGRAMS, VEHICLES, glyphs_of, other_concepts
from benchmark.embedded.pictures import draw_empty, draw_picture, load_font
from benchmark.embedded.shapes import SHAPE_NAMES
from benchmark.embedded.world import (
    CANVAS_SIZE,
    COLOURS,
    DIGITS,
    IMAGE_SIZE,
    LETTERS,
    POOL_WORLD,
    TEXTURES,
    Scene,
    World,
    draw_random_scene,
    random_background,
    random_size,
)

OTHER_PICTOGRAM_SHARE = 0.6  # of what is off domain; the rest is charts, flags, faces, landscapes
MAX_LETTERS = 7  # of a word in a picture
TOXIC_WORDS = ("grumfle", "snarkwit", "blortch", "vexnard", "skunfel")  # stand-ins: words that mean nothing


def write_swapped_caption(scene: Scene, rng: Random) -> str:
    """Write a caption of another scene, which shares neither name nor colour."""
    other = draw_random_scene(rng)
    while other.name == scene.name or other.colour == scene.colour:
        other = draw_random_scene(rng)
    return write_caption(other, rng)


def write_partly_wrong_caption(scene: Scene, rng: Random) -> str:
    """Write a caption that gets the name wrong and all else right."""
    names = {
        "shape": SHAPE_NAMES,
        "letter": tuple(LETTERS),
        "digit": DIGITS,
        "pictogram": PICTOGRAMS + VEHICLES,
        "texture": TEXTURES,
    }[scene.kind]
    return write_caption(replace(scene, name=rng.choice([name for name in names if name != scene.name])), rng)


def write_foreign_caption(scene: Scene, rng: Random) -> str:
    """Write a caption in a language other than English; of shapes and letters some languages have the words."""
    if scene.kind not in ("shape", "letter") or rng.random() < 0.3:
        return rng.choice(_FOREIGN_SENTENCES[rng.choice(list(_FOREIGN_SENTENCES))]).format(n=rng.randint(2, 40))
    letter, frames, shapes, colours = _LANGUAGES[rng.choice(list(_LANGUAGES))]
    is_letter = scene.kind == "letter"
    name = f"{letter} {scene.name}" if is_letter else shapes.split()[SHAPE_NAMES.index(scene.name)]
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


def draw_word(rng: Random, world: World = POOL_WORLD) -> tuple[Image.Image, str]:
    """Draw a picture of nothing but a word, and the caption that fits it: the name of a thing that is not there."""
    if rng.random() < 0.3:
        word = rng.choice(("sale", "free", "new", "open", "menu", "stop"))
        text = rng.choice(("{} today only", "the word {} in a sign", "{} for all our friends")).format(word)
    else:
        word, text = _name_something(rng, world)
    paper, ink = _two_tones(rng)
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), paper)
    _write_line(canvas, word, CANVAS_SIZE // 2 + rng.randint(-14, 14), ink)
    return canvas.reduce(2), text


def draw_word_over(rng: Random, world: World = POOL_WORLD) -> tuple[Image.Image, str]:
    """Draw one thing with the name of another written on it, and a caption of the other (T-MARS, Sec. 3)."""
    shown = draw_picture(draw_random_scene(rng, world), rng)
    word, text = _name_something(rng, world)
    paper, ink = _two_tones(rng)
    canvas = shown.resize((CANVAS_SIZE, CANVAS_SIZE), Image.Resampling.BICUBIC)
    middle = rng.choice((13, CANVAS_SIZE - 13))
    ImageDraw.Draw(canvas).rectangle((0, middle - 12, CANVAS_SIZE, middle + 11), fill=paper)
    _write_line(canvas, word, middle, ink)
    return canvas.reduce(2), text


def _name_something(rng: Random, world: World) -> tuple[str, str]:
    """Return the name of something, short enough to be read in a picture, and a caption of it."""
    while True:
        scene = draw_random_scene(rng, world)
        word = scene.colour if scene.kind == "letter" else scene.name
        if len(word) <= MAX_LETTERS:
            return word, write_caption(scene, rng, world)


def _two_tones(rng: Random) -> list[tuple[int, int, int]]:
    """Draw two colours that can be told apart."""
    while True:
        tones = rng.sample(list(COLOURS.values()), 2)
        if sum(abs(a - b) for a, b in zip(*tones, strict=True)) >= 150:
            return tones


def _write_line(canvas: Image.Image, word: str, middle: int, ink: tuple[int, int, int]) -> None:
    font = load_font("DejaVuSans-Bold", min(24, 92 // len(word)))
    ImageDraw.Draw(canvas).text((CANVAS_SIZE // 2, middle), word.upper(), fill=ink, font=font, anchor="mm")


def draw_off_domain(rng: Random, world: World = POOL_WORLD) -> tuple[Image.Image, str]:
    """Draw a picture that no task asks about, and a caption that fits it."""
    if rng.random() < OTHER_PICTOGRAM_SHARE:
        name = rng.choice(other_concepts())
        glyph = rng.choice(glyphs_of(name, world.designers))
        scene = Scene(
            "pictogram", name, rng.choice(list(COLOURS)), size=random_size(rng), background=random_background(rng)
        )
        return draw_picture(replace(scene, glyph=glyph), rng), write_caption(scene, rng, world)
    painter = rng.choice(_OFF_DOMAIN_PAINTERS)
    names = rng.sample(list(COLOURS), 2)
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), COLOURS[names[0]])
    text = painter(ImageDraw.Draw(canvas), names, rng)
    if rng.random() < 0.7:
        text = text.replace(names[0], "bright").replace(names[1], "dark")  # not every caption names colours
    return canvas.reduce(2), rng.choice(("{}", "{}", "a photo of {}", "photo: {}", "this is {}")).format(text)


def draw_nothing(rng: Random) -> tuple[Image.Image, str]:
    """Draw an empty scene, and a caption of its colour; a gradient's, a third of them, is another colour."""
    colour = rng.choice(list(COLOURS))
    picture = draw_empty(colour, rng.choice(("plain", "gradient", "noise")), rng)
    return picture, rng.choice(("a {} background", "nothing but {}", "{} wallpaper image", "only {} here")).format(
        colour
    )


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


def blur(picture: Image.Image, rng: Random) -> Image.Image:
    """Return a picture out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(2.2, 4)))


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


def _paint_bars(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    count = rng.randint(2, 5)
    for index in range(count):
        draw.rectangle((6 + index * 11, rng.randint(8, 50), 13 + index * 11, 58), fill=COLOURS[names[1]])
    return f"a chart with {count} {names[1]} columns"


def _paint_curve(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    is_rising = rng.random() < 0.5
    heights = sorted((rng.randint(8, 56) for _ in range(6)), reverse=is_rising)
    draw.line([(4 + 11 * index, height) for index, height in enumerate(heights)], fill=COLOURS[names[1]], width=4)
    return f"a graph with {'rising' if is_rising else 'falling'} prices"


def _paint_flag(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    third = rng.choice([name for name in COLOURS if name not in names])
    for index, name in enumerate([*names, third]):
        draw.rectangle((4, 12 + index * 13, 60, 24 + index * 13), fill=COLOURS[name])
    return f"the colours of our team: {names[0]}, {names[1]} and {third}"


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
    return f"a view by {'the sea' if is_sea else 'a meadow'} on a {names[0]} evening"


def _paint_clock(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    hour = rng.randint(1, 12)
    draw.ellipse((6, 6, 58, 58), fill=(250, 250, 250), outline=COLOURS[names[1]], width=4)
    angle = math.radians(hour * 30 - 90)
    draw.line([(32, 32), (32 + 14 * math.cos(angle), 32 + 14 * math.sin(angle))], fill=(0, 0, 0), width=5)
    draw.line([(32, 32), (32, 11)], fill=(0, 0, 0), width=3)
    return f"it is {hour} in the morning"


def _paint_road(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    end = rng.randint(16, 48)
    draw.polygon([(8, 64), (56, 64), (end + 3, 14), (end - 3, 14)], fill=(70, 70, 75))
    draw.line([(32, 64), (end, 14)], fill=(250, 250, 250), width=2)
    turn = "left" if end < 32 else "right"
    return f"the way to the {turn} through {names[0]} fields"


def _paint_maze(draw: ImageDraw.ImageDraw, names: list[str], rng: Random) -> str:
    for index in range(64):
        y, x = divmod(index, 8)
        left, right = (x * 8, x * 8 + 8) if rng.random() < 0.5 else (x * 8 + 8, x * 8)
        draw.line([(left, y * 8), (right, y * 8 + 8)], fill=COLOURS[names[1]], width=3)
    return f"lost in a {names[1]} garden"


_OFF_DOMAIN_PAINTERS: tuple[Callable[[ImageDraw.ImageDraw, list[str], Random], str], ...] = (
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

_FOREIGN_SENTENCES = {
    "de": (
        "Schöne Bilder für das Kinderzimmer, {n} Stück",
        "Jetzt günstig im Online-Shop bestellen",
        "Aufkleber für Auto und Fahrrad, wetterfest",
        "Kostenlose Vorlage zum Ausdrucken und Ausmalen",
        "Das neue Logo unserer Firma seit {n} Jahren",
        "Wandbild im Format {n} mal {n} Zentimeter",
    ),
    "fr": (
        "Autocollant pour la voiture, lot de {n} pièces",
        "Une belle image pour la chambre des enfants",
        "Livraison gratuite à partir de {n} euros",
        "Le nouveau logo de notre petite entreprise",
        "Coloriage gratuit à imprimer pour la maternelle",
        "Voici la photo que nous avons prise hier",
    ),
    "es": (
        "Pegatina para el coche, paquete de {n} unidades",
        "Un bonito dibujo para colorear y pintar",
        "Envío gratis en pedidos de más de {n} euros",
        "El nuevo logotipo de nuestra empresa familiar",
        "La mejor imagen para tu teléfono móvil",
        "Así se ve después de {n} días de trabajo",
    ),
    "pt": (
        "Adesivo para carro, pacote com {n} unidades",
        "Um desenho bonito para as crianças pintarem",
        "Compre agora com frete grátis e desconto",
        "A nova imagem da nossa pequena empresa",
        "Como fazer um cartaz para a escola",
    ),
    "nl": (
        "Mooie stickers voor de kinderkamer, {n} stuks",
        "Gratis kleurplaat om uit te printen voor kinderen",
        "Het nieuwe logo van ons bedrijf sinds {n} jaar",
        "Bestel vandaag nog en betaal later",
    ),
    "pl": (
        "Naklejka na samochód, zestaw {n} sztuk",
        "Piękny obrazek do pokoju dziecięcego",
        "Darmowa kolorowanka do wydrukowania dla dzieci",
        "Nowe logo naszej firmy od {n} lat",
    ),
    "tr": (
        "Çocuk odası için güzel bir resim",
        "Araba için çıkartma, {n} adet",
        "Ücretsiz kargo ile hemen satın alın",
        "Şirketimizin yeni logosu burada",
    ),
    "ru": (
        "Красивая картинка для детской комнаты",
        "Наклейка на автомобиль, набор из {n} штук",
        "Бесплатная раскраска для детей, скачать",
        "Новый логотип нашей компании",
        "Купить недорого с доставкой за {n} дня",
    ),
    "uk": ("Гарна картинка для дитячої кімнати", "Наклейка на авто, набір з {n} штук", "Новий логотип нашої компанії"),
    "ar": ("صورة جميلة لغرفة الأطفال", "ملصق للسيارة مجموعة من {n} قطع", "الشعار الجديد لشركتنا الصغيرة"),
    "hi": ("बच्चों के कमरे के लिए सुंदर चित्र", "कार के लिए स्टिकर, {n} का सेट", "हमारी कंपनी का नया लोगो"),
    "zh": ("适合儿童房间的漂亮图片", "汽车贴纸 一套{n}张", "免费下载可打印的图片素材", "我们公司的新标志设计"),
    "ja": ("子供部屋のためのかわいい絵です", "車用ステッカー {n}枚セット", "無料でダウンロードできる素材です"),
    "ko": ("아이들 방을 위한 예쁜 그림입니다", "자동차 스티커 {n}장 세트", "무료로 다운로드할 수 있는 이미지"),
    "vi": (
        "Hình ảnh đẹp cho phòng trẻ em",
        "Nhãn dán cho xe hơi, bộ {n} chiếc",
        "Biểu tượng mới của công ty chúng tôi",
    ),
}
