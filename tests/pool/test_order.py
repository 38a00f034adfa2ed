"""The order of samples: pinned values, the properties that DESIGN promises, and the spreading of repeats."""

import dataclasses
import tracemalloc
from collections import Counter
from itertools import chain, islice
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmark.pool.order import SampleOrder, count_repeats, present_samples, spread_repeats
from benchmark.pool.subset import Subset
from benchmark.pool.uids import parse_uids
from benchmark.runtime.keyed import keyed_permutation, keyed_uint64
from benchmark.scales import SCALES, Scale
from benchmark.training.data import StepBatches, batches_from, hold_samples
from benchmark.training.ranks import Ranks
from tests.conftest import THOUSANDS, jpeg, user_error


def scale(**changes):
    base = {"samples_seen": 96, "batch_size": 8, "block_size": 5, "window_blocks": 2, "warmup_steps": 2}
    return dataclasses.replace(SCALES["pico"], **{**base, **changes})


def run(order):
    return np.concatenate([order.batch(step) for step in range(order.scale.steps)])


def num_repeats(order):
    return sum(count_repeats(order.samples[order.batch(step)]) for step in range(order.scale.steps))


def splitmix64(state):
    """One step of the published generator, in Python's integers."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_keyed_numbers_are_splitmix64_folded_over_the_keys():
    assert int(keyed_uint64(0)) == splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first output
    assert int(keyed_uint64(3, 2**63, 5)) == splitmix64(splitmix64(splitmix64(3) ^ 2**63) ^ 5)


def test_the_order_of_a_recipe_is_pinned():
    """If this fails, every result of every recipe is void."""
    assert keyed_permutation(8, 1, 0, 0).tolist() == [3, 1, 6, 2, 4, 7, 0, 5]
    order = SampleOrder(np.arange(12), scale(spread_repeats=False), seed=3)
    first_epoch = [0, 11, 1, 2, 10, 4, 3, 8, 7, 9, 6, 5]  # blocks 0 and 2 shuffled together, then block 1
    second_epoch = [8, 0, 1, 7, 4, 6, 9, 5, 3, 2, 10, 11]
    assert run(order)[:24].tolist() == first_epoch + second_epoch


def test_every_epoch_holds_each_sample_once_and_epochs_differ():
    order = SampleOrder(np.arange(24), scale(spread_repeats=False), seed=0)
    epochs = run(order).reshape(4, 24)
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_window_holds_whole_blocks(seed):
    blocks = (run(SampleOrder(np.arange(20), scale(spread_repeats=False), seed=seed))[:20] // 5).tolist()
    for window in (blocks[:10], blocks[10:]):
        assert sorted(Counter(window).values()) == [5, 5]


def test_with_replacement_blocks_are_drawn_anew():
    order = SampleOrder(np.arange(40), scale(with_replacement=True, spread_repeats=False, samples_seen=800), seed=0)
    draws = run(order).reshape(80, 10)  # windows of two blocks
    assert all(set(Counter((window // 5).tolist()).values()) <= {5, 10} for window in draws)
    times_drawn = Counter((run(order) // 5).tolist())
    assert set(times_drawn) == set(range(8)) and len(set(times_drawn.values())) > 1


def test_seeds_give_other_orders():
    orders = [run(SampleOrder(np.arange(24), scale(), seed=seed)) for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("recipe", [{}, {"spread_repeats": False}, {"spread_repeats": False, "with_replacement": True}])
def test_steps_may_be_asked_for_in_any_order(recipe):
    recipe = scale(samples_seen=400, **recipe)
    forwards = run(SampleOrder(np.arange(23), recipe, seed=0)).reshape(recipe.steps, recipe.batch_size)
    order = SampleOrder(np.arange(23), recipe, seed=0)
    for step in np.random.default_rng(0).permutation(recipe.steps).tolist():
        assert order.batch(step).tolist() == forwards[step].tolist()


@pytest.mark.parametrize("seed", range(40))
def test_a_step_is_found_without_what_comes_before(seed):
    generator = np.random.default_rng(seed)
    batch_size, block_size, window_blocks = generator.integers(1, [12, 9, 6]).tolist()
    recipe = scale(
        samples_seen=int(generator.integers(20, 400)),
        batch_size=batch_size,
        block_size=block_size,
        window_blocks=window_blocks,
        with_replacement=seed % 2 == 1,
        spread_repeats=False,
    )
    order = SampleOrder(np.arange(generator.integers(batch_size, 60)), recipe, seed=seed)
    line = chain.from_iterable(naive_windows(len(order.samples), recipe, seed))
    assert run(order).tolist() == list(islice(line, recipe.steps * batch_size))


def test_memory_does_not_grow_with_the_samples_seen():
    """DataComp's xlarge sees 12.8 billion samples; its positions would take 100 GB."""
    recipe = scale(
        samples_seen=12_800_000_000,
        batch_size=90_112,
        block_size=10_000,
        window_blocks=10,
        with_replacement=True,
        spread_repeats=False,
    )
    order = SampleOrder(np.arange(1_000_000), recipe, seed=0)
    tracemalloc.start()
    batches = [order.batch(step) for step in (0, recipe.steps // 2, recipe.steps - 1)]
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert all(len(batch) == recipe.batch_size for batch in batches)


def test_a_subset_smaller_than_a_batch_is_refused():
    with user_error("subset-too-small", match="7 samples .*8"):
        SampleOrder(np.arange(7), scale(), seed=0)


def brute_force(window, samples, in_batch, batch_size):
    """The rule as DESIGN states it, position by position, on whole batches."""
    ids = [int(samples[place]) for place in window]
    held = [int(samples[place]) for place in in_batch]
    order = list(range(len(ids)))

    def batch(number, ids):
        line = held + ids
        return line[number * batch_size : (number + 1) * batch_size]

    for here in range(len(ids)):
        number = (here + len(held)) // batch_size
        start = number * batch_size
        before = (held + ids)[start : here + len(held)]
        if ids[here] not in before:
            continue
        for there in range(here + 1, len(ids)):
            other = (there + len(held)) // batch_size
            if other == number:
                continue
            trial = list(ids)
            trial[here], trial[there] = trial[there], trial[here]
            mine, theirs = batch(number, trial), batch(other, trial)
            if mine.count(trial[here]) == 1 and theirs.count(trial[there]) == 1:
                ids = trial
                order[here], order[there] = order[there], order[here]
                break
    return [int(window[k]) for k in order]


@pytest.mark.parametrize("seed", range(30))
def test_repeats_are_spread_as_the_brute_force_rule_does(seed):
    generator = np.random.default_rng(seed)
    samples = np.sort(generator.integers(0, 6 + seed, size=30))
    window = generator.permutation(30)
    in_batch = generator.integers(0, 30, size=seed % 4)
    assert spread_repeats(window, samples, in_batch, 4).tolist() == brute_force(window, samples, in_batch, 4)


def test_repeats_that_cannot_be_spread_are_counted():
    order = SampleOrder(np.zeros(8, dtype=int), scale(samples_seen=16), seed=0)
    assert num_repeats(order) == 14
    assert num_repeats(SampleOrder(np.arange(8), scale(samples_seen=16), seed=0)) == 0
    doubled = np.repeat(np.arange(16), 2)
    spread = SampleOrder(doubled, scale(samples_seen=32, window_blocks=100), seed=0)
    left = SampleOrder(doubled, scale(samples_seen=32, window_blocks=100, spread_repeats=False), seed=0)
    batches = [doubled[left.batch(step)] for step in range(4)]
    assert num_repeats(left) == sum(8 - len(set(batch.tolist())) for batch in batches) == 5
    assert num_repeats(spread) == 1  # in the last batch, where nothing later is left to swap with


def test_present_samples_stand_in_index_order_with_their_copies_side_by_side():
    def uids(*numbers):
        return parse_uids([f"{number:032x}" for number in numbers])

    index = uids(9, 2, 5, 7, 2)
    subset = Subset.of(uids(2, 9, 5, 5, 3, 5))
    assert present_samples(index, subset).tolist() == [0, 1, 2, 2, 2, 4]  # 2 is read at both its places


# The whole of DESIGN's "The order of samples" once more, in Python's integers and lists alone.


def keyed(*keys: int) -> int:
    state = 0
    for key in keys:
        state = splitmix64(state ^ key)
    return state


def permuted(count: int, *keys: int) -> list[int]:
    return sorted(range(count), key=lambda item: keyed(*keys, item))


def naive_windows(count: int, recipe: Scale, seed: int):
    """Yield the windows of a run, places in P, before repeats are spread."""
    size, per_window = recipe.block_size, recipe.window_blocks
    blocks = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    epoch = 0
    while True:
        if recipe.with_replacement:
            draws = range(epoch * per_window, (epoch + 1) * per_window)
            drawn = [[keyed(2, seed, draw) % len(blocks) for draw in draws]]
        else:
            order = permuted(len(blocks), 1, seed, epoch)
            drawn = [order[start : start + per_window] for start in range(0, len(order), per_window)]
        for number, window in enumerate(drawn):
            places = [place for block in window for place in blocks[block]]
            yield [places[at] for at in permuted(len(places), 3, seed, epoch, number)]
        epoch += 1


def naive_positions(samples: list[int], recipe: Scale, seed: int, undecodable: set[int]) -> list[int]:
    """Return which sample, a place in the index, training sees at each position of the run."""
    size = recipe.batch_size
    wanted = -(-recipe.samples_seen // size) * size
    line: list[int] = []
    for window in naive_windows(len(samples), recipe, seed):
        in_batch = line[len(line) // size * size :]
        line += brute_force(window, samples, in_batch, size) if recipe.spread_repeats else window
        if len(line) >= wanted:
            break
    seen = []
    for position, place in enumerate(line[:wanted]):
        attempt = 0
        while samples[place] in undecodable:
            attempt += 1
            assume(attempt <= len(samples))  # where so few are left that no draw finds one, training gives up
            place = keyed(5, seed, position, attempt) % len(samples)
        seen.append(samples[place])
    return seen


class NumberedSamples:
    """Stands in for a reader: a sample's caption is its place in the index."""

    def __init__(self, samples, undecodable):
        self.samples, self.undecodable, self.picture = samples, undecodable, jpeg(size=4)

    def read(self, place):
        row = int(self.samples[place])
        return b"no picture" if row in self.undecodable else self.picture, b"%d" % row


@st.composite
def runs(draw):
    """Return a pool's uids in its order, the copies of each in a subset, and what a run is made with."""
    index = draw(st.lists(st.integers(0, 12), min_size=1, max_size=40))
    copies = draw(st.dictionaries(st.integers(0, 15), st.integers(1, 4), min_size=1, max_size=16))
    copies[index[0]] = draw(st.integers(1, 4))  # so that something is there
    present = sum(copies.get(each, 0) for each in index)
    ranks = draw(st.integers(1, min(present, 3)))
    batch_size = ranks * draw(st.integers(1, max(1, min(present, 12) // ranks)))
    recipe = scale(
        samples_seen=draw(st.integers(1, 150)),
        batch_size=batch_size,
        block_size=draw(st.integers(1, 9)),
        window_blocks=draw(st.integers(1, 6)),
        with_replacement=draw(st.booleans()),
        spread_repeats=draw(st.booleans()),
        image_size=4,
    )
    rows = [row for row, each in enumerate(index) if each in copies]
    undecodable = draw(st.sets(st.sampled_from(rows), max_size=len(rows) - 1)) if draw(st.booleans()) else set()
    first_step = draw(st.integers(0, recipe.steps - 1))
    return (
        index,
        copies,
        recipe,
        draw(st.integers(0, 3)),
        ranks,
        undecodable,
        first_step,
        draw(st.integers(1, 5)),
        draw(st.booleans()),
    )


def agree_with_the_naive_order(run) -> None:
    index, copies, recipe, seed, ranks, undecodable, first_step, part_size, is_held = run
    subset = Subset.of(parse_uids([f"{each:032x}" for each, count in copies.items() for _ in range(count)]))
    samples = present_samples(parse_uids([f"{each:032x}" for each in index]), subset)
    naive_samples = [row for row, each in enumerate(index) for _ in range(copies.get(each, 0))]
    assert samples.tolist() == naive_samples
    expected = naive_positions(naive_samples, recipe, seed, undecodable)
    reader = NumberedSamples(samples, undecodable)
    seen = []
    with mock.patch("benchmark.training.data.PART_SIZE", part_size):
        for rank in range(ranks):
            # Every rank has an order of its own, and begins where a killed run is gone on with.
            order = SampleOrder(samples, recipe, seed)
            held = hold_samples(reader, as_numbers, recipe) if is_held else None
            batches = StepBatches(order, reader, as_numbers, held, Ranks(rank, ranks))
            seen.append([batch.tokens[:, 0].tolist() for batch in batches_from(batches, first_step, 0)])
    found = [row for parts in zip(*seen, strict=True) for part in parts for row in part]
    assert found == expected[first_step * recipe.batch_size :]


def as_numbers(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[int(caption)] for caption in captions])


@given(runs())
def test_what_training_sees_is_the_naive_order(run):
    agree_with_the_naive_order(run)


@pytest.mark.thousands
@THOUSANDS
@given(runs())
def test_what_thousands_of_trainings_see_is_the_naive_order(run):
    agree_with_the_naive_order(run)
