"""Compare runs: `python tools/curves.py [RUN ...] [--log-dir log]`. A run is its name or directory; without one, the
newest is drawn.

One PNG of loss, accuracy, learning rate, mAP, Rank-1 and training speed over the epochs, from metrics.jsonl, which a
run that is still going has too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, did_you_mean, run
from utils.logging import log, setup_logging
from utils.plots import METRICS, plot_curves, read_history


@dataclass
class Options:
    runs: tyro.conf.Positional[tuple[str, ...]] = ()  # names or directories of runs; none: the newest
    log_dir: str = "log"  # directory that holds all runs
    output: str = ""  # file of the picture; empty: curves.png in the run's directory, of several runs in LOG_DIR


def find_run(name: str, log_dir: str) -> Path:
    """The directory of a run from what a user types. Raises UserError where there is none."""
    for path in (Path(name), Path(log_dir) / name):
        directory = path.parent if path.is_file() else path
        if (directory / METRICS).is_file():
            return directory
    near = did_you_mean(name, [p.parent.name for p in Path(log_dir).glob(f"*/{METRICS}")])
    raise UserError(f"{name} is no run with a {METRICS}, here or under {log_dir}; {near or 'give a name or directory'}")


def newest_run(log_dir: str) -> Path:
    """The directory whose metrics were written last. Raises UserError where there is none."""
    found = sorted(Path(log_dir).glob(f"*/{METRICS}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(
            f"there is no run with an epoch behind it under {Path(log_dir).absolute()}; train one with python train.py"
        )
    return found[-1].parent


def label(directory: Path, history: Sequence[dict[str, Any]], whole: bool) -> str:
    """A run's name (or, `whole`, its path), and how far it is where it has not come to its end."""
    name = str(directory) if whole else directory.absolute().name
    try:
        epochs = json.loads((directory / "config.json").read_text())["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return name
    done = history[-1]["epoch"]
    return f"{name} ({done} of {epochs} epochs)" if done < epochs else name


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    setup_logging()
    found = [find_run(name, options.log_dir) for name in options.runs] or [newest_run(options.log_dir)]
    directories = list({path.resolve(): path for path in found}.values())
    names = [path.absolute().name for path in directories]
    runs = {}
    for directory, name in zip(directories, names, strict=True):
        history, problem = read_history(directory)
        if problem:
            log.warning("warning: %s", problem)
        runs[label(directory, history, whole=names.count(name) > 1)] = history
    output = Path(options.output or (directories[0] if len(runs) == 1 else Path(options.log_dir)) / "curves.png")
    plot_curves(runs, output)
    log.info("curves of %s written to %s", ", ".join(runs), output)


if __name__ == "__main__":
    run(main)
