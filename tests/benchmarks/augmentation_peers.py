"""The same augmentation in other libraries, each as its users would write it for speed.

Every arm takes an image, labels and a weight map of one section and does the work of `configs/isbi2012-cpu.yaml`: a
smooth random field of 6.8 px (root mean square) whose gradient is 0.11 px a px, any rotation, both flips, contrast,
brightness, gamma and noise; image bicubic, labels nearest, weights linear, mirrored at the edge. Where a library has no
such part, the arm uses ours or does less, so that a comparison errs in the peer's favour:

- elasticdeform deforms and rotates in one map; its intensities are ours.
- albumentations warps twice, for the field and for the rotation, as it must; image and weights are two channels of one
  array, which is faster than two targets, and so the weights are bicubic too.
- MONAI's field and rotation are one map; `mode` is per key. PyTorch has one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tessera.images.augment import Augmentation, jitter_intensity

Triple = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]
MakeCrop = Callable[[int, Triple], Any]
"""(index, section) -> one augmented triple of the section's extent."""

# Found by measuring 100 fields: those of albumentations have the root mean square and the gradient of ours.
ALBUMENTATIONS_ALPHA, ALBUMENTATIONS_SIGMA = 1280.0, 60.0


def elasticdeform_arm(recipe: Augmentation) -> MakeCrop:
    """One deformation with rotation, flips as views, our intensities."""
    from elasticdeform import deform_grid

    def crop(index: int, triple: Triple) -> Any:
        rng = np.random.default_rng(index)
        nodes = rng.normal(0.0, recipe.elastic_sigma_px, size=(2, 6, 6))
        angle = rng.uniform(-recipe.rotation_degrees, recipe.rotation_degrees)
        image, labels, weights = deform_grid(list(triple), nodes, order=[3, 0, 1], mode="mirror", rotate=angle)
        signs = tuple(slice(None, None, sign) for sign in rng.choice([-1, 1], 2))
        flipped = [np.ascontiguousarray(one[signs]) for one in (image, labels, weights)]
        return jitter_intensity(rng, flipped[0], recipe), flipped[1], flipped[2]

    return crop


def albumentations_arm(recipe: Augmentation) -> MakeCrop:
    """Its transforms, composed; intensities on the image channel alone."""
    import albumentations as alb

    turn = recipe.rotation_degrees
    sampling = {"interpolation": cv2.INTER_CUBIC, "border_mode": cv2.BORDER_REFLECT_101, "p": 1.0}
    geometry = alb.Compose(
        [
            alb.ElasticTransform(ALBUMENTATIONS_ALPHA, ALBUMENTATIONS_SIGMA, noise_distribution="gaussian", **sampling),
            alb.Rotate((-turn, turn), **sampling),
            alb.HorizontalFlip(p=0.5),
            alb.VerticalFlip(p=0.5),
        ]
    )
    gamma = (100 / (1 + recipe.gamma), 100 * (1 + recipe.gamma))
    intensity = alb.Compose(
        [
            alb.RandomBrightnessContrast(recipe.brightness, recipe.contrast, p=1.0),
            alb.RandomGamma(gamma, p=1.0),
            alb.GaussNoise((recipe.noise_sigma, recipe.noise_sigma), p=1.0),
        ]
    )

    def crop(index: int, triple: Triple) -> Any:
        moved = geometry(image=np.dstack((triple[0], triple[2])), mask=triple[1])
        image = np.ascontiguousarray(moved["image"][..., 0])
        return intensity(image=image)["image"], moved["mask"], moved["image"][..., 1]

    return crop


def monai_arm(recipe: Augmentation) -> MakeCrop:
    """Its dictionary transforms on one thread."""
    import torch
    from monai import transforms as mt

    torch.set_num_threads(1)
    keys, sigma = ["image", "labels", "weights"], recipe.elastic_sigma_px
    augmented = mt.Compose(
        [
            mt.Rand2DElasticd(
                keys,
                spacing=recipe.elastic_spacing_px,
                magnitude_range=(sigma, sigma),
                prob=1.0,
                rotate_range=np.radians(recipe.rotation_degrees),
                mode=["bicubic", "nearest", "bilinear"],
                padding_mode="reflection",
            ),
            mt.RandFlipd(keys, prob=0.5, spatial_axis=0),
            mt.RandFlipd(keys, prob=0.5, spatial_axis=1),
            mt.RandScaleIntensityd("image", recipe.contrast, prob=1.0),
            mt.RandShiftIntensityd("image", recipe.brightness, prob=1.0),
            mt.RandAdjustContrastd("image", prob=1.0, gamma=(1 / (1 + recipe.gamma), 1 + recipe.gamma)),
            mt.RandGaussianNoised("image", prob=1.0, std=recipe.noise_sigma, sample_std=False),
        ]
    )

    def crop(index: int, triple: Triple) -> Any:
        return augmented({key: torch.from_numpy(one)[None] for key, one in zip(keys, triple, strict=True)})

    return crop


PEERS: dict[str, Callable[[Augmentation], MakeCrop]] = {
    "elasticdeform": elasticdeform_arm,
    "albumentations": albumentations_arm,
    "MONAI": monai_arm,
}
