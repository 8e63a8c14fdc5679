"""What a user meets at the command line: help, files of settings, options over them, and messages with a way out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tifffile
from docstring_parser import parse as parse_docstring

from terminal import refusal, tessera
from tessera import __version__
from tessera.cli.main import COMMANDS, Command, build_parser, entry, main, parse
from tessera.settings.predict import PredictSettings
from volumes import grey

Capsys = pytest.CaptureFixture[str]
NAMES = tuple(COMMANDS)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings that would have been run, by command; nothing runs."""
    caught: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        monkeypatch.setitem(
            COMMANDS, name, Command(command.settings, lambda s, n=name: caught.update({n: s}) or "done", command.help)
        )
    return caught


def _yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


# Help


def test_the_version_is_told(capsys: Capsys) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"tessera {__version__}\n"


def test_help_lists_each_command_with_what_it_does(capsys: Capsys) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_fits_a_terminal_and_says_what_it_is_for(
    capsys: Capsys, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    out = capsys.readouterr().out
    summary = (COMMANDS[name].settings.__doc__ or "").splitlines()[0]
    assert summary.split(":")[0].split(",")[0] in " ".join(out.split())
    assert "class 'tessera" not in out and "==SUPPRESS==" not in out
    assert [line for line in out.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_option_lacks_a_help_text(name: str) -> None:
    sub = next(action.choices for action in build_parser()._actions if action.choices)[name]
    options = [action for action in sub._actions if action.option_strings]
    assert len(options) > 5
    assert [action.option_strings[0] for action in options if len(str(action.help or "")) < 10] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained_those_of_list_items_too(name: str) -> None:
    for kind in _groups(COMMANDS[name].settings):
        told = {param.arg_name: param.description for param in parse_docstring(kind.__doc__ or "").params}
        assert [field.name for field in fields(kind) if not told.get(field.name)] == [], kind


def _groups(settings: type) -> list[type]:
    hints = get_type_hints(settings).values()
    inner = [
        kind for hint in hints for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)
    ]
    return [settings, *(group for kind in inner for group in _groups(kind))]


# Commands


def test_without_a_command_the_commands_are_listed(capsys: Capsys, home: Path) -> None:
    assert refusal(capsys, home).startswith("no command is given: choose one of ingest, train, predict")


@pytest.mark.parametrize(
    ("typed", "told"), [("ingst", "Did you mean ingest?"), ("xyzzy", "There are ingest, train, predict")]
)
def test_an_unknown_command_names_the_nearest(capsys: Capsys, home: Path, typed: str, told: str) -> None:
    assert refusal(capsys, home, typed).startswith(f"{typed} is no command. {told}")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("train", "demo")])
def test_a_command_without_settings_says_which_one_it_needs(capsys: Capsys, home: Path, name: str) -> None:
    first = next(field.name for field in fields(COMMANDS[name].settings) if not field.kw_only)
    assert refusal(capsys, home, name).startswith(f"{first} is not given. Try --{first} ")


# Settings from files and options


def test_options_override_the_file_and_the_file_overrides_defaults(seen: dict[str, Any], tmp_path: Path) -> None:
    path = _yaml(tmp_path, "seed: 7\nnetwork: {filters: 5, depth: 2}\noptimiser: {learning_rate: 1e-2}\n")
    assert main(["train", "--config", str(path), "--network.filters", "9"]) == 0
    settings = seen["train"]
    assert (settings.seed, settings.network.filters, settings.network.depth) == (7, 9, 2)
    assert (settings.optimiser.learning_rate, settings.optimiser.warmup_steps) == (0.01, 20)
    assert settings.network.padding == "same"


