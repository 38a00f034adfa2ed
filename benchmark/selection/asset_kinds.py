"""Kinds of assets that are no plain files: each knows how it is found, what identifies it, and where it lies.

A strategy names one of them where it would name a file: `assets={"wordnet_dir": WORDNET}`. A new kind is a class here
and a line in KINDS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import as_location
from benchmark.runtime.storage import hash_file

WORDNET = "wordnet"  # a folder of WordNet 3.0's files, or nltk's archive of it; the package brings its own tables
EVALUATION_SETS = "evaluation sets"  # a folder of them, <pool_dir>/eval where no option names another
CLIP_WEIGHTS = "weights of the CLIP model {clip_model}"
NO_WEIGHTS = CLIP_WEIGHTS.format(clip_model=None)  # the one asset that a strategy does without


class AssetKind(Protocol):
    """What has names, is found in a way of its own, and is known by a hash of what counts in it."""

    def has(self, name: str) -> bool:
        """Tell whether a name is of this kind."""

    def find(self, name: str, given: str | None, pool_dir: Path, where: str) -> list[Path]:
        """Return what the option `where` names, or what there is without one; raises UserError naming the option."""

    def hash(self, name: str, path: Path) -> str:
        """Return the sha256 of what counts in what was found."""

    def default_place(self, name: str) -> str:
        """Say where it is looked for while no option names another."""


class _WordNet:
    def has(self, name: str) -> bool:
        return name == WORDNET

    def find(self, name: str, given: str | None, pool_dir: Path, where: str) -> list[Path]:
        from benchmark.toolbox.wordnet import find_wordnet

        return [find_wordnet(given and str(local_copy(as_location(given))), option=where)]

    def hash(self, name: str, path: Path) -> str:
        from benchmark.toolbox.wordnet import hash_wordnet

        return hash_wordnet(path)

    def default_place(self, name: str) -> str:
        return "WordNet 3.0, which comes with Winnow"


class _EvaluationSets:
    def has(self, name: str) -> bool:
        return name == EVALUATION_SETS

    def find(self, name: str, given: str | None, pool_dir: Path, where: str) -> list[Path]:
        from benchmark.toolbox.decontamination import find_evaluation_sets

        return [find_evaluation_sets(given, pool_dir, where)]

    def hash(self, name: str, path: Path) -> str:
        from benchmark.toolbox.decontamination import hash_evaluation_images

        return hash_evaluation_images(path)

    def default_place(self, name: str) -> str:
        return "<pool_dir>/eval"


class _ClipWeights:
    prefix = CLIP_WEIGHTS.format(clip_model="")

    def has(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def find(self, name: str, given: str | None, pool_dir: Path, where: str) -> list[Path]:
        from benchmark.toolbox.encoders import find_weights

        weights = find_weights(name.removeprefix(self.prefix), given, where)
        return [] if weights is None else [weights]

    def hash(self, name: str, path: Path) -> str:
        from benchmark.toolbox.encoders import hash_weights

        return hash_weights(name.removeprefix(self.prefix), path, hash_file)

    def default_place(self, name: str) -> str:
        return "those that clip_model brings, where it does"


KINDS: tuple[AssetKind, ...] = (_WordNet(), _EvaluationSets(), _ClipWeights())


def special_kind(name: str) -> AssetKind | None:
    """Return the kind of an asset that is no plain file; None for a plain file's name."""
    return next((kind for kind in KINDS if kind.has(name)), None)
