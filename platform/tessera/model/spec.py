"""What a U-Net is made of, as a value: settings, bundle and graph all read the same one.

This module imports no Keras, so that command lines and drivers can speak of networks without paying for TensorFlow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tessera.geometry.arithmetic import Arithmetic, LayerRecord, fold, unet_records
from tessera.geometry.network_cost import NetworkCost, unet_cost


@dataclass(frozen=True)
class UnetSpec:
    """The 2015 U-Net's free choices (Ronneberger, Fischer and Brox 2015, figure 1: 64 filters, depth 4, valid).

    Args:
      filters: feature channels of the first level; each pooling doubles them.
      depth: number of poolings.
      padding: how training pads its convolutions; inference always runs the valid graph on real context.
      batch_norm: normalise after each 3x3 convolution, with frozen statistics at inference.
      dropout: rate at the end of the contracting path; 0 switches it off.
      input_sections: sections the network sees of a volume to predict the middle one, each as a channel: 1 is 2D, 3, 5
        and so on are 2.5D.
    """

    filters: int = 32
    depth: int = 4
    padding: Literal["valid", "same"] = "valid"
    batch_norm: bool = False
    dropout: float = 0.5
    input_sections: int = 1

    def __post_init__(self) -> None:
        if self.filters < 1:
            raise ValueError(
                f"filters={self.filters}: a network needs at least one feature channel. The least is 1; try 32."
            )
        if not 1 <= self.depth <= 6:
            legal = min(max(self.depth, 1), 6)
            raise ValueError(f"depth={self.depth}: 1 to 6 poolings are supported (the paper has 4). Try {legal}.")
        if self.padding not in ("valid", "same"):
            raise ValueError(f"padding={self.padding!r} is unknown. Try 'valid' or 'same'.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1): at 1 nothing would be learned. Try 0.5.")
        if self.input_sections < 1 or self.input_sections % 2 == 0:
            raise ValueError(
                f"input_sections={self.input_sections}: the section predicted is the middle one, and an even number "
                f"has none. Try {max(1, self.input_sections + 1)}."
            )

    @property
    def records(self) -> tuple[LayerRecord, ...]:
        """The layers on the longest path, as trained."""
        return unet_records(self.depth, self.padding, self.input_sections)

    @property
    def arithmetic(self) -> Arithmetic:
        """Sizes, halo and phase of the valid graph."""
        return fold(self.records)

    @property
    def cost(self) -> NetworkCost:
        """Operations and bytes of a pass of the valid graph."""
        return unet_cost(self.depth, self.filters, self.input_sections, self.padding)

    def input_extent(self, crop: int) -> int:
        """In-plane input pixels that training needs to score `crop` pixels.

        >>> UnetSpec(padding="valid").input_extent(388), UnetSpec(padding="same").input_extent(256)
        (572, 256)

        Raises:
          ValueError: the crop is illegal for this network; the nearest legal one is named.
        """
        axis = self.arithmetic.axes[2]
        margin = axis.margin if self.padding == "valid" else 0
        size = crop + 2 * margin
        legal = axis.nearest_legal_input(size) if margin else max(1, round(crop / axis.period)) * axis.period
        if size != legal:
            raise ValueError(
                f"crop={crop} px is illegal for a {self.padding} U-Net of depth {self.depth}: a pooling window would "
                f"be cut in half. Try crop={legal - 2 * margin}."
            )
        return size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for contract.json."""
        return asdict(self)
