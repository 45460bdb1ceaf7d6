"""Kill a small run again and again and go on with it: `python tools/chaos.py [--kills 30] [--signal KILL]`.

What comes out is compared, bit for bit, with a run that nobody disturbed: weights, moments, random numbers, history. A
session is killed at a random moment, while a checkpoint is being written, or between the renames after that. Exits with
1 where anything differs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import processor.train  # noqa: F401  so that sessions, which are forked, need not import it
from processor.checkpoint import BEST, LAST, kept, newest_valid, read_checkpoint
from utils.errors import UserError, run

ROOT = Path(__file__).resolve().parents[1]
# 15 steps, of which every second writes a checkpoint; two optimizers, an average, three tests.
SETTINGS = """train.py demo --device cpu --train-ids 6 --test-ids 5 --height 32 --width 16 --pad 2 --batch-size 16
    --images-per-id 4 --test-batch-size 64 --workers 2 --backbone mobilenet_v2 --width-multiplier 0.25 --epochs 3
    --warmup-epochs 1 --steps 2 --center-weight 5e-4 --ema-decay 0.9 --eval-every 2 --no-flip --no-rerank
    --ranked-lists 0 --log-every 2 --save-minutes 0 --keep 3 --resume"""
DIFFERENT = ("seconds", "environment", "command")  # in a checkpoint, rightly
TIMES = ("images_per_second", "data_wait")  # in an entry of the history


@dataclass
class Chaos:
    kills: int = 30  # how often to kill
    signal: Literal["KILL", "TERM", "USR1", "INT"] = "KILL"  # by what
    seed: int = 0  # of the moments
    data_root: str = str(ROOT / "data")  # directory of the demo set, which is drawn there where it is not


def words(chaos: Chaos, log: Path, name: str) -> list[str]:
    """The command line of a run, without python."""
    return [*SETTINGS.split(), "--data-root", chaos.data_root, "--log-dir", str(log), "--name", name]


def start(words: list[str], output: Path, aim: tuple[int, int] | None = None) -> multiprocessing.Process:
    """`python WORDS` in a process of its own; what it says is added to `output`. aim: see `kill_at_rename`."""

    def session() -> None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if aim:
            kill_at_rename(*aim)
        sys.argv = words
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=session, daemon=True)
    process.start()
    return process


def kill_at_rename(nth: int, number: int) -> None:
    """From now on, this process gets a signal just before the n-th time that a checkpoint's file gets its name."""
    rename, left = os.replace, nth

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        left -= Path(target).name.startswith("last")
        if left == 0:
            left -= 1
            os.kill(os.getpid(), number)
        rename(source, target)

    os.replace = replace


def strike(process: multiprocessing.Process, directory: Path, wait: float, number: int, at_write: float | None) -> None:
    """Send a signal after `wait` seconds, or so long after the next write has begun; none if the process has ended."""
    process.join(wait)
    if at_write is not None:
        while process.exitcode is None and not any(directory.glob(f".{LAST}.*.tmp")):
            time.sleep(0.0002)
        process.join(at_write)
    if process.exitcode is None:
        os.kill(process.pid, number)
    process.join()


def state_left(directory: Path) -> str:
    """What a killed session has left, in words."""
    files = kept(directory / LAST)
    if not files:
        return "no checkpoint yet"
    path, state = newest_valid(directory / LAST)
    half = ", a file half written" if any(directory.glob(".*.tmp")) else ""
    return f"{path.name} after epoch {state['epoch']}, step {state['step']}{half}"


def contents(directory: Path) -> dict[str, Any]:
    """All of a finished run that must be the same, by name; tensors as bytes."""
    found: dict[str, Any] = {"files": sorted(p.name for p in directory.glob("*"))}
    for name in (LAST, BEST):
        state = {k: v for k, v in read_checkpoint(directory / name).items() if k not in DIFFERENT}
        state["config"] = {k: v for k, v in state["config"].items() if k != "name"}
        state["history"] = [without_times(entry) for entry in state["history"]]
        found |= dict(flat(state, name))
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found["metrics.jsonl"] = [without_times(json.loads(line)) for line in lines]
    return found


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in TIMES}


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists, by their path."""
    if isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f"{name} {key}")
    else:
        tensor = isinstance(value, torch.Tensor)
        yield name, (value.dtype, value.shape, value.numpy().tobytes()) if tensor else value


def differences(a: Path, b: Path) -> list[str]:
    """Names of all that is not the same in two finished runs."""
    one, other = contents(a), contents(b)
    return [name for name in one.keys() | other.keys() if name not in one or other.get(name) != one[name]]


def undisturbed(chaos: Chaos, log: Path, name: str) -> float:
    """A run that is left alone; gives the seconds that it took."""
    before, output = time.perf_counter(), log / f"{name}.txt"
    process = start(words(chaos, log, name), output)
    process.join()
    if process.exitcode:
        raise UserError(f"the undisturbed run ended with {process.exitcode}:\n{output.read_text()[-3000:]}")
    return time.perf_counter() - before


def disturbed(chaos: Chaos, log: Path, name: str, length: float, rng: random.Random, done: int) -> int:
    """One run, killed until there are enough kills, then left alone to its end; gives how many there are now."""
    number, directory, output = getattr(signal, f"SIG{chaos.signal}"), log / name, log / f"{name}.txt"
    while True:
        how = ("moment", "write", "rename")[done % 3] if done < chaos.kills else "none"
        process = start(words(chaos, log, name), output, (rng.randint(1, 9), number) if how == "rename" else None)
        if how in ("moment", "write"):
            at_write = rng.uniform(0, 0.03) if how == "write" else None
            strike(process, directory, rng.uniform(0, length), number, at_write)
        process.join()
        if process.exitcode == 0:
            return done
        # a signal that comes before the program is ready for it ends it the plain way
        if process.exitcode != -number and (number == signal.SIGKILL or process.exitcode != 128 + number):
            raise UserError(f"a session ended with {process.exitcode}:\n{output.read_text()[-3000:]}")
        done += 1
        print(f"{done:>5}  {name:<6} {how:<7} {process.exitcode:>5}  {state_left(directory)}", flush=True)


def compare(chaos: Chaos, log: Path) -> int:
    """The exit code: 0 where all runs end the same."""
    undisturbed(chaos, log, "first")  # draws the demo set and decodes it
    length = undisturbed(chaos, log, "whole")
    print(f"undisturbed, a run takes {length:.1f} s\n kill  run    at       exit  what it left", flush=True)
    rng, done, different, runs = random.Random(chaos.seed), 0, 0, 0
    while done < chaos.kills:
        runs += 1
        done = disturbed(chaos, log, f"run{runs}", length, rng, done)
        wrong = differences(log / "whole", log / f"run{runs}")
        said = f"DIFFERENT: {', '.join(wrong[:5])}" if wrong else "bit-identical"
        print(f"       run{runs:<3} ended {said}", flush=True)
        different += bool(wrong)
    verdict = f"{different} differ from" if different else "all equal to"
    print(f"{done} x SIG{chaos.signal} in {runs} runs: {verdict} the undisturbed one, bit for bit")
    return 1 if different else 0


def main() -> None:
    chaos = tyro.cli(Chaos, prog="tools/chaos.py", description=__doc__)
    with tempfile.TemporaryDirectory(prefix="chaos-") as log:
        sys.exit(compare(chaos, Path(log)))


if __name__ == "__main__":
    run(main)
