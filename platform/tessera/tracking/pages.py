"""What makes MLflow's pages readable: what an experiment says of itself, its views, and descriptions that link runs.

MLflow shows the text under `NOTE` as markdown. Addresses in it are fragments, so that they hold on whatever host and
port serves the database; they name the kind of work, because a new browser begins with MLflow's pages for chat agents.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import quote

NOTE = "mlflow.note.content"
MAX_NOTE_LENGTH = 8000
"""Of a tag's value: a longer one is refused."""

_KIND = "workflowType=machine_learning"
_WIDTHS_PX = {
    "attributes.`Run Name`": 270,
    "runDateAndNestInfo": 140,
    "attributes.`Models`": 190,
    "attributes.`Dataset`": 300,
    "tags.`tessera.model`": 190,
    "tags.`tessera.output`": 300,
}
_HEADING = "**See also**\n"


@dataclass(frozen=True, slots=True)
class View:
    """A list of runs with columns of its own, in the menu "Views".

    Attributes:
      key: in its address.
      name: in the menu.
      about: what it is for.
      columns: MLflow's names of columns, left to right.
      workflow: the only runs in it; all where it is None.
    """

    key: str
    name: str
    about: str
    columns: tuple[str, ...]
    workflow: str | None = None

    def address(self, experiment_id: str) -> str:
        """Fragment of its page."""
        return f"#/experiments/{experiment_id}/runs?viewStateShareKey={self.key}&{_KIND}"

    def stored(self, rank: int) -> str:
        """The value of the experiment's tag that MLflow reads it from; the highest rank is listed first."""
        shown = ("attributes.`Run Name`", "runDateAndNestInfo", *self.columns)
        state = {
            "searchFilter": f"tags.`tessera.workflow` = '{self.workflow}'" if self.workflow else "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "selectedColumns": list(self.columns),
            "columnOrder": list(shown),
            "columnWidths": {column: _width_px(column) for column in shown},
        }
        return json.dumps({"name": self.name, "createdAt": rank, "state": json.dumps(state)})


def _width_px(column: str) -> int:
    name = column.split("`")[1] if "`" in column else column
    least = 165 if column.startswith("metrics") else 100  # all digits of a score
    return _WIDTHS_PX.get(column, max(least, 24 + 8 * len(name)))


def _metrics(*names: str) -> tuple[str, ...]:
    return tuple(f"metrics.`{name}`" for name in names)


def _params(*names: str) -> tuple[str, ...]:
    return tuple(f"params.`{name}`" for name in names)


VIEWS = (
    View(
        "tessera-results",
        "Results",
        "every run with its scores: `val_` on the sections that a training chose on, `_frozen` where a prediction was "
        "scored at the frozen threshold",
        (
            *_metrics("val_v_rand", "v_rand_frozen", "val_v_info", "v_info_frozen", "loss"),
            "attributes.`Models`",
            "attributes.`Dataset`",
        ),
    ),
    View(
        "tessera-training",
        "Training",
        "loss, scores, speed and the settings that differ most",
        (
            *_metrics("val_v_rand", "val_v_info", "val_threshold", "loss", "samples_per_second"),
            *_params("network.filters", "network.depth", "schedule.steps", "seed"),
            "attributes.`Version`",
            "attributes.`Models`",
            "attributes.`Dataset`",
        ),
        "train",
    ),
    View(
        "tessera-prediction",
        "Prediction",
        "blocks, speed and outputs",
        (
            *_metrics("blocks", "blocks_computed", "blocks_failed", "seconds", "megavoxels_per_second"),
            "tags.`tessera.model`",
            "tags.`tessera.output`",
        ),
        "predict",
    ),
    View(
        "tessera-scores",
        "Scores",
        "what `tessera evaluate` found: at the frozen threshold, and the maximum over thresholds of published tables",
        (
            *_metrics("v_rand_frozen", "v_info_frozen", "pixel_error_frozen", "rand_error_frozen", "threshold_frozen"),
            *_metrics("v_rand_maximum", "v_info_maximum"),
            "tags.`tessera.output`",
        ),
        "evaluate",
    ),
)


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """An experiment's kind, views and description."""
    views = {f"mlflow.sharedViewState.{view.key}": view.stored(len(VIEWS) - i) for i, view in enumerate(VIEWS)}
    links = " | ".join(f"[{view.name}]({view.address(experiment_id)})" for view in VIEWS)
    # MLflow folds all but the first line.
    about = [f"Views of these runs: {links}", "", *(f"- **{view.name}**: {view.about}" for view in VIEWS)]
    last = "Each run's description links to the runs that it came from and that came from it."
    return {
        # The kind decides which pages MLflow offers: training runs, or those for chat agents.
        "mlflow.experimentKind": "custom_model_development",
        **views,
        NOTE: "\n".join([*about, "", last]),
    }


def run_address(experiment_id: str, run_id: str, page: str = "") -> str:
    """Fragment of a run's page; `page` names another than its overview.

    >>> run_address("1", "ab12")
    '#/experiments/1/runs/ab12?workflowType=machine_learning'
    >>> run_address("1", "ab12", "artifacts/after fit.png")
    '#/experiments/1/runs/ab12/artifacts/after%20fit.png?workflowType=machine_learning'
    """
    return f"#/experiments/{experiment_id}/runs/{run_id}{'/' if page else ''}{quote(page)}?{_KIND}"


def link_to(name: str, address: str) -> str:
    r"""A markdown link under a name whose own marks mean nothing.

    >>> link_to("a_b [2]", "#/a")
    '[a\\_b \\[2\\]](#/a)'
    """
    plain = re.sub(r"([\\`*_\[\]<>~|])", r"\\\1", name)
    return f"[{plain}]({address})"


def with_link(note: str, words: str, link: str) -> str:
    r"""A description with one more link, or the same where it is there already or no room is left.

    What a person wrote stays.

    >>> with_link("Our best.", "used by", "[predict x](#/a)")
    'Our best.\n\n**See also**\n\n- used by [predict x](#/a)'
    >>> with_link(_, "used by", "[predict x](#/a)") == _
    True
    """
    if link in note:
        return note
    start = note if _HEADING in note else f"{note}\n\n{_HEADING}".lstrip("\n")
    longer = f"{start}\n- {words} {link}"
    return longer if len(longer) <= MAX_NOTE_LENGTH else note
