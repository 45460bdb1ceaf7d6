"""Measure speed and memory, compared with the usual code: `python benchmarks/run.py TASK [--save FILE]`.

Each contender runs in its own process, so that its peak memory can be measured. OMP_NUM_THREADS is the number of
threads; `data` always uses one. docs/benchmarks.md explains the contenders.
"""

import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.task import Task
from config.cli import split_first, typed_command
from config.options import parse_command
from utils.errors import UserError, run
from utils.files import write_json
from utils.lookup import load

TASKS = {  # loaded by name, so that a contender's memory does not hold what other tasks import
    "eval": "benchmarks.scoring:Eval",
    "rerank": "benchmarks.scoring:Rerank",
    "data": "benchmarks.models:Data",
    "train": "benchmarks.models:Train",
    "extract": "benchmarks.models:Extract",
    "search": "benchmarks.scoring:Search",
}


def measure_all(task: Task) -> dict[str, dict]:
    """Return one row per contender; for one that cannot run, the reason."""
    rows = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as task.scratch:
        for name in (name for name in task.contenders if name not in task.skip):
            reason = task.reason_not_to_run(name)
            print(f"{name}: not run, {reason}" if reason else f"{name} ...", flush=True)
            rows[name] = {"not_run": reason} if reason else in_fresh_process(task, name)
    return rows


def in_fresh_process(task: Task, contender: str) -> dict:
    """Return the row of a contender. Raises UserError if its process dies."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(task.measure, contender).result()
    except BrokenProcessPool as error:
        raise UserError(f"{contender} was killed, probably out of memory; try --skip {contender}") from error


def main() -> None:
    word, _ = split_first(None)
    names = [word] if word in TASKS else TASKS
    task = parse_command(None, {name: load(TASKS[name]) for name in names}, __doc__, {})
    for name in {*task.skip} - {*task.contenders}:
        raise UserError(f"there is no contender {name}; choose {', '.join(task.contenders)}")
    if os.environ.get("REID_DATA") and getattr(task, "data_root", "") == "data":
        task.data_root = os.environ["REID_DATA"]

    import torch

    from benchmarks.tables import table
    from processor.environment import describe_environment, pick_device

    facts = {"task": task.task, **task.facts(), "command": typed_command()}
    facts |= describe_environment(pick_device(task.device)) | {"threads": torch.get_num_threads()}
    rows = measure_all(task)
    result = facts | {"rows": [{"contender": name, **row} for name, row in rows.items()]}
    print(table([result]))
    result["differences"] = task.check({name: row for name, row in rows.items() if "not_run" not in row})
    print("differences:", ", ".join(f"{name} {value:+.2g}" for name, value in result["differences"].items()) or "none")
    if task.save:
        write_json(task.save, result)
        print(f"{task.save} written; python benchmarks/tables.py puts it into docs/benchmarks.md")


if __name__ == "__main__":
    run(main)
