"""The command line: parse into settings, call one workflow, turn errors into messages and exit codes.

Exit codes: 0 done; 1 the work failed in part or whole; 2 the input or the settings cannot be used.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from tessera import __version__
from tessera.cli.config_files import check_config_file, config_files, with_fresh_lists
from tessera.cli.discretion import log_discreetly
from tessera.cli.suggestions import explain, nearest_command
from tessera.settings.audit import AuditSettings
from tessera.settings.clean import CleanSettings
from tessera.settings.demo import DemoSettings
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.ingest import IngestSettings
from tessera.settings.objects import ObjectsSettings
from tessera.settings.predict import PredictSettings
from tessera.settings.pyramid import PyramidSettings
from tessera.settings.segment import SegmentSettings
from tessera.settings.shapes import ShapesSettings
from tessera.settings.status import StatusSettings
from tessera.settings.train import TrainSettings
from tessera.settings.tune import TuneSettings
from tessera.settings.view import ViewSettings
from tessera.tracking.provenance import without_passwords

_log = logging.getLogger("tessera")


@dataclass(frozen=True)
class Command:
    """A sub-command: its settings, and what runs them and returns what to print on standard output.

    `subject` is the setting that a first word without a name stands for, in commands that look at one thing.
    """

    settings: type
    run: Callable[[Any], str]
    help: str
    subject: str | None = None


def _ingest(settings: IngestSettings) -> str:
    if settings.dry_run:
        from tessera.workflows.dry_runs import dry_ingest

        return dry_ingest(settings)
    from tessera.workflows.ingest import ingest

    return str(ingest(settings))


def _train(settings: TrainSettings) -> str:
    from tessera.workflows.train import train

    result = train(settings)
    return "\n".join(
        [
            f"model      {result.model_uri}",
            f"bundle     {result.bundle}",
            f"threshold  {result.contract.threshold}",
            f"run        {result.run_id}",
        ]
    )


def _tune(settings: TuneSettings) -> str:
    from tessera.workflows.tune import tune

    result = tune(settings)
    states = [record.state for record in result.records]
    failed = [f"trial {i} failed: {one.error}" for i, one in enumerate(result.records) if one.state == "failed"]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed"))
    return "\n".join(
        [
            f"best       trial {result.winner}: {settings.metric} {result.records[result.winner].score:.4f}",
            f"searched   {', '.join(f'{key}={value}' for key, value in result.points[result.winner].items())}",
            f"settings   {result.best}",
            f"trials     {counts}",
            f"run        {result.run_id}",
            *failed,
        ]
    )


def _predict(settings: PredictSettings) -> str:
    if settings.dry_run:
        from tessera.workflows.dry_runs import dry_predict

        return dry_predict(settings)
    from tessera.workflows.predict import predict

    return str(predict(settings))


def _segment(settings: SegmentSettings) -> str:
    if settings.dry_run:
        from tessera.workflows.dry_runs import dry_segment

        return dry_segment(settings)
    from tessera.workflows.segment import segment

    return str(segment(settings))


def _evaluate(settings: EvaluateSettings) -> str:
    from tessera.workflows.evaluate import evaluate

    return json.dumps(evaluate(settings), indent=2)


def _objects(settings: ObjectsSettings) -> str:
    from tessera.workflows.objects import objects

    return str(objects(settings))


def _clean(settings: CleanSettings) -> str:
    if settings.dry_run:
        from tessera.workflows.dry_runs import dry_clean

        return dry_clean(settings)
    from tessera.workflows.clean import clean

    return str(clean(settings))


def _shapes(settings: ShapesSettings) -> str:
    from tessera.workflows.shapes import shapes

    return str(shapes(settings))


def _pyramid(settings: PyramidSettings) -> str:
    from tessera.workflows.pyramid import pyramid

    return str(pyramid(settings))


def _status(settings: StatusSettings) -> str:
    from tessera.workflows.status import as_json, as_text, status

    found = status(settings)
    return as_json(found) if settings.json else as_text(found)


def _audit(settings: AuditSettings) -> str:
    from tessera.workflows.audit import audit

    return audit(settings)


def _view(settings: ViewSettings) -> str:
    from tessera.workflows.view import viewing

    with viewing(settings) as told, suppress(KeyboardInterrupt):
        # Before the wait, and not when it ends.
        print(told, flush=True)
        print("Ctrl-C ends it.", file=sys.stderr)
        Event().wait()
    return "no longer served"


def _demo(settings: DemoSettings) -> str:
    from tessera.workflows.demo import demo

    return demo(settings)


COMMANDS = {
    "ingest": Command(IngestSettings, _ingest, "turn TIFF, a folder of slices or an HDF5 dataset into a volume"),
    "train": Command(TrainSettings, _train, "train a U-Net on annotated sections"),
    "predict": Command(PredictSettings, _predict, "predict membrane probability for a volume"),
    "segment": Command(SegmentSettings, _segment, "cut membrane probability into cells"),
    "evaluate": Command(EvaluateSettings, _evaluate, "score membrane probability, or cells, against ground truth"),
    "shapes": Command(ShapesSettings, _shapes, "write surfaces or skeletons of chosen objects", subject="volume"),
    "clean": Command(CleanSettings, _clean, "remove small objects from a label volume and fill holes"),
    "objects": Command(ObjectsSettings, _objects, "list the objects of a label volume", subject="volume"),
    "pyramid": Command(PyramidSettings, _pyramid, "add coarser levels to a volume"),
    "tune": Command(TuneSettings, _tune, "search for better training settings"),
    "status": Command(StatusSettings, _status, "tell how far an output has come", subject="output"),
    "audit": Command(AuditSettings, _audit, "look for seams in a prediction", subject="output"),
    "view": Command(ViewSettings, _view, "show a volume and what it was made from in a browser", subject="volume"),
    "demo": Command(DemoSettings, _demo, "run the whole main job on the synthetic volume"),
}


def build_parser() -> ArgumentParser:
    """The parser of `tessera`, with a sub-command per workflow."""
    parser = ArgumentParser(
        prog="tessera",
        description="Train U-Nets on a few annotated EM sections and batch-segment volumes of any size.",
        exit_on_error=False,
        # An abbreviated key would turn into another setting's on the day a second one begins alike.
        allow_abbrev=False,
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        summary = (command.settings.__doc__ or "").split("\n\n")[0]
        sub = ArgumentParser(description=summary, exit_on_error=False)
        sub.add_argument("--config", action="config", help="YAML file with the settings below; options override it")
        sub.add_class_arguments(command.settings, None)
        commands.add_subcommand(name, sub, help=command.help)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    _log.setLevel(os.environ.get("TESSERA_LOG", "INFO"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    words = list(sys.argv[1:] if arguments is None else arguments)
    log_discreetly()
    try:
        name, settings = parse(words)
        print(COMMANDS[name].run(settings))
    except (ArgumentError, ValueError, OSError) as error:
        return _complain(error, 2)
    except RuntimeError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def parse(words: Sequence[str]) -> tuple[str, Any]:
    """The command and its settings.

    Raises:
      ArgumentError: an unknown command or key, with the nearest known one, or a value of the wrong type.
      FileNotFoundError: a configuration file that is not there.
      ValueError: a configuration file that holds no settings, or a value that settings refuse.
    """
    parser = build_parser()
    command = next((word for word in words if word in COMMANDS), None)
    if command is not None:
        words = _with_subject(words, command)
        for path in config_files(words):
            check_config_file(path, COMMANDS[command].settings)
        words = with_fresh_lists(words, COMMANDS[command].settings)
    try:
        parsed = parser.parse_args(list(words))
    except ArgumentError as error:
        raise ArgumentError(None, _in_our_words(str(error), command)) from None
    values = parser.instantiate(parsed)[parsed.command]
    values.pop("config", None)
    return parsed.command, COMMANDS[parsed.command].settings(**vars(values))


def _with_subject(words: Sequence[str], command: str) -> Sequence[str]:
    """`view my-cells` as the parser knows it: `view --volume my-cells`."""
    subject, place = COMMANDS[command].subject, list(words).index(command) + 1
    if subject is None or place == len(words) or words[place].startswith("-"):
        return words
    return [*words[:place], f"--{subject}", *words[place:]]


def _in_our_words(message: str, command: str | None) -> str:
    if command is None:
        return nearest_command(message, COMMANDS)
    return explain(message, command, COMMANDS[command].settings)


def _complain(error: BaseException, code: int) -> int:
    if os.environ.get("TESSERA_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(without_passwords(f"tessera: error: {error}"), file=sys.stderr)
    return code


def entry() -> None:
    """What the console script and the job files call."""
    sys.exit(main())
