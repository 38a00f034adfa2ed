"""A model that turns an evaluation's images, texts and classes into embeddings; a kind's `predict` is handed one.

Images and texts go through the model in float32 and in batches of one fixed size, the last one padded, so a result
does not depend on what else is evaluated. An image goes through it once, also where several tasks share their images;
so does a class whose name and templates several tasks share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmark.evaluation import decoding
from benchmark.evaluation.batch_encoder import BatchEncoder
from benchmark.evaluation.eval_sets import hash_images
from benchmark.evaluation.preprocess import Preprocess
from benchmark.evaluation.samples import Sample
from benchmark.runtime.errors import UserError

PROMPTS_AT_ONCE = {"cpu": 64, "cuda": 512}
TRUNCATED_TO_MULTIPLE = 16  # tokens: few lengths, so large batches; with 8 the last bits differed from full length's

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit embeddings of texts, each distinct text once."""

    distinct: Tensor  # (distinct texts, dim), float32
    rows: list[int]  # each text's row


class ImageCache:
    """Embeddings of images that a later task has too: sets with the same images, byte for byte, in the same order.

    `images` has a signature for each task to come, of its images' keys and sizes (`Contents.images`).
    """

    def __init__(self, images: Iterable[str]) -> None:
        self.left = Counter(images)
        self.embeddings: dict[str, Tensor] = {}

    def encode(self, signature: str, samples: Sequence[Sample], encode: Callable[[], Tensor]) -> Tensor:
        """Return the embeddings that `encode` gives, or gave for the same images."""
        self.left[signature] -= 1  # only where two tasks share it are the bytes compared
        if not self.left[signature] and not any(key.startswith(signature) for key in self.embeddings):
            return encode()
        key = signature + hash_images(samples)
        if key not in self.embeddings:
            self.embeddings[key] = encode()
        found = self.embeddings[key]
        if not self.left[signature]:
            self.embeddings = {key: each for key, each in self.embeddings.items() if not key.startswith(signature)}
        return found


