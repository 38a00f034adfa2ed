"""Pools, scores, rules and subsets for notebooks: each function does what a part of `winnow filter` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset, load_subset
from benchmark.registry import FILTERS_DIR, STRATEGIES, get_strategy, load_strategies
from benchmark.runtime.errors import UnknownNameError, UserError
from benchmark.runtime.names import nearest_name
from benchmark.runtime.strategies import CUT_OPTIONS, Strategy, check_options
from benchmark.selection.engine import run_filters
from benchmark.selection.frame_scoring import score_frame
from benchmark.selection.rules import Rule, make_rule

if TYPE_CHECKING:
    from PIL import Image


def open_pool(location: str | Path, *, strict: bool = True) -> Pool:
    """Open a pool in a folder or at a URL (`s3://...`); only the footers of its metadata are read.

    With `strict=False` damaged tars are read as far as they can be. Raises UserError (`pool-not-found`) where there is
    no pool.

    >>> pool = wb.open_pool("pools/nano")
    """
    return Pool(location, strict=strict)


def score(
    frame: pd.DataFrame,
    name: str,
    *,
    features: Mapping[str, np.ndarray] | None = None,
    images: Sequence[Image.Image | None] | None = None,
    device: str = "cpu",
    **options: Any,
) -> pd.Series:
    """Return what a filter says of each row of a DataFrame: (rows,), with the frame's index; nothing is written.

    The values are the filter's own, before any cut: scores (float), keep or drop (bool), copies (int); missing (NaN,
    or NA) where it gives none. A signal's name gives the signal's values. What a filter needs beside the frame's
    columns is handed over: `features` are arrays of the .npz, each (rows, dimension); `images` one picture per row, or
    None; the path of an asset is the option of that name. Signals that it uses are computed as well. `device` is what
    models run on. The filter sees the rows in slices of a few thousand, as in `select`.

    Raises UserError that lists what is missing, and for an unknown filter or option.

    >>> wb.score(frame, "clip_score", arch="b32")
    >>> wb.score(frame, "normsim", features={"l14_img": embeddings}, targets=["targets.npy"])
    """
    load_strategies()
    strategy = get_strategy(name)
    cuts = [cut for cut in CUT_OPTIONS if cut in options]
    if cuts:
        raise UserError(
            f"score() returns the values before a cut, so {cuts[0]}= has no part in it; rule({name!r}, {cuts[0]}=...) "
            "cuts in select()",
            code="option-conflict",
        )
    _refuse_unknown(strategy, options, ())
    rule_of_frame = Rule(name, check_options(strategy, options))
    return score_frame(frame, rule_of_frame, features=features, images=images, device=device)


def rule(name: str, *, fraction: float | None = None, threshold: float | None = None, **options: Any) -> Rule:
    """Return a filter or selector with its options, for `select`.

    Of a filter that scores, `fraction` keeps that share of the pool's rows with the highest scores, `threshold` those
    that score at least so much; without either the filter's declared cut applies. Raises UserError for an unknown
    name, an unknown option, or a value of another type.

    >>> wb.rule("clip_score", arch="b32", fraction=0.2)
    """
    load_strategies()
    strategy = get_strategy(name)
    given = {"fraction": fraction, "threshold": threshold}
    cuts = {cut: value for cut, value in given.items() if value is not None}
    _refuse_unknown(strategy, {**options, **cuts}, CUT_OPTIONS if strategy.has_cut else ())
    return make_rule(name, {**options, **cuts})


def select(
    pool: Pool,
    rules: Sequence[Rule],
    *,
    within: Subset | None = None,
    workers: int = 0,
    device: str = "cpu",
) -> Subset:
    """Return the samples that all rules keep, as `winnow filter` chooses them.

    `within` restricts the choice to an earlier subset. `workers` processes share the pool's shards (0: this process
    alone); a strategy that was registered in a notebook or script runs in this process whatever their number, since
    others cannot import it. Values of strategies in files are cached beside the pool (`signals/`), those of a
    notebook's or script's are not. Raises UserError where the pool lacks what a rule needs, where a strategy fails,
    and where nothing is left.

    >>> subset = wb.select(pool, [wb.rule("basic"), wb.rule("clip_score", fraction=0.2)])
    """
    if not rules:
        raise UserError("select() needs a rule; [wb.rule('no_filter')] keeps the whole pool", code="option-missing")
    plugins = {str(each.loaded.path) for each in STRATEGIES.values() if each.loaded is not None}
    own = sorted(path for path in plugins if Path(path).parent != FILTERS_DIR)
    return run_filters(pool, rules, within=within, workers=workers, device=device, plugins=own).subset


def read_subset(path: str | Path) -> Subset:
    """Read a subset file: .npy as `winnow filter` and DataComp write it, raw pairs, or a parquet's column `uid`.

    A .npy is mapped, not read. Raises UserError where there is no such file (`subset-not-found`), or it is no subset.

    >>> subset = wb.read_subset("experiments/nano/clip_score-1a2b3c4d/subset.npy")
    """
    return load_subset(path)


def _refuse_unknown(strategy: Strategy, options: Mapping[str, object], cuts: Sequence[str]) -> None:
    """Raise UnknownNameError for an option that a strategy does not have."""
    known = [*strategy.options, *cuts]
    for name in options:
        if name not in known:
            told = f"Options: {', '.join(known)}." if known else "It has none."
            raise UnknownNameError(
                f"{strategy.label} has no option {name!r}.{nearest_name(name, known)} {told}",
                code="unknown-option",
            )
