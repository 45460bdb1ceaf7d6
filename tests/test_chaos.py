"""Runs that are stopped by signals: at random moments and in the middle of a write they end as undisturbed ones do."""

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, contents, kill_at_rename

from processor.signals import StopSignals
from utils import errors
from utils.errors import Stopped

# 15 steps, of which every second writes a checkpoint; an average and three evaluations
SETTINGS = """train.py demo --device cpu --height 32 --width 16 --pad 2 --batch-size 8 --images-per-id 2
    --test-batch-size 64 --workers 2 --backbone mobilenet_v2 --width-multiplier 0.25 --epochs 3 --warmup-epochs 1
    --steps 2 --center-weight 5e-4 --ema-decay 0.9 --eval-every 2 --no-flip --no-rerank --ranked-lists 0 --log-every 2
    --save-minutes 0 --keep 3 --resume --weights none"""


def start(words: list[str], output: Path, aim: tuple[int, int] | None = None) -> multiprocessing.Process:
    """`python WORDS` in a process of its own, whose output is appended to `output`. aim: see `kill_at_rename`."""

    def session() -> None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        if aim:
            kill_at_rename(*aim)
        sys.argv = words
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=session, daemon=True)
    process.start()
    return process


def differences(a: Path, b: Path) -> list[str]:
    """Names of all that is not the same in two finished runs."""

    def everything(directory: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"files": sorted(p.name for p in directory.glob("*"))}
        for name in ("last.pth", "best.pth"):
            found |= {f"{name}{key}": value for key, value in contents(directory / name).items()}
        lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        times = ("images_per_second", "data_wait")
        return found | {"metrics.jsonl": [{k: v for k, v in line.items() if k not in times} for line in lines]}

    one, other = everything(a), everything(b)
    return [name for name in one.keys() | other.keys() if name not in one or other.get(name) != one[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KILL", "TERM", "USR1", "INT"])
def test_a_run_that_is_stopped_again_and_again_ends_bit_for_bit_as_an_undisturbed_one(tree, tmp_path, name):
    number, rng, log = getattr(signal, f"SIG{name}"), random.Random(0), tmp_path / "log"
    log.mkdir()

    def words(run: str) -> list[str]:
        return [*SETTINGS.split(), "--data-root", str(tree), "--log-dir", str(log), "--name", run]

    for run in ("first", "whole"):  # the first decodes the images
        began = time.monotonic()
        process = start(words(run), log / "whole.txt")
        process.join()
        assert process.exitcode == 0, (log / "whole.txt").read_text()
    length, stops, runs = time.monotonic() - began, 0, 0
    while stops < 9:
        runs += 1
        run, output, exitcode = f"run{runs}", log / f"run{runs}.txt", None
        while exitcode != 0:
            how = "never" if stops >= 9 else ("moment", "rename")[stops % 2]
            process = start(words(run), output, (rng.randint(1, 9), number) if how == "rename" else None)
            process.join(rng.uniform(0, length) if how == "moment" else None)
            if process.exitcode is None:
                os.kill(process.pid, number)
            process.join()
            exitcode = process.exitcode
            assert exitcode in (0, -number, 128 + number), output.read_text()[-3000:]
            stops += exitcode != 0
        assert differences(log / "whole", log / run) == []


# ---- exit codes


def test_a_signal_gets_past_code_that_catches_every_exception_as_torchs_load_state_dict_does():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        handlers = signal.getsignal(number)

        def main(number=number) -> None:
            with StopSignals():
                try:
                    os.kill(os.getpid(), number)
                except Exception as error:
                    raise RuntimeError("an exception occurred while copying the parameter") from error

        with pytest.raises(SystemExit) as ended:
            errors.run(main)
        assert ended.value.code == 128 + number and signal.getsignal(number) is handlers


def test_a_signal_waits_for_a_step_to_end_but_a_second_one_does_not():
    with StopSignals() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.requested == signal.SIGUSR1
    with pytest.raises(Stopped) as stop, StopSignals() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143
