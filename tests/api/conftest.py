"""Fixtures: two experiments at a quarter of `pico`, of two seeds each, without reports."""

import pytest

from benchmark.cli.main import main


@pytest.fixture(scope="session")
def experiments(tmp_path_factory, pico_pool):
    """A folder with the finished experiments `clip_score` and `no_filter`."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "short.yaml").write_text("base: pico\nsamples_seen: 1600\n")
    for name in ("clip_score", "no_filter"):
        at = [f"scale={folder / 'short.yaml'}", f"pool_dir={pico_pool}", f"exp_dir={folder / name}"]
        assert main(["filter", *at, f"filters={name}"]) == 0
        assert main(["train", *at, "seeds=[0,1]"]) == 0
        assert main(["evaluate", *at, "seeds=[0,1]"]) == 0
    return folder
