"""What makes a run exact: threads and sums in one order, and models that allow it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from torch import nn

from benchmark.runtime.errors import UserError
from benchmark.runtime.stopping import OtherRankFailed
from benchmark.scales import Scale
from benchmark.training.ranks import Ranks


class recipe_threads:  # noqa: N801  # reads as a statement
    """Run a block with the recipe's number of CPU threads, on which the sums of floats depend."""

    def __init__(self, scale: Scale) -> None:
        self.threads = scale.threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


@contextmanager
def repeatable_sums(device: str) -> Iterator[None]:
    """On a GPU, have torch take every sum in one order for a block: a killed run ends with the same bytes there too.

    What has no such form then raises RuntimeError.
    """
    if device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition, before it is first used
    is_on, is_mild = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are hidden from type checkers
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # finds faults, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=is_mild)
        settings.fill_uninitialized_memory = fills


@contextmanager
def order_advice(scale: Scale, ranks: Ranks) -> Iterator[None]:
    """Turn torch's refusal of an operation whose sums have no fixed order on a GPU into a ValueError."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        if not ranks.is_first:
            raise OtherRankFailed from error
        operation = str(error).split(" does not have")[0]
        raise UserError(
            f"model {scale.model!r} has an operation whose sums come in any order on a GPU ({operation}), so a run "
            "that was killed would not go on exactly; choose another model, or train this one with device=cpu",
            code="model-unfit",
        ) from error


def refuse_unfit(model: nn.Module, scale: Scale) -> None:
    """Raise ValueError for a model of a custom scale whose runs would not be exact, or whose loss is another."""
    mixing = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if mixing:
        raise UserError(
            f"model {scale.model!r} normalises over the samples of a batch ({mixing[0]}), so its results would depend "
            "on how a batch is cut into ranks and micro-batches; choose a model without BatchNorm",
            code="model-unfit",
        )
    rates = ("p", "prob", "drop_prob")  # of torch's Dropout, open_clip's PatchDropout and timm's DropPath
    dropping = [
        name
        for name, part in model.named_modules()
        if ("Drop" in type(part).__name__ and any(getattr(part, rate, 0.0) for rate in rates))
        or (isinstance(part, nn.MultiheadAttention) and part.dropout)
    ]
    if dropping:
        raise UserError(
            f"model {scale.model!r} drops at random ({dropping[0]}), so a run that was killed would not go on exactly; "
            "choose a model without dropout",
            code="model-unfit",
        )
    if getattr(model, "logit_bias", None) is not None or not isinstance(model, CLIP | CustomTextCLIP):
        raise UserError(f"model {scale.model!r} is not trained by CLIP's loss; choose a CLIP model", code="model-unfit")
