"""From pixels to what a model of a recipe takes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.scales import Scale


def normalise(images: Tensor, scale: Scale) -> Tensor:
    """Turn uint8 pictures (n, size, size, 3) into the model's input: (n, 3, size, size) float32."""
    pixels = images.permute(0, 3, 1, 2).contiguous().float().div_(255)  # bytes are quicker to rearrange
    mean = torch.tensor(scale.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(scale.std, device=images.device).view(1, 3, 1, 1)
    return pixels.sub_(mean).div_(std)