def test_two_files_are_read_in_order(seen: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nschedule: {steps: 10}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    assert main(["train", "--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]) == 0
    assert (seen["train"].seed, seen["train"].schedule.steps) == (2, 10)


def test_values_arrive_with_their_types(seen: dict[str, Any]) -> None:
    words = "--volume v --model m --output o --tile [1,256,128] --block null --overwrite true --engine serial"
    assert main(["predict", *words.split(), "--roi", "0:1,8:,:16"]) == 0
    settings = seen["predict"]
    assert isinstance(settings, PredictSettings)
    assert (settings.tile, settings.block, settings.roi) == ((1, 256, 128), None, "0:1,8:,:16")
    assert (settings.overwrite, settings.engine, settings.workers) == (True, "serial", 0)
    assert isinstance(settings.tile, tuple)
    assert settings.symmetries is None
    for symmetries in ("4", "null"):
        assert main(["predict", *words.split(), "--symmetries", symmetries]) == 0
        assert str(seen["predict"].symmetries) == {"4": "4", "null": "None"}[symmetries]


@pytest.mark.parametrize(("typed", "least", "most"), [("3", 3, 3), ("2-8", 2, 8)])
def test_workers_are_a_number_or_a_range(
    seen: dict[str, Any], tmp_path: Path, typed: str, least: int, most: int
) -> None:
    path = _yaml(tmp_path, f"resources:\n  workers: {typed}\n")
    for words in (["--config", str(path)], ["--resources.workers", typed]):
        assert main(["train", *words]) == 0
        resources = seen["train"].resources
        assert (resources.worker_range, resources.is_elastic) == ((least, most), most > least)


def test_workers_that_are_neither_are_refused(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    path = _yaml(tmp_path, "resources:\n  workers: [2, 8]\n")
    told = refusal(capsys, home, "train", "--config", str(path))
    assert "give a whole number, such as 4, or a range, such as 2-8" in told


def test_lists_of_sections_come_from_files_and_options(seen: dict[str, Any], tmp_path: Path) -> None:
    item = "{volume: em, labels: cells, sections: 0-3}"
    path = _yaml(tmp_path, f"data:\n  train: [{item}]\n  validation: [{item}]\n")
    more = '[{"volume": "other", "labels": "cells"}]'
    assert main(["train", "--config", str(path), "--data.validation", more]) == 0
    data = seen["train"].data
    # The item's sections are not those of the file's item: they were another volume's.
    assert [(part.volume, part.sections) for part in (*data.train, *data.validation)] == [
        ("em", "0-3"),
        ("other", None),
    ]


def test_a_list_in_a_second_file_replaces_that_of_the_first(seen: dict[str, Any], tmp_path: Path) -> None:
    item, other = "{volume: em, labels: cells, sections: 0-3}", "{volume: other, labels: cells}"
    (tmp_path / "a.yaml").write_text(f"data: {{train: [{item}], validation: [{item}]}}")
    (tmp_path / "b.yaml").write_text(f"data: {{validation: [{other}]}}")
    words = ["train", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert main([*words, "--data.train+", other]) == 0
    data = seen["train"].data
    assert [(part.volume, part.sections) for part in data.train] == [("em", "0-3"), ("other", None)]
    assert [(part.volume, part.sections) for part in data.validation] == [("other", None)]


def test_one_section_may_be_given_by_its_number_on_the_command_line(seen: dict[str, Any]) -> None:
    assert main(["evaluate", "--volume", "v", "--labels", "l", "--sections", "5"]) == 0
    assert str(seen["evaluate"].sections) == "5"


# Unknown keys


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ingest --soruce a", "ingest has no option --soruce. Did you mean --source?"),
        ("train --network.filtrs 3", "train has no option --network.filtrs. Did you mean --network.filters?"),
        ("train --learning_rate 1", "train has no option --learning_rate. Did you mean --optimiser.learning_rate?"),
        ("predict --engin serial", "predict has no option --engin. Did you mean --engine?"),
        ("train --cofnig a.yaml", "train has no option --cofnig. Did you mean --config?"),
        ("evaluate --output a", "evaluate has no option --output. See --help for those there are."),
        ("ingest a.tif", "ingest cannot tell what a.tif is: each value follows its option. Try --source a.tif."),
    ],
)
def test_an_unknown_option_names_the_nearest_of_its_command(capsys: Capsys, home: Path, words: str, told: str) -> None:
    assert refusal(capsys, home, *words.split()) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sede: 3", "train has no setting sede. Did you mean seed?"),
        ("netwrk: {filters: 3}", "train has no setting netwrk.filters. Did you mean network.filters?"),
        ("network: {filtrs: 3}", "train has no setting network.filtrs. Did you mean network.filters?"),
        ("optimizer: {learning_rate: 1}", "no setting optimizer.learning_rate. Did you mean optimiser.learning_rate?"),
        ("data: {traain: []}", "train has no setting data.traain. Did you mean data.train?"),
        ("data: {train: [{volume: a, labelz: b}]}", "item of data.train has no setting labelz. Did you mean labels?"),
        (
            "data: {validation: [{volume: a, labels: b}, {volume: a, labels: b, sectionz: 0-1}]}",
            "an item of data.validation has no setting sectionz. Did you mean sections?",
        ),
        ("data: {train: [{volume: a}]}", "an item of data.train lacks labels: give each of them volume, labels"),
    ],
)
def test_an_unknown_key_in_a_file_names_the_nearest(
    capsys: Capsys, home: Path, tmp_path: Path, text: str, told: str
) -> None:
    assert told in refusal(capsys, home, "train", "--config", _yaml(tmp_path, text))


def test_an_unknown_key_of_an_item_given_as_an_option_names_the_nearest(capsys: Capsys, home: Path) -> None:
    told = refusal(capsys, home, "train", "--data.train", '[{"volume": "a", "labelz": "b"}]')
    assert told == "an item of data.train has no setting labelz. Did you mean labels?"


# Files that hold no settings


def test_a_missing_file_is_named(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    told = refusal(capsys, home, "train", "--config", tmp_path / "gone.yaml")
    assert told == f"--config {tmp_path}/gone.yaml: it does not exist. Give a YAML file of settings."
    assert f"--config {tmp_path}: it is a folder." in refusal(capsys, home, "train", "--config", tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1\n- 2\n", "holds a list where settings should be: write lines such as `seed: 2015`."),
        ("just words", "holds a bare value where settings should be"),
        ("", "holds nothing where settings should be"),
        ("seed: [1\nnetwork: }", "is not valid YAML, line 2: "),
        ("? [1, 2]\n: 3", "is not valid YAML, line 1: found unhashable key. Write `key: value` lines."),
        ("network: 5", "network=5 where a group of settings should be. Write indented lines such as `filters: ...`"),
        ("seed: null", "seed=null: give a whole number, such as 4, or leave it out."),
        ("schedule: {steps: }", "schedule.steps=null: give a whole number"),
        ("network:\n", "network=None where a group of settings should be"),
        ("data: [{volume: a}]", "data=[{'volume': 'a'}] where a group of settings should be"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(
    capsys: Capsys, home: Path, tmp_path: Path, text: str, told: str
) -> None:
    path = _yaml(tmp_path, text)
    message = refusal(capsys, home, "train", "--config", path)
    assert str(path) in message and told in message


def test_a_file_that_is_no_text_is_refused(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"II*\0\xff\xfe\x80")
    assert f"{path} is not valid YAML: it is not UTF-8 text." in refusal(capsys, home, "train", "--config", path)


# Wrong types


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --network.filters many", "network.filters=many: give a whole number, such as 4."),
        ("train --network.filters 1.5", "network.filters=1.5: give a whole number"),
        ("train --optimiser.learning_rate fast", "optimiser.learning_rate=fast: give a number, such as 0.5."),
        ("train --optimiser.name rmsprop", "optimiser.name=rmsprop: give one of adam, sgd."),
        (
            "train --network 5",
            "network=5: give a group of filters, depth, padding, batch_norm, dropout, input_sections.",
        ),
        ("train --data.train em.zarr", "data.train=em.zarr: give a list, each item with volume, labels, sections."),
        ("ingest --voxel_size_nm 50,4,4", "voxel_size_nm=50,4,4: give 3 numbers, such as [50, 4, 4], or null."),
        ("ingest --voxel_size_nm [50,4]", "voxel_size_nm=[50, 4]: give 3 numbers, such as [50, 4, 4], or null."),
        ("ingest --overwrite", "--overwrite needs a value after it: give true or false."),
        ("ingest --overwrite maybe", "overwrite=maybe: give true or false."),
        ("ingest --kind picture", "kind=picture: give one of image, labels."),
        ("predict --tile [1,1]", "tile=[1, 1]: give 3 whole numbers, such as [16, 256, 256], or null."),
        ("segment --threshold high", "threshold=high: give a number, such as 0.5, or null."),
        ("segment --connectivity 5", "connectivity=5: give one of 4, 8, 6, 18, 26."),
        ("predict --symmetries 3", "symmetries=3: give one of 1, 4, 8, or null."),
        ("train --inference.symmetries 2", "inference.symmetries=2: give one of 1, 4, 8."),
        ("train --config", "--config needs a value after it"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_key_and_what_to_give(
    capsys: Capsys, home: Path, words: str, told: str
) -> None:
    assert refusal(capsys, home, *words.split()).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("network: {filters: many}", "network.filters=many: give a whole number"),
        ("schedule: {steps: 1e3}", "schedule.steps=1000.0: give a whole number"),
        ("data: {train: 5}", "data.train=5: give a list, each item with volume, labels, sections."),
        ("data: {train: [5]}", "data.train=5: give a list"),
        (
            "data: {train: [{volume: a, labels: b, sections: 5}]}",
            'data.train.sections=5: give text (a number as text is "',
        ),
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_names_the_key(
    capsys: Capsys, home: Path, tmp_path: Path, text: str, told: str
) -> None:
    assert refusal(capsys, home, "train", "--config", _yaml(tmp_path, text)).startswith(told)


# Outcomes


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (ValueError("no such axis"), 2, "tessera: error: no such axis\n"),
        (FileNotFoundError("no such volume"), 2, "tessera: error: no such volume\n"),
        (RuntimeError("3 of 9 blocks failed"), 1, "tessera: error: 3 of 9 blocks failed\n"),
        (KeyboardInterrupt(), 130, "stopped; what is done is kept, and the same command goes on from there\n"),
    ],
)
def test_errors_become_exit_codes_and_one_message(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, told: str
) -> None:
    def fail(settings: object) -> str:
        raise raised

    monkeypatch.setitem(COMMANDS, "demo", Command(COMMANDS["demo"].settings, fail, "fails"))
    answer = tessera(capsys, "demo")
    assert (answer.code, answer.out, answer.err) == (code, "", told)


def test_a_traceback_is_shown_to_those_who_ask(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_TRACEBACK", "1")
    answer = tessera(capsys, "segment", "--volume", "gone", "--output", "b")
    assert answer.code == 2 and "Traceback" in answer.err and "gone does not exist" in answer.err


def test_a_defect_of_ours_is_not_passed_off_as_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: object) -> str:
        raise TypeError("a bug")

    monkeypatch.setitem(COMMANDS, "demo", Command(COMMANDS["demo"].settings, fail, "fails"))
    with pytest.raises(TypeError, match="a bug"):
        main(["demo"])


def test_parsing_imports_no_engine(home: Path) -> None:
    code = (
        "import sys; from tessera.cli.main import parse; parse(['train']); print([m for m in %r if m in sys.modules])"
    )
    heavy = ("ray", "tensorflow", "keras", "mlflow", "zarr")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_prints_its_result_alone_on_standard_output(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", grey((4, 20, 30)), photometric="minisblack")
    words = f"--source a.tif --output {tmp_path / 'v'} --voxel_size_nm [50,4,4] --engine serial".split()
    done = subprocess.run(
        [sys.executable, "-m", "tessera.cli", "ingest", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'v.zarr'}\n"), done.stderr
    assert "1/1 blocks" in done.stderr and "4x20x30 uint8 in 1 shards" in done.stderr


def test_the_console_script_exits_with_the_code(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["tessera", "demo", "--steps", "0"])
    with pytest.raises(SystemExit, match=r"^2$"):
        entry()
    assert "steps=0: without a step nothing is learned. Try 240." in capsys.readouterr().err


def test_parse_gives_the_command_and_its_settings() -> None:
    name, settings = parse(["demo", "--sections", "12"])
    assert (name, settings.sections, settings.size) == ("demo", 12, 512)
