"""Ranks: the processes that train together under torchrun, and how they agree. A single process is rank 0 of 1.

Only rank 0 checks, writes and talks. What one rank decides for all (a refusal, a stop) reaches the others first, so
that none waits for one that has gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from benchmark.runtime.console import number_of_environment, rank_of_process
from benchmark.runtime.errors import UserError
from benchmark.runtime.stopping import OtherRankFailed

Result = TypeVar("Result")

# Other ranks wait this long for one that reads, writes a checkpoint or waits for a lock; a dead one is noticed at once.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Tell whether this is the rank that writes."""
        return self.rank == 0

    def run_on_rank0(self, work: Callable[[], Result]) -> Result:
        """Run `work` on rank 0 and hand its result, which is pickled, to all; where it raises, all ranks end."""
        if self.size == 1:
            return work()
        box: list[tuple[bool, Result | None]] = [(False, None)]
        if self.is_first:
            try:
                box = [(True, work())]
            except BaseException:
                distributed.broadcast_object_list(box)
                raise
        distributed.broadcast_object_list(box)
        worked, result = box[0]
        if not worked:
            raise OtherRankFailed
        return result  # type: ignore[return-value]

    def sums(self, *values: float) -> list[float]:
        """Return the sum over all ranks of each number."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)  # on the CPU, so by gloo
        distributed.all_reduce(numbers)
        return numbers.tolist()

    def collect(self, value: Result) -> list[Result]:
        """Return every rank's value, pickled, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def slice_of(self, batch_size: int) -> slice:
        """Return this rank's contiguous part of a global batch."""
        size = batch_size // self.size
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, features: Tensor) -> Tensor:
        """Return the features (n, dimension) of all ranks, (n * size, dimension), gradients flowing back to each."""
        return features if self.size == 1 else _Gathered.apply(features, self)


class _Gathered(torch.autograd.Function):
    """The tensors of all ranks one after the other; a rank's gradient is what all ranks' losses give its part."""

    @staticmethod
    def forward(context: Any, part: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        parts = [torch.empty_like(part) for _ in range(ranks.size)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        return gradient[context.ranks.slice_of(len(gradient))], None


SINGLE_PROCESS = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, for a block; without torchrun this is the only process.

    Raises UserError where a rank has no GPU of its own, and where another rank is lost.
    """
    rank, size = rank_of_process()
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device == "cuda":
        local_rank, gpus = number_of_environment("LOCAL_RANK", 0), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"rank {rank} has no GPU: this machine has {gpus}; start as many ranks as GPUs", code="no-gpu"
            )
        torch.cuda.set_device(local_rank)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield Ranks(rank, size)
        finally:
            distributed.destroy_process_group()
    except RuntimeError as error:
        # gloo has no kind of error of its own: it names its source file, or what became of the connection.
        is_gloos = re.search(r"gloo|[Cc]onnection (closed|reset)", str(error)) is not None
        if not is_gloos and not isinstance(error, distributed.DistError):
            raise
        raise UserError(
            f"another rank has ended, or cannot be reached ({str(error).splitlines()[0]}); what it said stands above",
            code="rank-lost",
        ) from error


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model with its gradients averaged over the ranks (DistributedDataParallel)."""
    if ranks.size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def check_split(batch_size: int, ranks: int, accumulation: int) -> None:
    """Raise ValueError, with what divides, where a batch cannot be cut into equal micro-batches for all ranks."""
    if batch_size % ranks:
        fitting = divisors(batch_size, up_to=8 * ranks)
        raise UserError(
            f"batch_size {batch_size} does not divide over {ranks} ranks; use {_listed(fitting)}", code="option-value"
        )
    local = batch_size // ranks
    if local % accumulation:
        raise UserError(
            f"accumulation={accumulation} does not divide the {local} samples of a rank; "
            f"use {_listed(divisors(local, up_to=max(64, 2 * accumulation)))}",
            code="option-value",
        )


def divisors(number: int, up_to: int) -> list[int]:
    """Return the divisors of a number, in order, up to a limit."""
    return [divisor for divisor in range(1, min(number, up_to) + 1) if number % divisor == 0]


def _listed(numbers: Sequence[int]) -> str:
    texts = [str(number) for number in numbers]
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