class ModelEncoder:
    """A model with its tokenizer and preprocessing, for all tasks of an evaluation.

    `workers` processes decode images, threads of this one where it is 0; `bar` counts the images that are done.
    """

    def __init__(
        self,
        batches: BatchEncoder,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        device: str = "cpu",
        workers: int = 0,
        cache: ImageCache | None = None,
        bar: Any = None,
    ) -> None:
        self.batches = batches
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(preprocess.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.device = device
        self.workers = workers
        self.cache = cache or ImageCache([])
        self.bar = bar
        self.padding = int(tokenizer([""])[0, -1])  # not 0 with every tokenizer
        self.classes: dict[tuple[str, tuple[str, ...]], Tensor] = {}  # class name, templates -> unit embedding
        self.num_truncated = 0  # texts that fill the context

    def encode_classes(self, classnames: Sequence[str], templates: Sequence[str], task_name: str) -> Tensor:
        """Return each class's unit embedding, (classes, dim): the mean of its prompts' unit embeddings."""
        keys = [(name, tuple(templates)) for name in classnames]
        wanted = [key for key in dict.fromkeys(keys) if key not in self.classes]
        if wanted:
            prompts = [template.replace("{c}", name) for name, _ in wanted for template in templates]
            texts = self.encode_texts(prompts, task_name)
            of_prompts = texts.distinct[texts.rows].view(len(wanted), len(templates), -1)
            self.classes |= zip(wanted, nn.functional.normalize(of_prompts.mean(dim=1), dim=-1), strict=True)
        return torch.stack([self.classes[key] for key in keys])

    def encode_images(self, samples: Sequence[Sample], task_name: str) -> Tensor:
        """Return unit embeddings in float32, (samples, dim)."""
        counts: deque[int] = deque()
        embeddings = []

        def batches() -> Iterator[Tensor]:
            for batch in decoding.decoded_batches(samples, self.preprocess, self.workers, threads=self.batches.size):
                counts.append(len(batch))
                yield batch

        for encoded in self.batches.encode_images(batches(), self._prepare):
            embeddings.append(encoded[: counts[0]].float())
            num_done = counts.popleft()
            if self.bar is not None:
                self.bar.update(num_done)
        together = torch.cat(embeddings)
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            key = samples[int(bad[0])].key
            raise UserError(
                f"task {task_name!r}: the model's embedding of image {key!r} is not finite", code="model-unfit"
            )
        return together

    def _prepare(self, batch: Tensor) -> Tensor:
        """Return a batch of decoded images as the model's input, whole and normalised."""
        whole = _padded(batch, decoding.BATCH_SIZE)
        pixels = whole.to(self.device).permute(0, 3, 1, 2).to(torch.float32).div(255)
        return (pixels - self.mean) / self.std

    def encode_texts(self, texts: Sequence[str], task_name: str) -> TextEmbeddings:
        """Return unit embeddings of texts."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenizer(list(distinct))  # (distinct, context)
        self.num_truncated += int((tokens[:, -1] != self.padding).sum())
        lengths = self._lengths(tokens)
        order = torch.argsort(lengths, stable=True)
        together: Tensor | None = None
        at_once = PROMPTS_AT_ONCE[torch.device(self.device).type]
        bar = tqdm(total=len(tokens), desc=f"{task_name}: prompts", unit="prompt", disable=None, leave=False)
        batches = [
            rows
            for length in sorted(set(lengths.tolist()))
            for rows in torch.split(order[lengths[order] == length], at_once)
        ]
        truncated = (_padded(tokens[rows, : lengths[rows[0]]], at_once).to(self.device) for rows in batches)
        with bar:
            for rows, encoded in zip(batches, self.batches.encode_tokens(truncated), strict=True):
                if together is None:
                    together = encoded.new_empty(len(tokens), encoded.shape[1], dtype=torch.float32)
                together[rows.to(together.device)] = encoded[: len(rows)].float()
                bar.update(len(rows))
        assert together is not None
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            text = list(distinct)[int(bad[0])]
            raise UserError(
                f"task {task_name!r}: the model's embedding of text {text!r} is not finite", code="model-unfit"
            )
        return TextEmbeddings(together, [distinct[text] for text in texts])

    def _lengths(self, tokens: Tensor) -> Tensor:
        """Return how many tokens of each row, (rows,), the text tower needs, in steps of TRUNCATED_TO_MULTIPLE."""
        context = tokens.shape[1]
        tower = self.batches.tower
        if tower is None:
            return torch.full((len(tokens),), context)
        step = TRUNCATED_TO_MULTIPLE
        # What a row without the end mark is read at, its first token, is in every length.
        return ((tower.ends(tokens) + step) // step * step).clamp(max=context)


@dataclass(frozen=True)
class TaskEncoder:
    """A model as one task asks it. Embeddings have unit length and are float32 tensors, (items, dim)."""

    model: ModelEncoder
    task_name: str
    images: str  # the signature of the task's images, `Contents.images`

    def encode_images(self, samples: Sequence[Sample]) -> Tensor:
        """Return the embeddings of the set's images, all of them and in order: once a task."""
        return self.model.cache.encode(self.images, samples, lambda: self.model.encode_images(samples, self.task_name))

    def encode_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        """Return the embeddings of texts; `similarities` takes `.distinct`."""
        return self.model.encode_texts(texts, self.task_name)

    def encode_classes(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return an embedding per class: the mean of its prompts', a template with its name in place of {c}."""
        return self.model.encode_classes(classnames, templates, self.task_name)

    def similarities(self, images: Tensor, texts: Tensor) -> np.ndarray:
        """Return the inner products, (images, texts)."""
        # In blocks of one size: a product's last bits depend on its shape.
        blocks = [
            (_padded(batch, decoding.BATCH_SIZE) @ texts.T)[: len(batch)]
            for batch in torch.split(images, decoding.BATCH_SIZE)
        ]
        return torch.cat(blocks).cpu().numpy()


def _padded(batch: Tensor, size: int) -> Tensor:
    """Repeat the last row until the batch is full."""
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])
