from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import arguments, program, refused

import processor.train
from processor import do_train
from processor.checkpoint import read_checkpoint
from processor.run import StopSignals
from tools.chaos import TIMES, differences
from utils.errors import Stopped

ROOT = Path(__file__).resolve().parents[1]


def chaos(data: Path, *more: object) -> str:
    """What the tool says; it must find no difference."""
    command = [sys.executable, "tools/chaos.py", "--data-root", data, *more]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout and "DIFFERENT" not in done.stdout
    return done.stdout


def test_killed_five_times_the_run_ends_as_an_undisturbed_one_bit_for_bit(tree):
    said = chaos(tree, "--kills", 5)
    assert "5 x SIGKILL" in said and [word in said for word in ("moment", "write", "rename")] == [True] * 3
    assert "a file half written" in said


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["KILL", "TERM", "USR1", "INT"])
def test_stopped_thirty_times_the_run_ends_as_an_undisturbed_one_bit_for_bit(tree, name):
    assert f"30 x SIG{name}" in chaos(tree, "--kills", 30, "--signal", name)


@pytest.fixture
def two(tiny) -> tuple[Path, Path]:
    """Two directories that differ in nothing but name and times."""
    cfg = tiny.replace(epochs=1, width_multiplier=0.25, eval_first=False)
    one = do_train(cfg.replace(name="one")).directory
    return one, Path(shutil.copytree(one, one.with_name("other")))


def change(path: Path, how) -> None:
    state = read_checkpoint(path)
    how(state)
    torch.save(state, path)


def test_the_tool_sees_the_smallest_difference_and_no_other(two):
    one, other = two
    assert differences(one, other) == []
    change(other / "last.pth", lambda s: s.update(seconds=0.0, command="x", environment={}))
    change(other / "last.pth", lambda s: s["history"][-1].update(dict.fromkeys(TIMES, 0.0)))
    assert differences(one, other) == []
    name = "branches.0.classifier.weight"

    def next_number(state: dict) -> None:
        state["model"][name][0, 0] = torch.nextafter(state["model"][name][0, 0], torch.tensor(9.0))

    change(other / "last.pth", next_number)
    assert differences(one, other) == [f"last.pth model {name}"]
    change(other / "last.pth", lambda s: s["rng"][0]["torch"][9:10].add_(1))
    change(other / "best.pth", lambda s: s["history"][-1].update(loss=0.0))
    (other / "last.1.pth").unlink()
    (other / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    found = differences(one, other)
    assert {"files", "metrics.jsonl", "last.pth rng 0 torch", "best.pth history 0 loss"} < set(found) and len(
        found
    ) == 5


# ---- what the shell is told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_stopped_run_says_how_to_go_on_and_exits_with_128_and_the_signals_number(tiny, monkeypatch, number, code):
    cfg = tiny.replace(epochs=1, width_multiplier=0.25)
    real = processor.train.set_lr
    monkeypatch.setattr(processor.train, "set_lr", lambda *args: os.kill(os.getpid(), number) or real(*args))
    shown = program("train.py", *arguments(cfg), "--no-flip", "--no-rerank")
    assert shown.returncode == code
    assert shown.stderr.splitlines()[-1] == "stopped in epoch 1 after step 1; go on with --resume"
    assert read_checkpoint(Path(cfg.run.log_dir) / "demo" / "last.pth")["step"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_gets_past_code_that_catches_every_exception_as_torchs_load_state_dict_does(number):
    handlers = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, StopSignals():
        try:
            os.kill(os.getpid(), number)
        except Exception as error:
            raise RuntimeError("an exception occurred while copying the parameter") from error
    assert stop.value.exit_code == 128 + number and signal.getsignal(number) is handlers


def test_a_signal_waits_for_a_step_to_end_but_a_second_one_does_not():
    with StopSignals() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.requested == signal.SIGUSR1
    with pytest.raises(Stopped) as stop, StopSignals() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143


def test_a_finished_run_exits_with_0_and_what_the_user_can_mend_with_2(tiny, monkeypatch):
    cfg = tiny.replace(epochs=1, width_multiplier=0.25)
    words = ("train.py", *arguments(cfg), "--no-flip", "--no-rerank")
    assert program(*words, "--no-eval-first").returncode == 0
    (Path(cfg.run.log_dir) / "demo" / "last.1.pth").unlink()
    (Path(cfg.run.log_dir) / "demo" / "last.pth").write_bytes(b"")
    for shown, word in (
        (program(*words, "--resume"), "start anew, without --resume"),
        (program(*words, "--batch-size", 3), "--batch-size"),
        (
            program(*words, "--log-dir", Path(cfg.data.data_root) / "demo" / "query" / "0007_c1s1_000090_00.jpg"),
            "--log-dir",
        ),
    ):
        refused(shown, word)
        assert shown.returncode == 2
