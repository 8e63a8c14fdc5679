"""How fast training samples are augmented on one core, against what a training step eats and against other libraries.

    python tests/benchmarks/augmentation.py

Image, labels and weight map of 512 x 512 through elastic field, rotation, flips, intensities and noise, one thread. The
step is a bare one of configs/isbi2012-cpu.yaml, in the same rounds. Everything is per second of processor time, which
other work on the machine changes least. Prints the table, keeps results/augmentation.json, exits with 1 where an aim is
missed.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import cv2
import numpy as np
from augmentation_peers import PEERS, MakeCrop, Triple
from machine import PACKAGES, ROOT, machine
from pairs import PAIRS, estimate, interleaved, ratio
from report import Aim, Outcome, tell

from tessera.images.augment import Augmentation, rng_for, sample_crop, sample_on_one_thread

MINUTES = 2
CONFIG = ROOT / "configs" / "isbi2012-cpu.yaml"
SECTION_PX, CROP_PX = 512, 256
SECONDS = 0.7
"""Of one measurement of one arm."""


def section(seed: int = 2012) -> Triple:
    """A section with the spectrum of an image, its labels and its weights; intensities in [0, 1] as peers want them."""
    noise = np.random.default_rng(seed).standard_normal((SECTION_PX, SECTION_PX)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    image = (smooth - smooth.min()) / np.ptp(smooth)
    labels = (smooth > 0).astype(np.uint8)
    return image, labels, 1 + 10 * labels.astype(np.float32)


def our_arm(recipe: Augmentation, extent: int = SECTION_PX) -> MakeCrop:
    """One sample as training makes it."""

    def crop(index: int, triple: Triple) -> object:
        return sample_crop(rng_for(0, index), *triple, (extent, extent), recipe)

    return crop


def per_second(make: MakeCrop, triple: Triple, seconds: float = SECONDS) -> float:
    """Triples per second of processor time, of all threads: waiting for a core that others hold does not count."""
    begun, count = time.process_time(), 0
    while time.process_time() - begun < seconds or count < 3:
        make(count, triple)
        count += 1
    return count / (time.process_time() - begun)


def installed_peers(recipe: Augmentation) -> tuple[dict[str, MakeCrop], list[str]]:
    """The arms of the peers that run here, and a line on each that does not."""
    arms, missing = {}, []
    for name, build in PEERS.items():
        try:
            arms[name] = build(recipe)
            arms[name](0, section())
        except ImportError as error:
            missing.append(f"{name} was not measured: {str(error).splitlines()[0] or 'it cannot be imported'}")
    return arms, missing


def outcome(speeds: Mapping[str, list[float]], facts: Mapping[str, object], missing: list[str]) -> Outcome:
    """Figures and aims from triples a second; `step` is samples of 256 x 256 a second and core."""
    ours = speeds["tessera"]
    figures = {f"{name}, triples/s on one core": estimate(values) for name, values in speeds.items() if name != "step"}
    figures["training step, 256 x 256 samples/s and core"] = estimate(speeds["step"])
    aims = [Aim("512 x 512 triples a sample that a step eats", ratio(ours, speeds["step"]), ">=", 5.0)]
    aims += [
        Aim(f"speed over {name}", ratio(ours, values), ">", 1.0) for name, values in speeds.items() if name in PEERS
    ]
    what = (
        f"Augmentation of {SECTION_PX} x {SECTION_PX} triples on one thread, against peers and a training step "
        "(median of interleaved rounds, its interval)"
    )
    return Outcome("augmentation", what, facts, figures, aims, missing, CONFIG)


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    from bare_step import BareLoop, recipe_of, synthetic_batches

    facts = machine((*PACKAGES, "elasticdeform", "albumentations", "monai", "torch"))
    settings = recipe_of(CONFIG)
    bare = BareLoop(settings, synthetic_batches(settings, count=4))
    sample_on_one_thread()
    recipe, triple = settings.augmentation, section()
    peers, missing = installed_peers(recipe)
    makers = {"tessera": our_arm(recipe), f"tessera, {CROP_PX} x {CROP_PX}": our_arm(recipe, CROP_PX), **peers}
    arms: dict[str, Callable[[], float]] = {name: partial(per_second, make, triple) for name, make in makers.items()}
    arms["step"] = lambda: bare.samples_per_second(steps=3, clock=time.process_time)
    for arm in arms.values():
        arm()  # warm
    return tell(outcome(interleaved(arms, PAIRS), facts, missing))


if __name__ == "__main__":
    sys.exit(main())
