"""What several test files need: programs run as people run them, and models and features for them to work on."""

import copy
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import processor.train
from config import Config
from datasets.base import label_map
from datasets.loaders import Loaders
from datasets.make import make_dataset
from model import make_model
from processor.checkpoint import read_checkpoint, save_checkpoint
from processor.setup import run_directory, start_session, start_state, training_criterion, training_data, training_model
from processor.state import TrainState
from processor.train import Network
from solver import make_optimizer

ROOT = Path(__file__).resolve().parents[1]


def program(*args: object) -> subprocess.CompletedProcess:
    """Run a script as `python SCRIPT ...` does, but in this process: importing torch anew each time takes seconds."""
    argv = [str(a) for a in args]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", argv)
        try:
            runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())


def done(*args: object) -> str:
    """What a script prints that succeeds."""
    shown = program(*args)
    assert shown.returncode == 0, f"{args}\n{shown.stdout}{shown.stderr}"
    return shown.stdout


def arguments(cfg: Config, *left_out: str) -> list[str]:
    """The settings as words of a command line, but for switches, empty ones and those left out."""
    words = []
    for name, value in cfg.to_dict().items():
        if name not in ("preset", "resume", *left_out) and not isinstance(value, bool) and value != "":
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def refused(shown: subprocess.CompletedProcess, *words: str) -> None:
    """One clear sentence, exit code 2, no traceback."""
    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr
    message = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1, shown.stderr
    for word in words:
        assert str(word) in message[0]


def save_model(cfg: Config) -> Path:
    """A checkpoint of an untrained model, which is all that a search needs."""
    torch.manual_seed(0)
    dataset = make_dataset(cfg)
    labels = label_map(dataset.train)
    path = Path(cfg.run.log_dir) / "demo" / "last.pth"
    state = {"model": make_model(cfg, len(labels)).state_dict(), "config": cfg.to_dict(), "labels": labels}
    state["train_note"] = dataset.train_note
    state |= {"history": [], "command": "", "epoch": 0, "seconds": 0.0, "environment": {}}
    save_checkpoint(path, state)
    return path


def save_features(path: Path, seed: int = 0, **changes: np.ndarray) -> Path:
    """Twelve people seen twice by three cameras, in noise, with junk in the gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 8))
    qp, gp = np.arange(12), np.r_[np.tile(np.arange(12), 4), [-1] * 6]
    qc, gc = np.zeros(12, int), np.r_[np.repeat([1, 2, 1, 2], 12), [1] * 6]
    qf = centres + 0.9 * rng.normal(size=(12, 8))
    gf = centres[gp] + 0.9 * rng.normal(size=(54, 8))
    arrays = {"qf": qf.astype("f2"), "gf": gf.astype("f2"), "qp": qp, "gp": gp, "qc": qc, "gc": gc} | changes
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def filled(net: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with weights that are the same on every machine, in the order of their names."""
    rng = np.random.RandomState(0)
    for name, tensor in sorted(net.double().eval().state_dict().items()):
        if tensor.ndim > 1:
            values = rng.randn(*tensor.shape) * (1 / tensor[0].numel()) ** 0.5
        elif name.endswith(("var", "weight")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        elif tensor.ndim:
            values = rng.randn(*tensor.shape) * 0.1
        else:
            continue
        tensor.copy_(torch.from_numpy(values))
    return net


def means(x: torch.Tensor) -> list[float]:
    """Two numbers that tell maps of the same shape apart: the mean, and one that weighs each place differently."""
    return [x.mean().item(), (x.flatten() * torch.linspace(-1, 1, x.numel(), dtype=x.dtype)).mean().item()]


def start_training(cfg: Config) -> tuple[TrainState, Network, Loaders]:
    """A run before its first step."""
    with start_session(cfg) as session:
        data = training_data(cfg, session)
        model = training_model(cfg, session, data)
        criterion = training_criterion(cfg, session, data, model)
        optimizer = make_optimizer(cfg, model, criterion)
        with run_directory(cfg, session.ranks) as directory:
            state = start_state(cfg, session, directory, data, model, criterion, optimizer)
            network = Network(state)
            network.train(frozen=False)
            return state, network, data


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by their path, tensors as type, shape and bytes: equal only bit by bit."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in flat(part, f"{name} {key}").items()}
    tensor = isinstance(value, torch.Tensor)
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) if tensor else value}


def contents(checkpoint: Path) -> dict[str, Any]:
    """Everything of a checkpoint that must be the same in two equal runs, flat."""
    left_out = ("seconds", "environment", "config", "command", "images_per_second", "data_wait")
    state = read_checkpoint(checkpoint)
    state["history"] = [{k: v for k, v in entry.items() if k not in left_out} for entry in state["history"]]
    return flat({k: v for k, v in state.items() if k not in left_out})


def stop_at(patch: pytest.MonkeyPatch, name: str, nth: int, action: Callable, owner: Any = processor.train) -> None:
    """`action` before the nth call of a function of a module, or of a method of a class."""
    real, calls = getattr(owner, name), []

    def call(*args, **more):
        calls.append(0)
        if len(calls) == nth:
            action()
        return real(*args, **more)

    patch.setattr(owner, name, call)


def kill_at_rename(nth: int, number: int) -> None:
    """From now on this process gets a signal just before the n-th time that a checkpoint's file gets its name."""
    rename, left = os.replace, nth

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        left -= Path(target).name.startswith("last")
        if left == 0:
            left -= 1
            os.kill(os.getpid(), number)
        rename(source, target)

    os.replace = replace


def environment(place: Path, packages: Sequence[str]) -> str:
    """The Python of a virtual environment with these packages, which takes torch and the like from this one. Skips the
    test where pip cannot install them."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = str(place / "bin" / "python")
    (own,) = place.glob("lib/python*/site-packages")
    (own / "base.pth").write_text(sysconfig.get_path("purelib"))
    if subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *packages], capture_output=True).returncode:
        pytest.skip(f"pip cannot install {packages[0]} here")
    return python


def killed(work: Callable[[], object], how: str = "fork") -> bool:
    """Whether SIGKILL ended the process that did this, forked or spawned."""
    process = multiprocessing.get_context(how).Process(target=work)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def fails(error: BaseException) -> Callable:
    """A function that raises a copy of this error."""

    def call(*_args, **_more):
        raise copy.copy(error)

    return call
