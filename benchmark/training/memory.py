"""A training step and memory: what is freed stays at hand, and running out of it names what would fit."""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from benchmark.models.pixels import normalise
from benchmark.scales import Scale
from benchmark.training.data import Batch
from benchmark.training.ranks import Ranks, divisors, unwrap
from benchmark.training.step import autocast, contrastive_loss

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory(device: str) -> None:
    """On a CPU, have the C library keep freed memory for the next step instead of giving it back to the system.

    A step frees and takes the same blocks again; fresh pages for them take a tenth of a nano run's time.
    """
    try:
        allocator = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library than glibc, or another system
    if device == "cpu":
        allocator(M_TRIM_THRESHOLD, 2**31 - 1)
        allocator(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


@contextmanager
def memory_advice(
    model: nn.Module, batch: Batch, scale: Scale, step: int, accumulation: int, ranks: Ranks
) -> Iterator[None]:
    """Turn running out of memory in a training step into a MemoryError that says which accumulation would fit."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        device = batch.images.device.type
        # The error holds the step's frames, and they its activations, until the caller's `with` has ended.
        traceback.clear_frames(error.__traceback__)
    at_once = len(batch) // accumulation
    if device == "cuda":
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        fitting = fitting_accumulation(
            lambda samples: peak_memory(unwrap(model), batch, scale, samples), torch.cuda.mem_get_info()[1], len(batch)
        )
    else:
        fitting = next((n for n in range(2 * accumulation, len(batch) + 1) if len(batch) % n == 0), None)
    who = f"rank {ranks.rank}, " if ranks.size > 1 else ""
    if fitting is None:
        remedy = "not even one sample at a time fits"
    else:
        does = "would fit" if device == "cuda" else "needs less"
        remedy = (
            f"accumulation={fitting} {does} ({len(batch) // fitting:,} at once), the result the same up to rounding"
        )
    raise MemoryError(f"{who}step {step:,}, {at_once:,} samples at once on {device}: {remedy}")


def fitting_accumulation(peak_at: Callable[[int], int], capacity: int, batch: int) -> int | None:
    """Return the least accumulation whose micro-batch fits into `capacity` bytes, None where none does.

    `peak_at` measures the peak for a number of samples. It is taken to grow along a line, which two small measurements
    give, smaller ones where those do not fit; a tenth is left free.
    """
    for part in (64, 1024, batch):
        few, more = max(1, batch // part), max(1, 2 * batch // part)
        try:
            low, high = peak_at(few), peak_at(more)
            break
        except torch.OutOfMemoryError:
            continue
    else:
        return None
    per_sample = (high - low) / max(1, more - few)
    for accumulation in divisors(batch, up_to=batch):
        if low + per_sample * (batch // accumulation - few) <= 0.9 * capacity:
            return accumulation
    return None


def peak_memory(model: nn.Module, batch: Batch, scale: Scale, samples: int) -> int:
    """Return the GPU's peak in bytes for a step on that many samples, with AdamW's two moments of every parameter."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with autocast(scale, "cuda"):
        outputs = model(normalise(batch.images[:samples], scale), batch.tokens[:samples].long())
        loss = contrastive_loss(outputs["image_features"], outputs["text_features"], outputs["logit_scale"])
    loss.backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated()
    del outputs, loss
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # The moments are there only after the first step: counted where memory shows that they are not.
    return peak + (2 * weights if before < 3 * weights else 0)
