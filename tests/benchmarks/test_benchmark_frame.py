"""The benchmarks' frame: what a median is worth, what is kept, what is found, and who has the turn."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import bench
import pytest
from bystander import bystander
from kept import kept_rounds
from machine import ROOT, commit, digest, machine
from pairs import estimate, interleaved, ratio
from report import Aim, Outcome, tell
from turns import grant, segment_of, tell_speed, wait_for


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = random.Random(3)
    found = [estimate([rng.lognormvariate(0, 1) for _ in range(7)]) for _ in range(3000)]
    held = sum(one.low <= 1 <= one.high for one in found) / len(found)
    assert abs(held - found[0].coverage) < 0.01
    assert found[0].coverage > 0.95


def test_noise_that_hits_both_arms_alike_leaves_their_ratio() -> None:
    """The machine's speed changes by a factor of ten between rounds; the arms differ by a fifth."""
    rng = random.Random(0)
    speed = {"now": 1.0}

    def arm(factor: float) -> float:
        return factor * speed["now"]

    ours, theirs = [], []
    for _ in range(7):
        speed["now"] = rng.uniform(1, 10)
        once = interleaved({"a": lambda: arm(1.2), "b": lambda: arm(1.0)}, pairs=1)
        ours += once["a"]
        theirs += once["b"]
    assert ratio(ours, theirs).median == pytest.approx(1.2)
    assert ratio(ours, theirs).high - ratio(ours, theirs).low < 1e-9 < max(ours) - min(ours)


def test_no_measurement_is_an_error() -> None:
    with pytest.raises(ValueError, match="no measurement arrived"):
        estimate([])


def test_what_is_kept_says_on_what_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "demo.yaml"
    one = estimate([1.0, 2.0, 3.0])
    aims = [Aim("speed", one, ">=", 1.5), Aim("seconds over", one, "<=", 1.5)]
    code = tell(Outcome("trial", "a trial", machine(), {"speed, 1/s": one}, aims, ["a note"], config), tmp_path)
    kept = json.loads((tmp_path / "trial.json").read_text())
    assert code == 1, "the second aim was missed"
    assert [aim["met"] for aim in kept["aims"].values()] == [True, False]
    assert kept["config_sha256"] == digest(config)
    assert kept["commit"] == commit()
    assert {"cores", "memory_gib", "processor", "packages", "load_average"} <= set(kept["machine"])
    assert kept["machine"]["packages"]["numpy"][0].isdigit()
    printed = capsys.readouterr().out
    assert "MISSED" in printed
    assert "a note" in printed


def test_every_short_benchmark_is_found_and_can_be_told_from_the_frame() -> None:
    found = bench.benchmarks()
    assert {"augmentation", "train_overhead", "train_scaling", "first_step"} <= set(bench.chosen(None, found))
    assert not {"pairs", "machine", "report", "turns", "bench"} & set(found)
    for name in found:
        assert "def main(" in (bench.HERE / f"{name}.py").read_text()


def test_a_benchmark_that_does_not_exist_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"there is no such benchmark.*Try augmentation"):
        bench.chosen("augmentations", bench.benchmarks())


def test_turns_alternate_between_processes_and_carry_what_was_measured(tmp_path: Path) -> None:
    def worker() -> None:
        for speed in (2.0, 4.0):
            wait_for(tmp_path, "worker", patience_s=20)
            tell_speed(tmp_path, "worker", speed)

    other = threading.Thread(target=worker)
    other.start()
    assert [segment_of(tmp_path, "worker"), segment_of(tmp_path, "worker")] == [2.0, 4.0]
    other.join()


def test_a_turn_that_never_comes_names_whoever_has_it(tmp_path: Path) -> None:
    grant(tmp_path, "ray")
    with pytest.raises(TimeoutError, match=r"bare waited 0\.05 s while 'ray' had the turn"):
        wait_for(tmp_path, "bare", patience_s=0.05)


def test_a_benchmark_that_was_stopped_goes_on_with_the_rounds_it_has(tmp_path: Path) -> None:
    calls: list[str] = []

    def arm(name: str, patience: int) -> float:
        if len(calls) == patience:
            raise KeyboardInterrupt
        calls.append(name)
        return float(len(calls))

    def run(patience: int, of: str = "this") -> dict[str, list[float]]:
        arms = {name: lambda name=name: arm(name, patience) for name in "ab"}
        return kept_rounds("trial", {"of": of}, arms, pairs=3, folder=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        run(patience=5)
    # The third round was not whole and begins anew; every other one runs in reverse.
    assert run(patience=99) == {"a": [1.0, 4.0, 6.0], "b": [2.0, 3.0, 7.0]}
    assert calls == [*"abba", *"a", *"ab"]
    assert run(patience=7)["a"] == [1.0, 4.0, 6.0], "nothing is measured twice"
    assert run(patience=99, of="another workload")["a"] == [8.0, 11.0, 12.0]


def test_a_process_that_waits_answers_when_it_is_asked_and_is_missed_when_gone(tmp_path: Path) -> None:
    script = tmp_path / "arm.py"
    body = "import sys; from bystander import answer; print('ready'); answer(lambda a, b: a + b if b else sys.exit(1))"
    script.write_text(f"import sys; sys.path.insert(0, {str(bench.HERE)!r}); {body}")
    with bystander(str(script)) as other:
        assert [other.ask(1, 2), other.ask(3, 4)] == [3, 7]
        with pytest.raises(RuntimeError, match=r"the process that was asked for \(1, 0\) is gone"):
            other.ask(1, 0)


def test_no_benchmark_needs_a_peer_to_be_read() -> None:
    """The tests read every file here, where no peer is installed."""
    heavy = {"torch", "monai", "tensorflow", "ray"}
    script = f"import augmentation, predict_peers, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=bench.HERE)
    assert done.stdout.strip() == "[]"
