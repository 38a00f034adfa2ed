"""A model that encodes batches of images and of tokens, several at a time on a CPU.

Prompts are truncated to the length of the longest in their batch where the text tower is causal: there, what comes
after the end of a prompt has no part in it. On a CPU a batch goes through the model on one thread, and as many batches
at a time as torch has threads.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class TruncatableTower:
    """A text tower in which a token sees only those before it, and which is read at the end mark."""

    mask: Tensor  # (context, context)
    mask_name: str  # of the model's buffer
    positions: Tensor | None  # (context, width), where the tower does not truncate them itself
    end: int | None  # the mark's token; None: the greatest token of a text

    def truncated_to(self, length: int) -> dict[str, Tensor]:
        """Return the tensors that the model is called with instead of its own, for texts of this length."""
        tensors = {self.mask_name: self.mask[:length, :length]}
        return tensors if self.positions is None else {**tensors, "positional_embedding": self.positions[:length]}

    def ends(self, tokens: Tensor) -> Tensor:
        """Return where each row's end mark is, (rows,); 0 in a row without one, which is read at its first token."""
        return tokens.argmax(dim=1) if self.end is None else (tokens == self.end).int().argmax(dim=1)


def truncatable_tower(model: Any) -> TruncatableTower | None:
    """Return the text tower of a model whose texts may be truncated after their end mark; None for any other."""
    if type(model) is open_clip.CLIP:
        tower, pool, end, positions = model, model.text_pool_type, getattr(model, "text_eos_id", None), True
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        tower, pool, end, positions = model.text, model.text.pool_type, getattr(model.text, "eos_id", None), False
        if tower.cls_emb is not None or tower.use_pad_mask:
            return None
    else:
        return None
    if tower.attn_mask is None or pool not in ("argmax", "eos") or (pool == "eos" and end is None):
        return None
    name = "attn_mask" if positions else "text.attn_mask"
    return TruncatableTower(
        tower.attn_mask, name, tower.positional_embedding if positions else None, end if pool == "eos" else None
    )


class BatchEncoder:
    """A model that is called on several batches at a time, each by a thread of its own.

    Threads within a matrix product wait for each other at its end, which costs small models, and large ones on a busy
    machine, most of their time; and how many there are changes a product's last bits.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model = cast(Any, model)  # nn.Module does not know of encode_image and encode_text
        self.size = size
        self.tower = truncatable_tower(model)
        # Models for texts: a truncated one is another while it is called.
        self.readers: SimpleQueue[Any] = SimpleQueue()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for _ in range(size):
            self.readers.put(copy.deepcopy(model, dict(shared)) if self.tower and size > 1 else model)

    def encode_images(self, batches: Iterable[Tensor], prepare: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yield the unit embeddings of each batch once it is prepared, in order."""
        return self._map(lambda batch: self.model.encode_image(prepare(batch), normalize=True), batches)

    def encode_tokens(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the unit embeddings of each batch of tokens, (rows, context or fewer), in order."""
        return self._map(self._encode_tokens, batches)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        reader = self.readers.get()
        try:
            if self.tower is None:
                return reader.encode_text(tokens, normalize=True)
            found = functional_call(reader, self.tower.truncated_to(tokens.shape[1]), (None, tokens))
            return found["text_features"] if isinstance(found, dict) else found[1]
        finally:
            self.readers.put(reader)

    def _map(self, encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Iterator[Tensor]:
        if self.size == 1:
            yield from map(encode, batches)
            return

        def call(batch: Tensor) -> Tensor:
            with torch.inference_mode():  # each thread has its own
                return encode(batch)

        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(max_workers=self.size) as threads:
            try:
                for batch in batches:
                    waiting.append(threads.submit(call, batch))
                    if len(waiting) > self.size:  # one lies ready for who is done first
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)


@contextmanager
def batch_encoder(model: nn.Module, device: str) -> Iterator[BatchEncoder]:
    """Give torch's threads to batches on a CPU; on a GPU one batch follows another."""
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu":
        yield BatchEncoder(model, 1)
        return
    torch.set_num_threads(1)
    try:
        yield BatchEncoder(model, threads)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run without gradients, in evaluation mode and true float32; the model's modes come back at the end."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
