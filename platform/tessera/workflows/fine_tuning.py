"""Training that begins with a trained model's weights, on a new lab's few annotated sections.

What carries over is the network: weights, and the statistics of its batch normalisation. What does not is everything
that was fitted to the parent's data: threshold, optimiser and, by default, the statistics of grey values. A network
learned to see images of mean 0 and spread 1; another microscope's images come to it like that only by their own
statistics.

    parent's bundle --weights--> network --+
                                           +--> training --> bundle, with the parent's name, digest and run
    new sections ---grey statistics--------+
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace

import numpy as np

from tessera.model.bundle import Contract
from tessera.model.spec import UnetSpec
from tessera.settings.train import TrainSettings
from tessera.tracking.models import tell_descendant
from tessera.tracking.runs import Tracker
from tessera.workflows.models import FoundModel, find_model

_log = logging.getLogger(__name__)

FREE = ("padding", "dropout")
"""What a network may change without changing the weights that it wants."""


def parent_of(settings: TrainSettings) -> FoundModel | None:
    """The model that training starts from; None where it starts from chance.

    Raises:
      FileNotFoundError: there is no such bundle.
      ValueError: it is damaged, or its network has other weights than the one to train.
    """
    if settings.start_from is None:
        return None
    parent = find_model(settings.start_from, settings.tracking.uri)
    check_same_weights(settings.network, parent.contract.network, settings.start_from)
    return parent


def check_same_weights(network: UnetSpec, parent: UnetSpec, name: str) -> None:
    """Refuse a network that the parent's weights do not fit; padding and dropout are free.

    Raises:
      ValueError: names what differs and what to set.
    """
    pairs = {field.name: (getattr(network, field.name), getattr(parent, field.name)) for field in fields(UnetSpec)}
    differing = {key: pair for key, pair in pairs.items() if key not in FREE and pair[0] != pair[1]}
    if differing:
        said = " and ".join(f"network.{key}={mine} where it has {its}" for key, (mine, its) in differing.items())
        cure = " ".join(f"--network.{key} {str(its).lower()}" for key, (_, its) in differing.items())
        raise ValueError(
            f"start_from={name}: the network to train is another one, {said}; its weights would not fit. Try {cure}."
        )


def inherit(contract: Contract, parent: FoundModel, *, keep_normalisation: bool) -> Contract:
    """The contract before training, with its parent's name and, on request, its normalisation.

    Args:
      contract: of the new data, its statistics estimated from them.
      parent: what training starts from.
      keep_normalisation: take the parent's statistics of grey values instead.

    Raises:
      ValueError: the parent's statistics are of another dtype or rule than the new data's.
    """
    old = parent.contract
    if not np.allclose(contract.voxel_size_nm, old.voxel_size_nm, rtol=0.01):
        _log.warning(
            "%s learned from voxels of %s nm, these sections have %s nm: it has to learn other sizes",
            parent.name,
            old.voxel_size_nm,
            contract.voxel_size_nm,
        )
    came_from = {"model": parent.name, "digest": parent.digest, "run_id": parent.run_id}
    contract = contract.with_training(contract.threshold, started_from=came_from)
    return _with_normalisation_of(old, contract) if keep_normalisation else contract


def _with_normalisation_of(old: Contract, contract: Contract) -> Contract:
    theirs, ours = (old.input_dtype, old.normalisation.rule), (contract.input_dtype, contract.normalisation.rule)
    if theirs != ours:
        raise ValueError(
            f"keep_normalisation=true: the model's statistics are of {theirs[0]} grey values under the rule "
            f"{theirs[1]}, these sections are {ours[0]} under {ours[1]}: they would be scaled wrongly. Leave it false, "
            f"or give sections of {theirs[0]} and --normalisation {theirs[1]}."
        )
    return replace(contract, normalisation=old.normalisation)


def tell_parent(run: Tracker, parent: FoundModel) -> None:
    """Link a run with the model that it started from and with the run that trained it, both ways."""
    run.tags({"tessera.parent_model": parent.name})
    run.uses_model(parent.name)
    tell_descendant(run, parent.name)
    if parent.run_id is not None:
        run.link("fine_tuned_from", parent.run_id)
