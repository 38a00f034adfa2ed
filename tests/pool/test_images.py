"""Filters that see images: which rows they are handed, in which slices, and what becomes of rows without one."""

import io
from itertools import chain
from random import Random

import numpy as np
import pytest

from benchmark.cli.main import main
from benchmark.embedded.captions import write_caption
from benchmark.embedded.noise import draw_word
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.world import draw_random_scene
from benchmark.pool import images as images_module
from benchmark.pool.images import locate_images, read_images
from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import find_uids, format_uids, parse_uids, sort_uids
from benchmark.runtime.failures import EXIT_USER
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from tests.conftest import jpeg, loaded_plugin, members, uid, user_error, write_pool

PLUGIN = '''"""Filters over images made for tests."""

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter


@register_filter(columns=["width"], images=True, fraction=0.5)
def i_width(rows: pd.DataFrame, images: list[Image.Image], *, spoil: bool = False) -> list[float]:
    """Score by the image's width, which must be the row's."""
    assert [image.width for image in images] == rows["width"].tolist() and all(i.mode == "RGB" for i in images)
    widths = [float(image.width) for image in images]
    if spoil:
        for image in images:
            image.paste((0, 0, 0), (0, 0, image.width, image.height))
    return widths


@register_filter(images=True)
def i_bright(rows: pd.DataFrame, images: list[Image.Image]) -> list[bool]:
    """Keep what is not black."""
    return [max(image.getpixel((0, 0))) > 9 for image in images]


@register_filter(columns=["width"], features=["l14_img"], images=True)
def i_copies(rows: pd.DataFrame, features: dict[str, np.ndarray], images: list[Image.Image]) -> list[int]:
    """Give as many copies as the feature says."""
    assert features["l14_img"][:, 0].tolist() == [10 * image.width for image in images]
    return features["l14_img"][:, 1].astype(int).tolist()


@register_filter(images=True)
def i_raises(rows: pd.DataFrame, images: list[Image.Image]) -> list[bool]:
    """Fail."""
    raise ArithmeticError("no picture like this")
'''

BY_WIDTH = Rule("i_width", {"spoil": False}, Cut("fraction", 0.5))


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "see_images.py", PLUGIN) as path:
        yield path


def sample(number, image=None):
    """Return the members of a sample whose image is as wide as its number says."""
    return members(f"{number:09d}", number, image=jpeg(size=number) if image is None else image)


def make_pool(folder, *shards, tars, features=None):
    """Write a pool whose metadata shards hold these numbers as uids and widths, and the tars these samples."""
    columns = [{"uid": [uid(number) for number in numbers], "width": list(numbers)} for numbers in shards]
    write_pool(folder, *columns, features=features)
    for number, samples in enumerate(tars):
        write_tar(folder / "shards" / f"{number:08d}.tar", chain(*samples))
    return Pool(folder)


def kept(outcome):
    return [int(text, 16) for text in format_uids(outcome.subset.uids)]


@pytest.fixture
def pool(tmp_path):
    """Eight rows on two metadata shards, in another order than their images in two tars."""
    return make_pool(
        tmp_path / "pool", [18, 11, 15, 13], [17, 12, 16, 14],
        tars=[[sample(n) for n in (12, 18, 14, 16)], [sample(n) for n in (11, 17, 13, 15)]],
    )  # fmt: skip


def test_every_row_is_judged_by_its_own_image(pool, capsys):
    outcome = run_filters(pool, [BY_WIDTH])
    assert kept(outcome) == [15, 16, 17, 18]
    assert outcome.reports[0].missing == 0 and capsys.readouterr().err == ""


def test_images_are_read_in_the_order_of_the_tars_in_bounded_slices(pool, monkeypatch):
    first, second = locate_images(pool)
    assert [image.width for _, images, _ in read_images(first) for image in images] == [18, 11, 13, 15]
    assert [image.width for _, images, _ in read_images(second) for image in images] == [12, 14, 16, 17]
    monkeypatch.setattr(images_module, "SLICE_IMAGES", 3)
    assert [len(images) for _, images, _ in read_images(first)] == [3, 1]
    assert kept(run_filters(pool, [BY_WIDTH])) == [15, 16, 17, 18]
    monkeypatch.setattr(images_module, "SLICE_PIXELS", 18 * 18)
    assert [len(images) for _, images, _ in read_images(first)] == [1, 3, 0]


def test_rows_without_a_readable_image_are_missing_and_counted(tmp_path, capsys):
    pool = make_pool(
        tmp_path / "pool", [18, 17, 16, 15], [14, 13], [99],
        tars=[[sample(17), sample(16, b"\xff\xd8 broken"), sample(15), sample(14), sample(13, b"")]],
    )  # fmt: skip
    outcome = run_filters(pool, [BY_WIDTH, Rule("random", {"seed": 0}, Cut("fraction", 1.0))])
    assert kept(outcome) == [14, 15, 17]
    assert outcome.rows == 7 and outcome.reports[0].missing == 4
    told = capsys.readouterr().err
    assert "filter 'i_width': 2 of 7 rows have no image in the shards, 2 one that cannot be decoded" in told
    assert "4 rows were wanted but only 3 have a score" in told


def test_a_pool_without_any_readable_image_is_an_error(tmp_path):
    pool = make_pool(tmp_path / "pool", [18, 17], tars=[[sample(17, b"broken")]])
    with user_error("images-missing", match="'i_width'.*1 of 2.*1 "):
        run_filters(pool, [BY_WIDTH])


