"""The health of a run: what its lines say, and Weights & Biases without a network."""

import dataclasses
import json

import pytest
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from benchmark.cli.main import main
from benchmark.scales import SCALES
from benchmark.training import health
from benchmark.training.health import Health, HealthLine
from benchmark.training.step import Curves, StepStats

FOUR_STEPS = dataclasses.replace(SCALES["pico"], samples_seen=256)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "logs" / "health.jsonl").read_text().splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [100.0]
    monkeypatch.setattr(health.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_holds_means_since_the_line_before_and_sums_so_far(tmp_path, clock):
    long = dataclasses.replace(FOUR_STEPS, samples_seen=64 * 600)  # a line every third step, or after ten seconds
    curves = Curves()

    def slow():
        for _ in range(4):
            clock[0] += 0.5
            yield "a batch"

    with Health(tmp_path, 0, long, 0, "cpu") as watch:
        for step, _ in enumerate(watch.waited_for(slow()), 1):
            clock[0] += 1.5
            norm = float("inf") if step == 2 else 2.0 * step
            loss = [4.0, 3.0, 2.0, 9.0][step - 1]
            curves.add(StepStats(loss, 1e-3 * step, 14.0 + step, norm), 1, 2)
            watch.note(step, curves)
    first, second = lines_of(tmp_path)
    assert set(first) == {field.name for field in dataclasses.fields(HealthLine)}
    assert (first["step"], first["samples_seen"], first["loss"]) == (3, 192, 3.0)
    assert (first["learning_rate"], first["logit_scale"]) == (3e-3, 17.0)
    assert (first["grad_norm"], first["skipped"]) == (4.0, 1)  # of steps 1 and 3
    assert (first["samples_per_second"], first["waiting"]) == (32.0, 0.25)
    assert (first["undecodable"], first["repeats"]) == (3, 6)
    assert first["memory_gb"] > 0.01
    assert (second["step"], second["loss"], second["skipped"]) == (4, 9.0, 0)


def test_a_slow_run_has_a_line_at_least_every_ten_seconds(tmp_path, clock):
    long = dataclasses.replace(FOUR_STEPS, samples_seen=64 * 100_000)
    with Health(tmp_path, 0, long, 0, "cpu") as watch:
        for step in range(1, 8):
            clock[0] += 6.0
            watch.note(step, Curves([StepStats(1.0, 1e-3, 14.0, 1.0)]))
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 6, 7]


def records_of(path):
    """Read a run's file: LevelDB's log of protocol buffers (blocks of 32 KiB) behind seven bytes of its own."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < 7 or kind == 0:  # padding to the block's end
            at += left
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = WandbRecord()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history_of(folder):
    """Return what an offline run of Weights & Biases holds: rows, configuration keys, summary."""
    rows, config, summary = [], set(), {}
    for path in sorted(folder.glob("seed-0/logs/wandb/offline-run-*/run-*.wandb")):
        for record in records_of(path):
            rows.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
            config |= {item.key for item in record.run.config.update}
            summary |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
    return [row for row in rows if row], config, summary


def test_wandb_holds_the_curves_and_the_scores_without_a_network(pico_pool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scale = tmp_path / "short.yaml"
    scale.write_text("base: pico\nsamples_seen: 1280\n")
    given = [f"pool_dir={pico_pool}", f"scale={scale}", "exp_dir=exp"]
    assert main(["run", *given, "filters=no_filter", "wandb=offline", "report=false"]) == 0
    rows, config, summary = history_of(tmp_path / "exp")
    training = [row for row in rows if "train/loss" in row]
    lines = lines_of(tmp_path / "exp" / "seed-0")
    assert [float(row["train/loss"]) for row in training] == pytest.approx([line["loss"] for line in lines])
    assert len(training) == 20 and set(training[0]) >= {"train/samples_per_second", "train/waiting", "train/grad_norm"}
    assert config >= {"learning_rate", "batch_size", "recipe_hash", "subset", "seed"}
    entry = json.loads((tmp_path / "exp" / "entry.json").read_text())
    scores = entry["seeds"]["0"]
    assert {name.removeprefix("eval/"): float(value) for name, value in summary.items() if "eval/" in name} == scores

    # A scale of one's own says in all its results that it is not comparable.
    assert "scale 'short' is a custom scale (it differs from 'pico'; recipe hash " in capsys.readouterr().out
    recipe = {"scale": "short", "version": 0, "hash": entry["recipe_hash"], "comparable": False}
    assert entry["comparable"] is False and entry["scale"] == "short"
    seed_dir = tmp_path / "exp" / "seed-0"
    assert json.loads((seed_dir / "checkpoint" / "checkpoint.json").read_text())["made_from"]["recipe"] == recipe
    for path in (seed_dir / "eval").glob("*.json"):
        assert json.loads(path.read_text())["made_from"]["recipe"] == recipe
    assert all(json.loads(line)["recipe"] == recipe for line in (seed_dir / "eval_results.jsonl").open())


def test_without_a_login_online_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["run", "scale=pico", "wandb=online"]) == 2
    assert "wandb=online needs a login: run `wandb login`" in capsys.readouterr().err
    assert not (tmp_path / "pools").exists() and not (tmp_path / "experiments").exists()
    assert main(["run", "scale=pico", "wandb=yes"]) == 2
