"""Which folder is taken as the pool: one is drawn where none is named, never into a folder that was mistyped."""

import shutil
from pathlib import Path

import pytest

from benchmark.cli.main import main
from benchmark.cli.pools import PoolOptions
from benchmark.pool.pool import Pool
from benchmark.runtime.errors import NotFoundError
from benchmark.scales import get_scale
from tests.conftest import uid, user_error, write_pool


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("verb", ["run", "filter"])
def test_a_mistyped_pool_dir_draws_nothing_and_names_what_is_near(folder, capsys, verb):
    write_pool(Path("pools/photos"), {"uid": [uid(1)]})
    before = below(folder)
    assert main([verb, "scale=pico", "pool_dir=pools/fotos"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("winnow: there is no pool at pools/fotos. Did you mean 'photos'?") and told.count("\n") == 1
    assert below(folder) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("tars", "It holds tars: `winnow pool import --shards tars"),
        ("pools/photos/metadata", "Did you mean pools/photos,"),
    ],
)
def test_a_folder_of_tars_and_one_of_a_pools_own_are_told_from_others(folder, capsys, given, told):
    write_pool(Path("pools/photos"), {"uid": [uid(1)]})
    Path("tars").mkdir()
    Path("tars/a.tar").write_bytes(bytes(1024))
    assert main(["pool", "check", given]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_as_it_is(folder, capsys):
    Path("home").mkdir()
    Path("home/thesis.tex").write_text("years of work")
    assert main(["filter", "scale=pico", "pool_dir=home", "filters=no_filter"]) == 2
    assert "home is not a pool: it has neither metadata/*.parquet nor shards/*.tar" in capsys.readouterr().err
    assert below(Path("home")) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("pools", "pools .* pools/photos, pools/web"),
        ("pools/photo", "'photos'"),
        ("pool/photos", "'pools'"),
        ("pools/q", "pools/photos, .*pools/web"),
        ("pools/photos/metadata", "Did you mean pools/photos"),
    ],
)
def test_what_is_near_is_named(folder, given, told):
    for name in ("photos", "web"):
        write_pool(Path("pools") / name, {"uid": [uid(1)]})
    with user_error("pool-not-found", match=told):
        PoolOptions(get_scale("pico"), Path(given), 0).open_or_generate()


def test_the_scales_own_folder_is_drawn_into_and_where_build_began_it_goes_on(folder, pico_pool, monkeypatch):
    drawn = []

    def draw(pool_dir, scale, pool_seed, workers):
        drawn.append((str(pool_dir), scale.name, pool_seed))
        if not (pool_dir / "metadata").is_dir():
            shutil.copytree(pico_pool / "metadata", pool_dir / "metadata")

    monkeypatch.setattr("benchmark.embedded.pool.build_pool", draw)
    scale = get_scale("pico")
    PoolOptions(scale, Path("pools/pico"), 0).open_or_generate()
    PoolOptions(scale, Path("pools/pico-3"), 3).open_or_generate()
    assert drawn == [("pools/pico", "pico", 0), ("pools/pico-3", "pico", 3)]
    Path("begun").mkdir()
    Path("begun/building.json").write_text("{}")  # as `winnow pool build --pool-dir begun` leaves it when it is killed
    PoolOptions(scale, Path("begun"), 0).open_or_generate()
    assert drawn[2:] == [("begun", "pico", 0)]
    with pytest.raises(NotFoundError):
        PoolOptions(scale, Path("pools/pico-3"[:-1] + "4"), 0).open_or_generate()
    assert len(drawn) == 3


def test_a_pool_that_build_drew_elsewhere_is_used(folder, pico_pool):
    assert (
        PoolOptions(get_scale("pico"), pico_pool, 0).open_or_generate().compute_fingerprint()
        == Pool(pico_pool).compute_fingerprint()
    )
