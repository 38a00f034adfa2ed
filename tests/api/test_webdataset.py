"""`pool.to_webdataset`: the samples of a subset in place, in our order and in webdataset's, for others' trainers."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch.utils.data import DataLoader

import winnow as wb
from benchmark.cli.main import main
from benchmark.models.build import build_model, build_tokenizer
from benchmark.models.pixels import normalise
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import parse_uids
from benchmark.scales import SCALES
from benchmark.training.data import TrainingData
from benchmark.training.exact import recipe_threads
from tests.conftest import members, uid, user_error

ROOT = Path(__file__).resolve().parents[2]
BRIEF = dataclasses.replace(SCALES["pico"], name="brief", batch_size=16, samples_seen=20 * 16, warmup_steps=3)


@pytest.fixture(scope="module")
def pool(pico_pool):
    return wb.open_pool(pico_pool)


@pytest.fixture(scope="module")
def subset(pool):
    """A random part of the pool, some of it twice or three times."""
    uids = np.unique(np.concatenate(list(pool.uid_parts())))
    return wb.Subset.of(np.repeat(uids, np.random.default_rng(0).choice(4, len(uids), p=[0.8, 0.1, 0.05, 0.05])))


@pytest.fixture(scope="module")
def expected(pico_pool, subset):
    """All samples of the subset, as webdataset itself reads them: by key, each with its number of copies."""
    copies = subset.to_series()
    samples, counts = {}, Counter()
    tars = [str(path) for path in sorted((pico_pool / "shards").glob("*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        if (wanted := copies.get(json.loads(sample["json"])["uid"], 0)) and {"jpg", "txt"} <= sample.keys():
            samples[sample["__key__"]] = {key: value for key, value in sample.items() if key != "__local_path__"}
            counts[sample["__key__"]] = wanted
    return samples, counts


def keys_of(samples):
    return [sample["__key__"] for sample in samples]


def as_list(batch):
    return batch


def test_an_epoch_has_every_sample_as_webdataset_reads_it(pool, subset, expected):
    samples, counts = expected
    pipeline = pool.to_webdataset(subset, order="webdataset")
    found = list(pipeline)
    assert Counter(keys_of(found)) == counts and pipeline.num_samples == sum(counts.values()) == len(found)
    for sample in found:
        assert sample == samples[sample["__key__"]]
    assert keys_of(pipeline) == keys_of(found), "the same again"
    pipeline.set_epoch(1)
    other = keys_of(pipeline)
    assert other != keys_of(found) and Counter(other) == counts
    assert keys_of(pool.to_webdataset(subset, order="webdataset", seed=1)) != keys_of(found)
    plain = keys_of(pool.to_webdataset(subset, order="webdataset", shuffle_buffer=0))
    tars = [samples[key]["__url__"] for key in plain]
    assert len({*tars}) == len([one for one, other in zip([None, *tars], tars, strict=False) if one != other])


@pytest.mark.parametrize("num_ranks, num_workers", [(1, 2), (3, 0), (2, 3), (5, 4)])
def test_ranks_and_workers_share_an_epoch(num_ranks, num_workers, pool, subset, expected, monkeypatch):
    """More processes than the pool has tars, too."""
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    pipeline = pool.to_webdataset(subset, order="webdataset", seed=3)
    found = []
    for rank in range(num_ranks):
        monkeypatch.setenv("RANK", str(rank))
        loader = DataLoader(pipeline.map(dict), batch_size=None, num_workers=num_workers)
        found.append(keys_of(loader))
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1 and sum((Counter(part) for part in found), Counter()) == expected[1]


def test_persistent_workers_see_the_epoch_that_is_set(pool, subset, expected):
    pipeline = pool.to_webdataset(subset, order="webdataset")
    loader = DataLoader(pipeline, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        pipeline.set_epoch(epoch)
        epochs.append(keys_of(loader))
    assert epochs[0] != epochs[1] and Counter(epochs[0]) == Counter(epochs[1]) == expected[1]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_our_order_is_that_of_training_batch_by_batch(num_ranks, workers, pool, subset, monkeypatch):
    data = TrainingData.of(pool.load_index(subset), subset, BRIEF)
    batches = data.batches(7)
    tokenizer = build_tokenizer(BRIEF.model)
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    pipeline = pool.to_webdataset(subset, scale=BRIEF, seed=7, first_step=2)
    assert pipeline.num_samples == 18 * 16
    size = 16 // num_ranks
    loaders = []
    for rank in range(num_ranks):
        monkeypatch.setenv("RANK", str(rank))
        texts = pipeline.to_tuple("txt").map(as_text)
        loaders.append([tokenizer(part) for part in DataLoader(texts, size, num_workers=workers, collate_fn=as_list)])
    assert [len(loader) for loader in loaders] == [18] * num_ranks
    for step in range(18):
        found = torch.cat([loader[step] for loader in loaders])
        assert torch.equal(found, batches[step + 2].tokens), step


def as_text(sample):
    return sample[0].decode()


def test_ranks_that_do_not_divide_a_batch_are_refused(pool, subset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with user_error("option-value", match="3 ranks"):
        next(iter(pool.to_webdataset(subset, scale=BRIEF)))


def test_plain_webdataset_stages_follow(pool, subset, expected):
    tuples = list(pool.to_webdataset(subset, order="webdataset").decode("pil").to_tuple("jpg", "txt"))
    assert len(tuples) == sum(expected[1].values())
    image, text = tuples[0]
    assert image.mode == "RGB" and isinstance(text, str)
    stages = pool.to_webdataset(subset, scale="pico").decode("torchrgb").to_tuple("jpg", "txt").batched(64)
    images, texts = next(iter(webdataset.WebLoader(stages, batch_size=None, num_workers=2)))
    assert images.shape == (64, 3, 32, 32) and len(texts) == 64


def test_open_clips_trainer_trains_on_it_in_our_order(pool, subset):
    """The pipeline of open_clip_train.data.get_wds_dataset behind our source: the losses are those of our batches."""
    tokenizer = build_tokenizer(BRIEF.model)

    def preprocess(image):
        return normalise(torch.from_numpy(np.asarray(image))[None], BRIEF)[0]

    stages = (
        pool.to_webdataset(subset, scale=BRIEF, seed=1)
        .decode("pilrgb", handler=webdataset.warn_and_continue)
        .rename(image="jpg;png;jpeg;webp", text="txt")
        .map_dict(image=preprocess, text=lambda text: tokenizer([text])[0].long())
        .to_tuple("image", "text")
        .batched(BRIEF.batch_size, partial=False)
    )
    loader = webdataset.WebLoader(stages, batch_size=None, shuffle=False, num_workers=2, persistent_workers=True)
    loader.num_batches, loader.num_samples = BRIEF.steps, BRIEF.samples_seen
    unaugmented = dataclasses.replace(BRIEF, augmentation=dataclasses.replace(BRIEF.augmentation, pixels=0))
    batches = TrainingData.of(pool.load_index(subset), subset, unaugmented).batches(1)
    ours = [(normalise(batches[step].images, BRIEF), batches[step].tokens.long()) for step in range(BRIEF.steps)]

    class Loader(list):
        num_batches, num_samples = BRIEF.steps, BRIEF.samples_seen

    with recipe_threads(BRIEF):
        losses = [losses_of(each) for each in (loader, Loader(ours))]
    assert len(losses[0]) == BRIEF.steps and losses[0] == losses[1]


class Recorded(open_clip.ClipLoss):
    def forward(self, *arguments, **named):
        losses = super().forward(*arguments, **named)
        self.seen.append(losses["contrastive_loss"].item())
        return losses


def losses_of(loader):
    """Train with open_clip_train.train.train_one_epoch from the same weights; return the loss of every step."""
    model = build_model(BRIEF.model, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BRIEF.learning_rate)
    loss = Recorded()
    loss.seen = []
    arguments = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=None,
        batch_size=BRIEF.batch_size,
        world_size=1,
        rank=0,
        local_rank=0,
        log_every_n_steps=100,
        log_local=False,
        wandb=False,
        save_logs=False,
    )
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
    schedule = cosine_lr(optimizer, BRIEF.learning_rate, BRIEF.warmup_steps, BRIEF.steps)
    train_one_epoch(model, data, loss, 0, optimizer, None, schedule, None, arguments)
    return loss.seen


def test_a_pool_of_shards_only_and_other_members(tmp_path):
    (tmp_path / "pool" / "shards").mkdir(parents=True)
    first = [*members("a.1", 1, text="one"), ("a.1.npz", b"array")]
    write_tar(tmp_path / "pool" / "shards" / "0.tar", [*members("b", 2), *members("c", 3)])
    write_tar(tmp_path / "pool" / "shards" / "1.tar", [(name.replace("a.1", "a1"), data) for name, data in first])
    pool = wb.open_pool(tmp_path / "pool")
    subset = wb.Subset.of(parse_uids([uid(1), uid(1), uid(3)]))
    found = {sample["__key__"]: sample for sample in pool.to_webdataset(subset, order="webdataset")}
    assert set(found) == {"a1", "c"} and found["a1"]["npz"] == b"array" and found["a1"]["txt"] == b"one"
    assert len(list(pool.to_webdataset(order="webdataset"))) == 3
    more_workers = DataLoader(pool.to_webdataset(subset, order="webdataset"), batch_size=None, num_workers=5)
    assert sorted(keys_of(more_workers)) == ["a1", "a1", "c"]
    with user_error("no-samples"):
        pool.to_webdataset(wb.Subset.of(parse_uids([uid(9)])), order="webdataset")
    with user_error("metadata-missing"):
        pool.to_pandas()


def test_captions_of_a_field_of_the_json_become_the_txt(tmp_path):
    (tmp_path / "tars").mkdir()
    captioned = [part for part in members("a", 1, caption="from the json") if not part[0].endswith("txt")]
    write_tar(tmp_path / "tars" / "0.tar", captioned)
    arguments = ["--shards", str(tmp_path / "tars"), "--out", str(tmp_path / "pool"), "--column", "text=caption"]
    assert main(["pool", "import", *arguments]) == 0
    (sample,) = wb.open_pool(tmp_path / "pool").to_webdataset(order="webdataset")
    assert sample["txt"] == b"from the json" and json.loads(sample["json"])["caption"] == "from the json"


def test_what_does_not_fit_together_is_refused(pool, subset):
    with user_error("option-missing", match="scale="):
        pool.to_webdataset(subset)
    with user_error("option-conflict"):
        pool.to_webdataset(subset, order="webdataset", scale="pico")
    with user_error("option-value", match="Did you mean 'webdataset'"):
        pool.to_webdataset(subset, order="webdatase")
    with user_error("option-value", match="first_step"):
        pool.to_webdataset(subset, scale=BRIEF, first_step=20)
    with user_error("unknown-scale"):
        pool.to_webdataset(subset, scale="picco")
