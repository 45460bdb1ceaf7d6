"""Speed and memory against the usual ways: `python benchmarks/run.py TASK [--save FILE]`.

Each contender runs in a process of its own, so that its peak memory is its own, and prints one line of JSON.
OMP_NUM_THREADS is the number of threads; `data` always uses one. docs/benchmarks.md explains the contenders.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
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


def measure_all(options: Task, args: list[str]) -> dict[str, dict]:
    """A row per contender, each from a fresh process; those that cannot run say why."""
    rows = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for name in (name for name in options.contenders if name not in options.skip):
            reason = options.reason_not_to_run(name)
            print(f"{name}: not run, {reason}" if reason else f"{name} ...", flush=True)
            rows[name] = {"not_run": reason} if reason else in_fresh_process([*args, "--scratch", scratch], name)
    return rows


def in_fresh_process(args: list[str], contender: str) -> dict:
    """The row that a contender prints. Raises UserError if it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), *args, "--contender", contender]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    if done.returncode == -signal.SIGKILL:
        raise UserError(f"{contender} was killed, probably out of memory; try --skip {contender}")
    if done.returncode:
        raise UserError(f"{contender} failed; see above")
    return json.loads(done.stdout.splitlines()[-1])


def end_with_parent() -> None:
    """However the parent ends, so does this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    word, rest = split_first(None)
    names = [word] if word in TASKS else TASKS
    options = parse_command(None, {name: load(TASKS[name]) for name in names}, __doc__, {})
    for name in {*options.skip, options.contender} - {"", *options.contenders}:
        raise UserError(f"there is no contender {name}; choose {', '.join(options.contenders)}")
    if os.environ.get("REID_DATA") and getattr(options, "data_root", "") == "data":
        options.data_root = os.environ["REID_DATA"]
    if options.contender:
        return print(json.dumps(options.measure(options.contender)))

    import torch

    from benchmarks.tables import table
    from processor.environment import describe_environment, pick_device

    facts = {"task": options.task, **options.facts(), "command": typed_command()}
    facts |= describe_environment(pick_device(options.device)) | {"threads": torch.get_num_threads()}
    rows = measure_all(options, [word, *rest])
    result = facts | {"rows": [{"contender": name, **row} for name, row in rows.items()]}
    print(table([result]))
    result["differences"] = options.check({name: row for name, row in rows.items() if "not_run" not in row})
    print("differences:", ", ".join(f"{name} {value:+.2g}" for name, value in result["differences"].items()) or "none")
    if options.save:
        write_json(options.save, result)
        print(f"{options.save} written; python benchmarks/tables.py puts it into docs/benchmarks.md")


if __name__ == "__main__":
    run(main)
