"""How a command's work is done: made once from its options, and handed down to whatever works for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.training.ranks import Ranks


@dataclass(frozen=True)
class Context:
    """What travels together through the stages. It says how work is done, not what comes out of it.

    The device alone shows in results, by the rounding of its sums, and so it stands in the records.
    """

    device: str = "cpu"  # that models compute on
    workers: int | None = None  # processes; None: what suits the stage
    executor: str = "local"  # what runs them, one of runtime.executor.EXECUTORS
    plugins: tuple[str, ...] = ()  # files with strategies and tasks, which every process loads
    strict: bool = True  # damaged tars and evaluation sets of an unexpected size are errors
    wandb: str = "disabled"  # the mode of Weights & Biases
    ranks: Ranks | None = None  # the processes that torchrun started; None: this one alone
