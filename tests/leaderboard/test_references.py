"""The program that makes the reference entries: which jobs, in which order, and what each runs."""

from __future__ import annotations

from benchmark.registry import FILTERS_DIR, load_strategies
from scripts.make_references import STRATEGIES, Job, command_of, make_jobs


def test_every_strategy_runs_at_one_seed_before_any_runs_at_the_next() -> None:
    jobs = make_jobs(["no_filter", "basic"], [0, 1], [7, 8])
    assert jobs == [
        Job("no_filter", (0,), 7),
        Job("basic", (0,), 7),
        Job("no_filter", (0,), 8),
        Job("no_filter", (1,), 7),
        Job("basic", (1,), 7),
        Job("no_filter", (1,), 8),
    ]


def test_one_process_may_train_several_seeds_of_a_strategy() -> None:
    jobs = make_jobs(["basic"], [0, 1, 2], [7], seeds_per_run=2)
    assert jobs == [Job("basic", (0, 1), 7), Job("basic", (2,), 7)]
    assert "seeds=[0,1]" in command_of(jobs[0], "pico")


def test_a_job_is_a_command_that_adds_its_seed_to_the_strategys_folder() -> None:
    first, second = (command_of(Job("clip_score-b32", (seed,), 2), "pico") for seed in (0, 1))
    assert "filters=[clip_score]" in first and "filters.clip_score.arch=b32" in first and "pool_seed=2" in first
    assert first[-1] == second[-1]
    assert ("seeds=[0]" in first, "seeds=[1]" in second) == (True, True)


def test_every_shipped_filter_is_a_reference() -> None:
    loaded = load_strategies().values()
    shipped = {each.name for each in loaded if each.source_path.parent == FILTERS_DIR and each.kind != "signal"}
    assert len(shipped) > 20
    assert shipped <= {name for strategy in STRATEGIES.values() for name in strategy.filters}
