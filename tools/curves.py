"""Compare runs: `python tools/curves.py [RUN ...] [--log-dir log]`. RUN is a name or directory (default: the newest).

Draws loss, accuracy, learning rate, mAP, Rank-1 and training speed over the epochs to one PNG. It reads metrics.jsonl,
so it also works for a run that is still training.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.options import parse_options
from utils.errors import UserError, did_you_mean, run
from utils.files import reading
from utils.logging import log, setup_logging
from utils.plots import plot_curves

METRICS = "metrics.jsonl"


@dataclass
class Options:
    runs: tuple[str, ...] = ()  # names or directories of runs (default: the newest)
    log_dir: str = "log"  # directory of all runs
    output: str = ""  # PNG file (empty: curves.png in the run's directory, or in LOG_DIR for several runs)


def find_runs(names: Sequence[str], log_dir: Path) -> list[Path]:
    """Return the directories of the named runs, or of the run that wrote metrics last. Raises UserError."""
    known = sorted(log_dir.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not names and not known:
        raise UserError(f"no run under {log_dir.absolute()} has finished an epoch; train one with python train.py")
    found = [] if names else [known[-1].parent]
    for name in names:
        places = (path.parent if path.is_file() else path for path in (Path(name), log_dir / name))
        place = next((place for place in places if (place / METRICS).is_file()), None)
        if place is None:
            near = did_you_mean(name, [path.parent.name for path in known]) or "give a name or directory"
            raise UserError(f"{name} is not a run with a {METRICS}, here or under {log_dir}; {near}")
        found.append(place)
    return list({path.resolve(): path for path in found}.values())


def read_history(directory: str | Path) -> tuple[list[dict[str, Any]], str]:
    """Return the entries of a run's metrics.jsonl, one per epoch, and a warning if the last line is damaged and left
    out, otherwise "".

    If an epoch occurs twice, the later line counts. Raises UserError if the file is missing or empty, or if another
    line is damaged.
    """
    path = Path(directory) / METRICS
    with reading(path, "name a run's directory"):
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    entries, problem = {}, ""
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries[int(entry["epoch"])] = entry
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not the entry of an epoch; restore or remove it") from error
            problem = f"{path}: the last line is damaged and left out"
    if not entries:
        raise UserError(f"{path} holds no epoch yet; wait for the first one to end")
    return [entries[epoch] for epoch in sorted(entries)], problem


def label(directory: Path, history: Sequence[dict[str, Any]], whole: bool) -> str:
    """Return a run's name (or path, if `whole`), and its progress if it is not finished."""
    name = str(directory) if whole else directory.absolute().name
    try:
        epochs = json.loads((directory / "config.json").read_text())["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return name
    done = history[-1]["epoch"]
    return f"{name} ({done} of {epochs} epochs)" if done < epochs else name


def main() -> None:
    options = parse_options(None, Options, __doc__, positional="runs")
    setup_logging()
    directories = find_runs(options.runs, Path(options.log_dir))
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
