"""NormSim (Wang et al. 2024, arXiv 2405.19547): how much an image is like those of a target data set."""

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.toolbox.embeddings import embedding_blocks, has_embedding, row_cosines, unit_rows


@register_filter(features=["{arch}_img"], assets={"targets": "image_targets_{arch}.npy"}, fraction=0.2)
def normsim(
    rows: pd.DataFrame,
    features: dict[str, np.ndarray],
    *,
    arch: str = "l14",
    norm: str = "max",
    targets: list[str] | None = None,
) -> np.ndarray:
    """Score a pair by the norm of the cosines of its image with all target images: their maximum, or their L2 norm.

    In the paper's words NormSim with p = infinity (norm: max) or p = 2 (l2). `targets` are .npy files of image
    embeddings of the same CLIP (arch: b32 or l14), a row each; the paper takes those of ImageNet's training images, or
    of the training images of 24 evaluation tasks. Both sides are normalised here. A NaN or zero embedding gives no
    verdict.

    The paper keeps 20 % of the pool, out of the 30 % of highest negCLIPLoss: make that subset first, then filter
    `within` it with `fraction=0.6667`. A list of the two filters keeps what is among the top of both, which is fewer.
    """
    if norm not in ("max", "l2"):
        raise ValueError(f"filters.normsim.norm={norm!r} must be max or l2")
    images = unit_rows(features[f"{arch}_img"])
    has_value = has_embedding(images)
    scores = np.full(len(images), np.nan, dtype=np.float32)
    assert targets is not None  # the engine has found them
    dimension = images.shape[1]
    blocks = (
        unit_rows(block)
        for path in targets
        for block in embedding_blocks(path, dimension, option="filters.normsim.targets")
    )
    if norm == "max":
        scores[has_value] = -np.inf
        for others in blocks:
            nearest = (images[has_value] @ others.T).argmax(axis=1)
            # Row by row once more, so that equal images tie to the last bit.
            scores[has_value] = np.maximum(scores[has_value], row_cosines(images[has_value], others[nearest]))
    else:
        # |G f|^2 = f (G'G) f: (dimension, dimension) stands for all targets.
        products = sum(np.asarray(others.T @ others, dtype=np.float64) for others in blocks)
        wide = images[has_value].astype(np.float64)
        scores[has_value] = np.sqrt(np.maximum(np.einsum("ij,ij->i", wide @ products, wide), 0))
    return scores
