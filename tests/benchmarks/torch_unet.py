"""The product's U-Net in PyTorch, with the same weights: what MONAI slides its window with.

Same-padded, as MONAI wants it: a window's output has the window's extent. Its interior, a halo away from the border, is
what the valid graph gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def torch_unet(model: Any, depth: int) -> Callable[[Any], Any]:
    """A function of (batch, 1, y, x) float32 tensors, channels last, to logits of the same extent.

    Args:
      model: the Keras graph, without batch normalisation.
      depth: number of poolings.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def conv(name: str) -> nn.Conv2d:
        kernel, bias = model.get_layer(name).get_weights()
        made = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[0], padding=kernel.shape[0] // 2)
        return _with(made, kernel.transpose(3, 2, 0, 1), bias)

    def rise(name: str) -> nn.ConvTranspose2d:
        # Keras keeps (y, x, out, in); PyTorch (in, out, y, x).
        kernel, bias = model.get_layer(name).get_weights()
        made = nn.ConvTranspose2d(kernel.shape[3], kernel.shape[2], 2, stride=2)
        return _with(made, kernel.transpose(3, 2, 0, 1), bias)

    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = [f"{side}{level}" for side in ("down", "up") for level in range(depth)] + ["bottom"]
            self.pairs = nn.ModuleDict(
                {name: nn.ModuleList([conv(f"{name}{half}") for half in "ab"]) for name in names}
            )
            self.rises = nn.ModuleList([rise(f"rise{level}") for level in range(depth)])
            self.logits = conv("logits")

        def pair(self, name: str, features: torch.Tensor) -> torch.Tensor:
            for one in self.pairs[name]:
                features = functional.relu(one(features), inplace=True)
            return features

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            skips = []
            for level in range(depth):
                features = self.pair(f"down{level}", features)
                skips.append(features)
                features = functional.max_pool2d(features, 2)
            features = self.pair("bottom", features)
            for level in reversed(range(depth)):
                features = torch.cat([skips.pop(), self.rises[level](features)], dim=1)
                features = self.pair(f"up{level}", features)
            return self.logits(features)

    network = Unet().eval().to(memory_format=torch.channels_last)

    def logits(windows: torch.Tensor) -> torch.Tensor:
        return network(windows.contiguous(memory_format=torch.channels_last))

    return logits


def _with(layer: Any, kernel: np.ndarray, bias: np.ndarray) -> Any:
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer
