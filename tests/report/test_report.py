"""Reports: the numbers are those counted by hand, nothing of a stranger's gets through, and bytes repeat."""

import base64
import html
import io
import json
import os
import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from PIL import Image

from benchmark import registry
from benchmark.cli.main import main
from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import parse_uids
from benchmark.report import groups
from benchmark.report.rule_scores import FRACTIONS, kept_at_fractions
from benchmark.report.standing import task_standings
from benchmark.report.survey import survey_pool
from benchmark.runtime.failures import EXIT_USER
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from benchmark.selection.scoring import top_fraction
from leaderboard.board import BOARDS_DIR, read_board
from leaderboard.entries import Entry, PoolUsed, SubsetUsed, SuiteName, write_entry
from leaderboard.table import make_table
from tests.conftest import jpeg, members, uid, write_pool

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</bdi></figure>\x00\u202e' &amp; http:",
    "&lt;",
]
TAGS = {"!DOCTYPE", "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "dl", "dt", "dd", "div"}
TAGS |= {"table", "tr", "th", "td", "span", "i", "b", "br", "img", "figure", "figcaption", "bdi", "ul", "li"}
SCORES = [0.81, 0.72, 0.63, 0.54, 0.45, 0.36, 0.27, 0.18]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))  # where reports keep what strategies chose
    return tmp_path