def test_a_pool_without_shards_is_refused_before_the_run(tmp_path, plugin, capsys):
    folder = write_pool(tmp_path / "pool", {"uid": [uid(1)], "width": [1]})
    arguments = [f"plugins={plugin}", "scale=pico", f"pool_dir={folder}", "filters=i_width", "exp_dir=" + str(tmp_path)]
    assert main(["filter", *arguments]) == EXIT_USER
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "filter 'i_width' needs the images, but there is no tar in" in told[0]


def test_rows_that_share_a_uid_see_the_same_image(tmp_path):
    columns = {"uid": [uid(5), uid(5), uid(12)], "width": [15, 15, 12]}
    write_pool(tmp_path / "pool", columns)
    first, again = members("a", 5, image=jpeg(size=15)), members("b", 5, image=jpeg(size=9))
    write_tar(tmp_path / "pool" / "shards" / "00000000.tar", chain(first, sample(12), again))
    outcome = run_filters(Pool(tmp_path / "pool"), [BY_WIDTH])
    assert kept(outcome) == [5, 5] and outcome.repeated_uids == 1


def test_within_only_its_rows_are_read(pool, capsys):
    within = Subset.of(parse_uids([uid(11), uid(12), uid(13)]))
    assert sum(len(images) for each in locate_images(pool, within) for _, images, _ in read_images(each)) == 3
    assert kept(run_filters(pool, [Rule("i_width", {"spoil": False}, Cut("fraction", 0.67))], within=within)) == [
        12,
        13,
    ]
    assert capsys.readouterr().err == ""


def test_a_filter_cannot_spoil_the_images_of_the_next(pool):
    spoiling = Rule("i_width", {"spoil": True}, Cut("fraction", 1.0))
    assert len(run_filters(pool, [spoiling, Rule("i_bright")]).subset) == 8


def test_features_come_with_the_images(tmp_path):
    features = {"l14_img": np.array([[180, 2], [110, 0], [150, 1]], dtype=np.float16)}
    pool = make_pool(
        tmp_path / "pool", [18, 11, 15], tars=[[sample(15), sample(11), sample(18)]], features=features
    )  # fmt: skip
    assert kept(run_filters(pool, [Rule("i_copies")])) == [15, 18, 18]


def test_a_failing_filter_is_named_with_its_line(pool):
    with user_error("strategy-failed", match=r"'i_raises'.*ArithmeticError.*see_images\.py:"):
        run_filters(pool, [Rule("i_raises")])


def test_the_function_must_take_images(strategies):
    from benchmark import register_filter

    def i_blind(rows): ...

    with user_error("strategy-invalid", match=r"def i_blind\(rows, images, \*"):
        register_filter(images=True)(i_blind)
    with user_error("strategy-invalid", match=r"def i_blind\(rows, features, images, \*"):
        register_filter(images=True, features=["x"])(i_blind)


def test_workers_give_the_same_bytes(tmp_path, plugin):
    """Also of a filter that encodes: its batches are other ones where the shards are other ones."""
    drawn = {}
    for number in range(40):
        rng = Random(number)
        scene = draw_random_scene(rng)
        picture, text = draw_word(rng) if number % 4 == 0 else (draw_picture(scene, rng), write_caption(scene, rng))
        file = io.BytesIO()
        picture.save(file, "PNG")
        drawn[number] = (text, members(f"{number:09d}", number, image=file.getvalue()))
    shards = [
        {"uid": [uid(n) for n in numbers], "text": [drawn[n][0] for n in numbers], "width": [32] * len(numbers)}
        for numbers in (range(25, -1, -1), range(26, 40))
    ]
    write_pool(tmp_path / "pool", *shards)
    write_tar(tmp_path / "pool" / "shards" / "00000000.tar", chain(*(drawn[number][1] for number in drawn)))
    masked = Rule("text_masked_clip", {"clip_model": "reference_l14", "checkpoint": None}, Cut("fraction", 0.3))
    rules = [Rule("i_width", {"spoil": True}, Cut("fraction", 1.0)), masked]
    for workers in (0, 2):
        outcome = run_filters(Pool(tmp_path / "pool"), rules, workers=workers, plugins=[str(plugin)])
        assert len(outcome.subset) == 12
        outcome.subset.write(tmp_path / f"{workers}.npy")
    assert (tmp_path / "0.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def test_a_subset_by_images_fits_the_same_images_alone(pool, plugin, tmp_path, capsys):
    def run(strategy, folder):
        code = main(
            ["filter", f"plugins={plugin}", "scale=pico", f"pool_dir={pool.dir}", f"filters={strategy}", folder]
        )
        return code, capsys.readouterr()

    first, blind = f"exp_dir={tmp_path / 'first'}", f"exp_dir={tmp_path / 'blind'}"
    assert run("i_width", first)[0] == run("random", blind)[0] == 0
    assert "filter: up to date" in run("i_width", first)[1].out
    write_tar(pool.dir / "shards" / "00000001.tar", sample(11))
    code, told = run("i_width", first)
    assert code == EXIT_USER and "was made with other settings" in told.err and "images is" in told.err
    assert "filter: up to date" in run("random", blind)[1].out


def test_find_uids_agrees_with_a_search_by_hand():
    rng = np.random.default_rng(0)
    known, asked = (
        parse_uids([f"{high:016x}{low:016x}" for high, low in rng.integers(0, 12, size=(count, 2))])
        for count in (60, 80)
    )
    known = sort_uids(known)
    spelt = format_uids(known)
    expected = [spelt.index(text) if text in spelt else -1 for text in format_uids(asked)]
    assert find_uids(asked, known).tolist() == expected and -1 in expected and max(expected) > 0
    assert find_uids(asked, known[:0]).tolist() == [-1] * 80 and find_uids(asked[:0], known).tolist() == []
