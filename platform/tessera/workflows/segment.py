"""Membrane probability to cells, by one of two methods.

    components    what is not membrane and touches is one cell                                       (components.py)
    watershed     fragments around what is far from membranes, merged by what lies between them      (watershed.py)

Both run block by block, and their ids are the whole volume's: consecutive, and the same for any worker count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tessera.settings.places import home, input_path
from tessera.settings.segment import SegmentSettings
from tessera.storage.lease import Lease
from tessera.storage.locations import Place
from tessera.storage.volumes import Volume, open_volume
from tessera.tracking.runs import check_tracking, tracking_uri
from tessera.workflows.block_jobs import session
from tessera.workflows.components import plan_segmentation, run_passes
from tessera.workflows.outputs import OutputPlan, claimed_output, open_finished, tracked_output
from tessera.workflows.preflight import log_forecast
from tessera.workflows.reporting import JobReports, reporting
from tessera.workflows.segment_pictures import picture_cells
from tessera.workflows.watershed import plan_watershed, run_watershed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentJob:
    """A checked segmentation.

    Attributes:
      output: the label volume to be made.
      run: all passes over it, once it is claimed; gives the number of cells.
      fragments: where the fragments are that cells are merged from; None without.
    """

    output: OutputPlan
    run: Callable[[JobReports, Lease], int]
    fragments: Place | None = None


def segment(settings: SegmentSettings) -> Place:
    """Run the workflow; returns the label volume's path.

    Raises:
      ValueError, OSError: something does not fit, before any work is done.
      BlocksFailedError: some blocks were given up, after the rest was done.
    """
    check_tracking(tracking_uri(settings.tracking.uri, home()))
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    job = plan_job(settings, volume)
    log_forecast(job.output)
    with (
        session(settings),
        claimed_output(job.output, settings) as lease,
        tracked_output(job.output, settings, {}) as run,
        reporting(run, job.output.path) as reports,
    ):
        if volume.attributes.get("run_id"):
            run.link("predicted_by", volume.attributes["run_id"])
        drawn = open_volume(job.output.path).attributes.get("complete", False)
        cells = job.run(reports, lease)
        if not drawn:
            fragments = None if job.fragments is None else open_volume(job.fragments)
            picture_cells(run, volume, fragments, open_volume(job.output.path))
    _log.info("%s: %d cells", job.output.path, cells)
    return job.output.path


def plan_job(settings: SegmentSettings, volume: Volume) -> SegmentJob:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      ValueError: see `plan_segmentation` and `plan_watershed`.
    """
    if settings.method == "watershed":
        whole = plan_watershed(settings, volume)
        return SegmentJob(whole.output, partial(run_watershed, settings, whole), whole.made.path)
    plan, output = plan_segmentation(settings, volume)
    return SegmentJob(output, partial(run_passes, settings, plan, output))