@pytest.fixture(scope="module")
def reported(pico_pool, tmp_path_factory, strategies):
    """An experiment with two rules on the pico pool, and its report."""
    exp_dir = tmp_path_factory.mktemp("reported") / "exp"
    rules = ["filters=[basic,clip_score]", "filters.clip_score.fraction=0.6"]
    assert main(["filter", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={exp_dir}", *rules]) == 0
    assert main(["report", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={exp_dir}"]) == 0
    return exp_dir


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, strategies):
    """The page on the better half of the hostile pool."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile_pool(folder)
    half(folder / "pool", folder / "exp")
    return report(pool=folder / "pool", exp=folder / "exp")


def hostile_pool(folder):
    """Eight samples: 1 to 4 score highest; 4 and 5 have no image, 3 is no picture, 1 carries a comment."""
    captions = [*HOSTILE, *HOSTILE[:2], "one two three", None]
    columns = {
        "uid": [uid(n) for n in range(1, 9)],
        "text": captions,
        "clip_l14_similarity_score": SCORES,
        "original_width": [10, 60, 60, 300, 300, 300, 900, 900],
        "original_height": [900, 60, 60, 300, 300, 300, 900, 49],
    }
    pool = write_pool(folder / "pool", {k: v[:5] for k, v in columns.items()}, {k: v[5:] for k, v in columns.items()})
    buffer = io.BytesIO()
    Image.new("RGB", (300, 100), (0, 90, 0)).save(buffer, "JPEG", comment=b"<script>hidden</script>")
    images = {1: buffer.getvalue(), 3: b"<svg onload=alert(1)>"}
    there = [
        members(f"{n:09d}", n, image=images.get(n, jpeg()), text=captions[n - 1] or "") for n in (1, 2, 3, 6, 7, 8)
    ]
    write_tar(pool / "shards" / "00000000.tar", chain(*there))
    pd.DataFrame({"uid": columns["uid"][::-1], "odd": [True, False] * 4, "none": [False] * 8}).to_parquet(
        pool / "planted.parquet"
    )
    return pool


def report(*options, pool="pool", exp="exp"):
    assert main(["report", "scale=pico", f"pool_dir={pool}", f"exp_dir={exp}", *options]) == 0
    return (Path(exp) / "report" / "index.html").read_text()


def half(pool="pool", exp="exp"):
    rule = ["filters=clip_score", "filters.clip_score.fraction=0.5"]
    assert main(["filter", "scale=pico", f"pool_dir={pool}", f"exp_dir={exp}", *rule]) == 0


def tables(page):
    """Return every table's rows as lists of cell texts, by the heading before it."""
    found = {}
    for title, body in re.findall(
        r"<h[23]>([^<]*)</h[23]>(?:<p>[^<]*</p>)?\s*<div class=\"wide\">(.*?)</table>", page, re.S
    ):
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr.*?</tr>", body, re.S)[1:]]
        found[title.split(" (")[0]] = {row[0]: [html.unescape(cell) for cell in row[1:]] for row in rows}
    return found


def test_what_a_stranger_typed_comes_out_escaped(hostile):
    for caption in HOSTILE[:3]:
        shown = escape(caption).replace("\x00", "\ufffd")
        assert f"<bdi>{shown}</bdi>" in hostile
        assert caption not in hostile
    assert hostile.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 1
    assert (
        len(re.findall(r"</?bdi>", hostile)) == 2 * 6 and hostile.count("<figure>") == hostile.count("</figure>") == 6
    )


def test_the_page_fetches_nothing_and_runs_nothing(hostile, reported):
    for page in (hostile, (reported / "report" / "index.html").read_text()):
        tags = re.findall(r"<[^>]*>", page)
        assert all(re.fullmatch(r"[A-Za-z0-9+/]+=*", data) for data in re.findall(r";base64,([^\"]*)", page))
        assert {tag.split()[0].strip("</>") for tag in tags} <= TAGS
        sources = [tag for tag in tags if "src=" in tag]
        assert sources and all(re.search(r' src="data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+"', s) for s in sources)
        assert not [tag for tag in tags if re.search(r"href=|\son\w+=|https?:|url\(", tag)]
        assert "url(" not in page and "@import" not in page


def test_pictures_are_drawn_again_small_and_without_what_came_with_them(hostile):
    pictures = [base64.b64decode(text) for text in re.findall(r"data:image/jpeg;base64,([^\"]*)", hostile)]
    assert len(pictures) == 5
    assert not [data for data in pictures if b"hidden" in data or b"svg" in data]
    assert max(Image.open(io.BytesIO(data)).width for data in pictures) == 112
    assert hostile.count("cannot be decoded") == 1


def test_samples_without_an_image_are_counted(hostile):
    assert (
        "3 of 3 samples, drawn by a hash of the uid. Not shown, because the pool has no image of them: 1 row."
        in hostile
    )
    assert hostile.count("no image of them: 1 row.") == 2
    assert "8 rows, 6 samples present" in hostile


def test_numbers_of_the_small_pool_are_those_counted_by_hand(hostile):
    found = tables(hostile)
    assert found["Rule by rule"] == {"clip_score": ["4", "4", "4", "0", "50.0 %"]}
    numbers = {title: {label: cells[:2] for label, cells in rows.items()} for title, rows in found.items()}
    assert numbers["By planted kind"] == {"odd": ["4", "2"]}
    assert numbers["By original size"] == {
        "0 to 49": ["2", "1"],
        "50 to 99": ["2", "2"],
        "200 to 399": ["3", "1"],
        "800 and more": ["1", "0"],
    }
    assert numbers["By caption length"] == {
        "1": ["3", "2"],
        "3 to 4": ["4", "2"],
        "no caption": ["1", "0"],
    }
    assert numbers["By l14 similarity"]["0.50 to 0.55"] == ["1", "1"]
    assert numbers["By l14 similarity"]["0.45 to 0.50"] == ["1", "0"]


def test_numbers_of_the_embedded_pool_are_those_of_pandas(reported, pico_pool):
    found = tables((reported / "report" / "index.html").read_text())
    rows = pd.concat([pd.read_parquet(path) for path in sorted((pico_pool / "metadata").glob("*.parquet"))])
    chosen = {f"{high:016x}{low:016x}" for high, low in np.load(reported / "subset.npy").tolist()}
    rows = rows.assign(kept=rows["uid"].isin(chosen)).merge(pd.read_parquet(pico_pool / "planted.parquet"), on="uid")

    def agrees(title, label, chosen):
        expected = [f"{chosen.sum():,}", f"{(chosen & rows['kept']).sum():,}"]
        assert found[title][label][:2] == expected, (title, label)
        assert found[title][label][2] == f"{100 * rows['kept'][chosen].mean():.1f} %"

    for kind in ("is_clean", "swapped", "other_language", "duplicate"):
        agrees("By planted kind", kind, rows[kind])
    words = rows["text"].str.split().str.len()
    agrees("By caption length", "5 to 7", (words >= 5) & (words <= 7))
    side = rows[["original_width", "original_height"]].min(axis=1)
    agrees("By original size", "100 to 199", (side >= 100) & (side < 200))
    for arch in ("l14", "b32"):
        score = rows[f"clip_{arch}_similarity_score"]
        agrees(f"By {arch} similarity", "0.60 to 0.70", (score >= 0.6) & (score < 0.7))
    reports = json.loads((reported / "subset.json").read_text())["result"]["rules"]
    assert found["Rule by rule"] == {
        r["name"]: [f"{r[key]:,}" for key in ("kept", "dropped", "only_dropped", "no_verdict")]
        + [f"{r['dropped'] / len(rows):.1%}".replace("%", " %")]
        for r in reports
    }


def test_what_ties_decided_is_said_on_the_page_and_by_the_command(folder, capsys):
    pool = hostile_pool(folder)
    for path in sorted(pool.glob("metadata/*.parquet")):
        frame = pd.read_parquet(path)
        frame.assign(clip_l14_similarity_score=frame["clip_l14_similarity_score"] > 0.5).astype(
            {"clip_l14_similarity_score": "float32"}
        ).to_parquet(path)
    assert (
        main(["filter", "pool_dir=pool", "exp_dir=exp", "filters=clip_score", "filters.clip_score.fraction=0.25"]) == 0
    )
    assert "tied at the cut 4, the 2 smallest uids kept" in capsys.readouterr().out
    assert "At the cut of clip_score, 4 rows had the same score; it kept the 2 with the smallest uids." in report()


def test_overlaps_are_those_of_sets(reported, pico_pool):
    found = tables((reported / "report" / "index.html").read_text())["Overlap with the shipped strategies"]
    assert {"basic", "clip_score", "laion2b", "no_filter", "random"} <= set(found)
    own = set(np.load(reported / "subset.npy").tolist())
    for name in ("clip_score", "random"):
        assert main(["filter", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={name}", f"filters={name}"]) == 0
        assert found[name] == ["fraction 0.3", *overlap_cells(own, set(np.load(f"{name}/subset.npy").tolist()))]


def overlap_cells(own, other):
    counts = [f"{len(part):,}" for part in (other, own & other, own - other, other - own)]
    return [*counts, f"{len(own & other) / len(own | other):.3f}"]


def test_strategies_that_the_pool_cannot_run_are_named(hostile, reported):
    assert "Left out: planted_clean, a reference." in (reported / "report" / "index.html").read_text()
    assert "dedup, the pool lacks sha256" in hostile
    assert set(tables(hostile)["Overlap with the shipped strategies"]) >= {"clip_score", "no_filter"}


def test_the_jaccard_of_a_report_is_the_one_of_uids_that_subset_overlap_prints(folder, capsys):
    pool = write_pool(folder / "pool", {"uid": [uid(n) for n in range(8)]})
    copies = parse_uids([uid(n) for n in (0, 0, 0, 1)])  # kept three times and once
    Subset.of(copies).write(folder / "copies.npy")
    assert main(["filter", "scale=pico", f"pool_dir={pool}", "subset=copies.npy", "exp_dir=here/exp"]) == 0
    assert main(["filter", "scale=pico", f"pool_dir={pool}", "filters=no_filter", "exp_dir=here/all"]) == 0
    assert overlap_row("no_filter", "here/exp")[-1] == "0.250"  # 2 of 8 uids
    capsys.readouterr()
    assert main(["subset", "overlap", "here/exp/subset.npy", "here/all/subset.npy", "--format", "csv"]) == 0
    header, values = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert dict(zip(header, values, strict=True))["Jaccard of uids"] == "0.25"
    assert dict(zip(header, values, strict=True))["Jaccard of copies"] == "0.2"  # 2 of 10 copies
    assert "Jaccard of uids" in report(exp="here/exp") and "(Jaccard 0" not in report(exp="here/exp")


def pool_with_duplicates(folder):
    numbers = range(8)
    write_pool(folder / "pool", {"uid": [uid(n) for n in numbers], "sha256": [f"{n // 2:064x}" for n in numbers]})
    return ["filter", "scale=pico", "pool_dir=pool"]


def overlap_row(name, exp):
    return tables(report(exp=exp))["Overlap with the shipped strategies"][name]


def test_a_selector_is_not_run_but_its_experiment_beside_this_one_is_read(folder, capsys):
    """Known by pool, source and options; once reported on, also where no experiment stands beside."""
    choose = pool_with_duplicates(folder)
    assert main([*choose, "filters=random", "exp_dir=here/exp", "filters.random.fraction=0.5"]) == 0
    unknown = ["", "not known yet", "", "", "", ""]
    assert overlap_row("dedup", "here/exp") == unknown
    shutil.copytree("here/exp", "elsewhere/exp")
    assert main([*choose, "filters=[dedup,no_filter]", "exp_dir=here/both"]) == 0
    assert main([*choose, "filters=dedup", "exp_dir=here/seeded", "filters.dedup.seed=1"]) == 0
    capsys.readouterr()
    assert overlap_row("dedup", "here/exp") == unknown
    assert "up to date" in capsys.readouterr().out
    assert main([*choose, "filters=dedup", "exp_dir=here/selector"]) == 0
    own, other = (set(np.load(f"here/{name}/subset.npy").tolist()) for name in ("exp", "selector"))
    assert overlap_row("dedup", "here/exp") == ["", *overlap_cells(own, other)]
    assert "regenerated: compared changed" in capsys.readouterr().out

    assert overlap_row("dedup", "elsewhere/exp") == unknown
    report(exp="here/selector")
    assert overlap_row("dedup", "elsewhere/exp") == ["", *overlap_cells(own, other)]


def test_a_known_subset_that_was_changed_is_not_believed(folder):
    choose = pool_with_duplicates(folder)
    assert main([*choose, "filters=random", "exp_dir=here/exp"]) == 0
    assert main([*choose, "filters=dedup", "exp_dir=here/selector"]) == 0
    report(exp="here/selector")
    (kept,) = (folder / "cache" / "subsets").glob("dedup-*.npy")
    assert overlap_row("dedup", "here/exp")[1] == "4"
    for path in (Path("here/selector/subset.npy"), kept):
        np.save(path, np.load(path)[:-1])
    assert overlap_row("dedup", "here/exp")[1] == "not known yet"


def test_a_large_pool_is_compared_with_known_subsets_alone(folder, monkeypatch):
    monkeypatch.setattr("benchmark.report.overlaps.DIRECT_ROWS", 7)
    hostile_pool(folder)
    half()
    found = tables(report())["Overlap with the shipped strategies"]
    assert found["random"] == ["", "not known yet", "", "", "", ""]


def test_the_same_inputs_give_the_same_bytes(reported, pico_pool, folder):
    shutil.copytree(reported, "exp", ignore=shutil.ignore_patterns("report"))
    (folder / "elsewhere").symlink_to(pico_pool)
    report(pool="elsewhere")
    first = {path.name: path.read_bytes() for path in (reported / "report").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("exp/report").iterdir()} == first
    names = {"index.html", "report.json", "sheet-dropped.png", "fraction-clip_score-0.png"}
    names |= {
        "scores-clip_score.png",
        "scores-clip_b32_similarity_score.png",
        "kinds.png",
        "sheet-kept.png",
    }
    assert names <= set(first)


@pytest.mark.parametrize("part", ["metadata", "embeddings"])
def test_a_report_depends_on_what_is_in_the_pools_files_and_not_on_their_times(folder, part):
    """A pool that is drawn again or copied has the same bytes at another time."""
    scores = np.linspace(0.1, 0.3, 8)
    images = np.tile(np.float16([1, 0]), (8, 1))
    texts = np.stack([scores, np.sqrt(1 - scores**2)], axis=1).astype(np.float16)  # at the scores' angles
    features = {"l14_img": images, "l14_txt": texts}
    columns = {"uid": [uid(n) for n in range(8)], "text": [f"text {n}" for n in range(8)]}
    columns["clip_l14_similarity_score"] = scores
    write_pool(folder / "pool", columns, features=features)
    (folder / "pool" / "assets").mkdir()
    np.save(folder / "pool" / "assets" / "image_targets_l14.npy", texts[:2])  # so that normsim is compared with
    half()
    report()
    first = {path.name: path.read_bytes() for path in Path("exp/report").iterdir()}
    for path in Path("pool").rglob("*.*"):
        os.utime(path, (1, 1))
    shutil.copytree("exp", "again", ignore=shutil.ignore_patterns("report"))
    report(exp="again")
    assert {path.name: path.read_bytes() for path in Path("again/report").iterdir()} == first
    if part == "metadata":
        columns["text"][3] = "another text"
    else:
        features = {name: -values for name, values in features.items()}
    shutil.rmtree("pool/metadata")
    write_pool(folder / "pool", columns, features=features)
    report(exp="again")
    made = [json.loads(Path(exp, "report/report.json").read_text())["made_from"] for exp in ("exp", "again")]
    assert {name for name in made[0] if made[0][name] != made[1][name]} == {"metadata"}


def test_a_report_that_fits_is_left_alone_and_a_lost_or_changed_one_is_made_anew(reported, pico_pool, capsys):
    shutil.copytree(reported, "exp")
    page = Path("exp/report/index.html")
    data = page.read_bytes()
    before = page.stat().st_mtime_ns
    capsys.readouterr()
    report(pool=pico_pool)
    assert capsys.readouterr().out == "report: up to date, skipping (exp/report/index.html)\n"
    assert page.stat().st_mtime_ns == before
    page.write_bytes(b"mine")
    report(pool=pico_pool)
    assert "report: exp/report/index.html (regenerated: its files were changed or lost)" in capsys.readouterr().out
    assert page.read_bytes() == data


def test_scored_seeds_stand_on_the_board_and_make_the_report_anew(reported, pico_pool, capsys):
    shutil.copytree(reported, "exp")
    board = read_board(BOARDS_DIR / "pico")
    assert board.rules.note in html.unescape(report(pool=pico_pool))
    record = json.loads(Path("exp/subset.json").read_text())
    result = record["result"]
    scores = dict.fromkeys(board.task_names, 0.5)
    entry = Entry(
        name="mine",
        strategy=(),
        reference=False,
        scale="pico",
        recipe=board.rules.recipe,
        recipe_hash="0" * 64,
        suite=SuiteName(board.rules.suite.name, board.rules.suite.version),
        pool=PoolUsed(record["made_from"]["pool"], "0" * 64, result["rows"], result["rows"]),
        subset=SubsetUsed(result["size"], result["distinct"], result["sha256"]),
        seeds={0: scores, 1: scores},
        made_with={},
    )
    write_entry(Path("exp/entry.json"), entry)
    capsys.readouterr()
    page = report(pool=pico_pool)
    assert "(regenerated: entry, board changed)" in capsys.readouterr().out
    assert '<td class="left">&gt; mine</td>' in page and ".500 ± .000 (2)" in page
    assert board.rules.note in html.unescape(page)
    average = "Average over the suite's reporting half (8 tasks) 0.500 ± 0.000 (2 seeds)."
    assert (
        f"{average} Over its development half (8) 0.500." in html.unescape(page)
        and Path("exp/report/tasks.png").is_file()
    )
    assert tables(page)["This run by task"][board.task_names[0]] == ["dev", "0.500", "-", "-", "-", "-"]
    assert tables(page)["This run by task"][board.headline[0]][0] == "reporting"
    Path("exp/entry.json").write_text(Path("exp/entry.json").read_text().replace(result["sha256"], "1" * 64))
    assert "is about another subset" in failing(capsys, pico_pool)


def test_tasks_are_compared_one_by_one_with_what_compares():
    board = read_board(BOARDS_DIR / "pico")
    first, second, *_ = board.headline

    def entry(name, *seeds, **scores):
        tasks = dict.fromkeys(board.task_names, 0.5) | {first: scores.get("first", 0.5)}
        return Entry(
            name=name,
            strategy=(),
            reference=False,
            scale="pico",
            recipe=scores.get("recipe", board.rules.recipe),
            recipe_hash=f"{scores.get('recipe', 0):064x}",
            suite=SuiteName(board.rules.suite.name, board.rules.suite.version),
            pool=PoolUsed("0" * 64, "0" * 64, 8, 8),
            subset=SubsetUsed(4, 4, "0" * 64),
            seeds={n: tasks | {first: tasks[first] + shift} for n, shift in enumerate(seeds)},
            made_with={},
        )

    own = entry("own", 0.0, 0.02, first=0.6)
    others = [entry("low", 0.02, 0.0, first=0.1), entry("same", 0.02, 0.0, first=0.6), entry("other", 0, recipe=7)]
    by_task = {standing.task: standing for standing in task_standings(make_table(others, board, own))}
    standing, level = by_task[first], by_task[second]
    assert [score.name for score in standing.scores] == ["own", "same", "low"]
    assert standing.own.mean == pytest.approx(0.61) and (standing.num_better, standing.num_worse) == (0, 1)
    # Three runs of variance 0.0002. Least squares leaves squares of 0.0016 / 3 in all on 2 degrees of freedom, and the
    # seeds' mean square is smaller: half a width is t(.975, 2) * sqrt(mean square / 2).
    assert standing.own.half_width == pytest.approx(4.302653 * (0.0008 / 3 / 2) ** 0.5, rel=1e-5)
    assert level.own.half_width == pytest.approx(0)
    assert (level.num_better, level.num_worse) == (0, 0)
    (alone, *_) = task_standings(make_table([], board, entry("one", 0.0)))
    assert alone.own.half_width is None and alone.num_better is None


def failing(capsys, pool, exp="exp"):
    """Return the one sentence of a report that must fail."""
    capsys.readouterr()
    assert main(["report", "scale=pico", f"pool_dir={pool}", f"exp_dir={exp}"]) == EXIT_USER
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("winnow: ") and captured.err.count("\n") == 1
    return captured.err


def test_wrong_use_is_met_by_one_sentence(reported, pico_pool, folder, capsys):
    assert "exp has no subset yet; run `winnow filter exp_dir=exp ...` first" in failing(capsys, pico_pool)
    assert not Path("exp").exists()
    hostile_pool(folder)
    assert "was filtered from pool" in failing(capsys, "pool", reported)
    shutil.copytree(reported, "exp")
    np.save("exp/subset.npy", np.load("exp/subset.npy")[:-1])
    assert "subset.npy was changed after it was made" in failing(capsys, pico_pool)
    Path("exp/subset.npy").unlink()
    assert "subset.npy is gone" in failing(capsys, pico_pool)


def test_a_pool_of_bare_metadata_gets_a_report_without_pictures(folder):
    write_pool(folder / "pool", {"uid": [uid(n) for n in range(4)]}, {"uid": [uid(n) for n in (3, 4, 4)]})
    assert main(["filter", "scale=pico", "pool_dir=pool", "exp_dir=exp", "filters=random"]) == 0
    page = report()
    assert "no images to show" in page and "<figure" not in page
    assert "7 rows, no images here" in page
    names = {".lock", "index.html", "report.json", "scores-random.png"}
    assert {path.name for path in Path("exp/report").iterdir()} == names


def test_a_sample_drawn_for_a_sheet_depends_on_uids_alone(folder):
    count = 130
    for name, order in (("one", range(count)), ("two", reversed(range(count)))):
        numbers = list(order)
        pool = write_pool(
            folder / name, {"uid": [uid(n) for n in numbers], "clip_l14_similarity_score": [n / 200 for n in numbers]}
        )
        there = [members(f"{place:09d}", n, text=f"number {n}") for place, n in enumerate(numbers)]
        write_tar(pool / "shards" / "00000000.tar", chain(*there))
        half(pool, f"exp-{name}")
    pages = [report(pool=name, exp=f"exp-{name}") for name in ("one", "two")]
    shown = [re.findall(r"number (\d+)<", page) for page in pages]
    assert shown[0] == shown[1] and len(shown[0]) == 96
    assert all(int(number) >= 65 for number in shown[0][:48]) and all(int(number) < 65 for number in shown[0][48:])


def clip_score_rule(fraction=None, threshold=None):
    from benchmark.registry import get_strategy

    cut = Cut("threshold", threshold) if fraction is None else Cut("fraction", fraction)
    return Rule("clip_score", {"arch": "l14"}, cut), get_strategy("clip_score")


@pytest.mark.parametrize("cut, lowest, passing", [({"fraction": 0.5}, 0.54, 4), ({"threshold": 0.7}, 0.72, 2)])
def test_a_rules_scores_are_parted_by_its_cut_and_by_what_other_rules_dropped(folder, cut, lowest, passing):
    pool = Pool(hostile_pool(folder))
    rule, _ = clip_score_rule(**cut)
    (histogram,) = survey_pool(pool, Subset.of(parse_uids([uid(1), uid(8)])), [rule.resolve(pool)]).histograms
    assert histogram.name == "clip_score" and histogram.num_missing == 0
    assert histogram.cut_score == pytest.approx(lowest)
    assert [int(part.sum()) for part in (histogram.kept, histogram.dropped_by_others)] == [2, passing - 1]
    assert histogram.dropped.sum() == 8 - 2 - (passing - 1)
    place = int(np.flatnonzero(np.isclose(histogram.edges, lowest))[0])  # the cut is an edge of bins
    assert histogram.dropped[place:].sum() == histogram.dropped_by_others[:place].sum() == 0


def test_inside_an_earlier_subset_the_place_of_a_fractions_cut_is_not_known(folder):
    pool = Pool(hostile_pool(folder))
    rule, _ = clip_score_rule(fraction=0.5)
    subset = Subset.of(parse_uids([uid(3)]))
    found = survey_pool(pool, subset, [rule.resolve(pool)], is_within=True)
    assert found.histograms[0].cut_score is None and found.histograms[0].dropped.sum() == 7
    assert all(curves.cut_fraction is None for curves in found.curves)


def test_shares_over_fraction_are_those_of_the_filter_engine():
    """Ties, missing verdicts and unsorted uids, against one cut per fraction."""
    rng = np.random.default_rng(0)
    count = 203
    scores = rng.integers(0, 9, count).astype(np.float32)
    is_judged = rng.random(count) < 0.8
    uids = parse_uids([uid(number) for number in rng.permutation(count).tolist()])
    members = [rng.random(count) < share for share in (0.1, 0.5, 1.0)]
    shares = kept_at_fractions(scores, is_judged, uids, members)
    judged = np.flatnonzero(is_judged)
    for column, fraction in enumerate(FRACTIONS.tolist()):
        keep = np.zeros(count, dtype=bool)
        keep[judged[top_fraction(scores[judged], uids[judged], fraction, count)]] = True
        assert shares[:, column].tolist() == [(keep & mask).sum() / mask.sum() for mask in members]


def test_curves_meet_the_kept_share_at_the_rules_own_cut(pico_pool, strategies):
    pool = Pool(pico_pool)
    rule, _ = clip_score_rule(fraction=0.3)
    found = survey_pool(pool, run_filters(pool, [rule]).subset, [rule.resolve(pool)])
    planted = next(grouping for grouping in found.groupings if grouping.is_planted)
    curves = next(curves for curves in found.curves if curves.is_planted)
    column = FRACTIONS.tolist().index(0.3)
    assert curves.labels == [group.label for group in planted.groups] and curves.cut_fraction == 0.3
    assert curves.shares[:, column] == pytest.approx([group.kept / group.rows for group in planted.groups])


def test_languages_are_counted_and_sampled_where_the_pool_is_large(folder, monkeypatch):
    english, german = "a red house stands near the old bridge", "ein rotes Haus steht neben der alten Brücke"
    captions = [english] * 300 + [german] * 100 + [None] * 20
    uids = [uid(number << 64 | number) for number in range(len(captions))]
    pool = Pool(write_pool(folder / "pool", {"uid": uids, "text": captions}))
    subset = Subset.of(parse_uids(uids[290:310]))
    found = survey_pool(pool, subset).groupings[0]
    assert found.title == "By caption language (fastText's guess)"
    assert [(g.label, g.rows, g.kept) for g in found.groups] == [
        ("en", 300, 10),
        ("de", 100, 10),
        ("no caption", 20, 0),
    ]
    monkeypatch.setattr(groups, "LANGUAGE_ROWS", 210)
    sampled = survey_pool(pool, subset).groupings[0]
    drawn = sum(group.rows for group in sampled.groups)
    assert 150 < drawn < 270 and f"of {drawn} rows drawn by a hash of the uid" in sampled.title


def test_planted_columns_of_text_are_groups_too_and_escaped(folder):
    pool = hostile_pool(folder)
    labels = {"uid": [uid(n) for n in range(1, 9)], "style": ["<b>tags</b>", "sentence"] * 4, "<i>": [True] * 8}
    pd.DataFrame(labels).to_parquet(pool / "planted.parquet")
    half()
    page = report()
    found = tables(page)["By planted style"]
    assert {label: cells[:2] for label, cells in found.items()} == {
        "&lt;b&gt;tags&lt;/b&gt;": ["4", "2"],
        "sentence": ["4", "2"],
    }
    assert "<b>tags" not in page and "<i>" not in {tag for tag in re.findall(r"<[^>]*>", page) if "style" not in tag}


def test_a_sheets_picture_holds_captions_of_any_kind(folder):
    from benchmark.report.plots import draw_sheet
    from benchmark.report.sheets import Sheet, SheetSample

    captions = ["", " ", "word", "w" * 500, "$x^2$ \x00\n\u202e", "多字" * 200, "a b c " * 99]
    samples = [SheetSample(uid(n), None, caption, []) for n, caption in enumerate(captions)]
    picture = Image.open(io.BytesIO(draw_sheet(Sheet("Kept", samples, 7, 0))))
    assert picture.format == "PNG" and picture.width > picture.height


def test_scores_of_a_rule_whose_file_changed_are_not_shown_as_its_own(folder):
    hostile_pool(folder)
    rule = folder / "mine.py"
    text = "from benchmark import register_filter\n\n@register_filter(columns=['uid'], fraction=0.5)\n"
    text += "def changing_rule(rows):\n    return rows['uid'].map(lambda uid: int(uid, 16) / 8)\n"
    rule.write_text(text)
    options = ["scale=pico", "pool_dir=pool", "exp_dir=exp", f"plugins=[{rule}]"]
    try:
        assert main(["filter", *options, "filters=changing_rule"]) == 0
        assert main(["report", *options]) == 0
        assert Path("exp/report/scores-changing_rule.png").is_file()
        rule.write_text(text.replace("/ 8", "/ 9"))
        assert main(["report", *options]) == 0
        assert not Path("exp/report/scores-changing_rule.png").exists()
        page = Path("exp/report/index.html").read_text()
        assert "No scores of changing_rule here: its file changed after the subset was made." in page
    finally:
        registry.STRATEGIES.pop("changing_rule", None)


def test_a_pool_of_shards_alone_has_a_report_of_its_samples(folder, capsys):
    """Without metadata there is nothing to count by, but what was kept and dropped can be shown."""
    samples = [members(f"k{n}", n, image=jpeg((20 * n, 0, 0)), text=f"words {n}") for n in range(8)]
    write_tar(Path("pool/shards/0.tar"), [member for sample in samples for member in sample])
    pd.DataFrame({"uid": [uid(n) for n in (1, 4, 6, 99)]}).to_parquet("mine.parquet")
    options = ["scale=pico", "pool_dir=pool", "exp_dir=exp"]
    assert main(["filter", *options, "subset=mine.parquet", "max_missing=1"]) == 0
    assert main(["report", *options]) == 0
    page = Path("exp/report/index.html").read_text()
    told = re.sub(r"\s+", " ", html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.S)))
    assert "Kept 3 of 8 rows" in told and "3 of 3 samples" in told and "5 of 5 samples" in told
    assert all(f"words {n}" in told for n in range(8))
    assert {path.name for path in Path("exp/report").glob("*.png")} == {"sheet-kept.png", "sheet-dropped.png"}
    before = Path("exp/report/report.json").read_bytes()
    capsys.readouterr()
    assert main(["report", *options]) == 0 and "up to date" in capsys.readouterr().out
    assert Path("exp/report/report.json").read_bytes() == before
