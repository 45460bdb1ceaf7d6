"""Write the README's table of results: `python tools/results_table.py`.

Results come from results/published.json and the runs in results/*.json; results/benchmark_*.json belong to
benchmarks/tables.py.

`--add FILE --name EXPERIMENT` first copies a result (RUN/results/train.json or test_*.json) to results/. Runs of one
experiment with other seeds are files NAME-s1.json, NAME-s2.json, ...; the table then shows mean ± standard deviation.
What was tested on another set than Market-1501 has rows and files of its own, which add the set's name.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.cli import parse_options
from utils.errors import UserError, run
from utils.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"
USUAL = ("market1501", "demo")  # test sets that a row does not name
HEAD = "| experiment | protocol | published mAP / R1 | measured mAP / R1 | mINP | seeds | hardware | training |"


@dataclass
class Options:
    add: str = ""  # result file of a run to take in first
    name: str = ""  # experiment that it belongs to
    remark: str = ""  # what a reader of the result must know and its settings do not say
    results: str = str(ROOT / "results")  # directory of the results
    readme: str = str(ROOT / "README.md")  # file whose table of results is rewritten
    check: bool = False  # write nothing; fail if a table is not up to date


def add_result(source: str, name: str, remark: str, directory: Path) -> None:
    """Copy a result under its experiment's name, without the machine's own paths. A result of a cut set is refused."""
    if not name:
        raise UserError("--add needs --name, the experiment that the result belongs to")
    if name.startswith("benchmark_"):
        raise UserError(f"--name {name}: files of that name hold speed and memory; give the experiment another name")
    try:
        result = json.loads(Path(source).read_text())
        seed, note = result["seed"], result["note"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} is no result file of a run ({error}); give RUN/results/train.json") from error
    if note:
        raise UserError(f"{source} does not belong into a table: {note}")
    result |= {"experiment": name, "remark": remark}
    for place in ("data_root", "log_dir"):
        result["settings"].pop(place, None)
    file = labelled(name, tested_on(result), "-") + (f"-s{seed}" if seed else "")
    write_json(directory / f"{file}.json", result)


def tested_on(result: dict) -> str:
    """Name of the set that a result was tested on."""
    return Path(result.get("test_dataset") or result["dataset"].split("+")[0]).name


def labelled(experiment: str, dataset: str, joint: str = ", ") -> str:
    """The experiment, with the set that it was tested on unless that is the usual one."""
    return experiment if dataset in USUAL else f"{experiment}{joint}{dataset}"


def read_results(directory: Path) -> dict[str, list[dict]]:
    """Labelled experiment to its results, one a seed. Benchmarks are none."""
    experiments: dict[str, list[dict]] = {}
    for path in sorted(directory.glob("*.json")):
        if path.name != "published.json" and not path.name.startswith("benchmark_"):
            result = json.loads(path.read_text())
            experiments.setdefault(labelled(result["experiment"], tested_on(result)), []).append(result)
    return experiments


def table(experiments: dict[str, list[dict]], published: list[dict]) -> str:
    """The table in Markdown: published rows first, in their order, then what has no published counterpart; remarks."""
    rows = [(labelled(p["experiment"], p.get("dataset", USUAL[0])), p["protocol"], p) for p in published]
    known = {(e, p) for e, p, _ in rows}
    rows += [(e, p, None) for e, runs in experiments.items() for p in runs[0]["scores"] if (e, p) not in known]
    order = list(dict.fromkeys(e for e, _, _ in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    lines = [HEAD, re.sub(r"[^|]+", "---", HEAD)]
    for experiment, protocol, reference in rows:
        scored = [r for r in experiments.get(experiment, []) if protocol in r["scores"]]
        lines.append(_row(experiment, protocol, reference, scored))
    remarks = [(e, r["seed"], r["remark"]) for e, runs in experiments.items() for r in runs if r.get("remark")]
    return "\n".join(lines + [f"\n`{e}`, seed {seed}: {remark}" for e, seed, remark in remarks])


def _row(experiment: str, protocol: str, reference: dict | None, runs: list[dict]) -> str:
    claim = f"{reference['mAP']} / {reference.get('rank1', '–')}" if reference else "–"
    claim += f", mINP {reference['mINP']}" if reference and "mINP" in reference else ""
    if not runs:
        return f"| {experiment} | {protocol} | {claim} | not measured | | | | |"
    scores = [r["scores"][protocol] for r in runs]
    mAP, rank1, mINP = (_mean([s[key] for s in scores]) for key in ("mAP", "rank1", "mINP"))
    hardware = ", ".join(dict.fromkeys(r["hardware"] for r in runs))
    minutes = statistics.mean(r["train_seconds"] for r in runs) / 60
    speed = statistics.mean(r["images_per_second"] for r in runs)
    cells = (experiment, protocol, claim, f"{mAP} / {rank1}", mINP, f"n = {len(runs)}", hardware)
    return f"| {' | '.join(cells)} | {minutes:.1f} min, {speed:.0f} images/s |"


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def replaced(text: str, start: str, end: str, content: str, readme: Path) -> str:
    """`text` with `content` between its lines `start` and `end`."""
    if start not in text or end not in text.split(start, 1)[1]:
        raise UserError(f"{readme} lacks the lines {start} and {end} between which a table goes")
    head, rest = text.split(start, 1)
    return f"{head}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def update(file: Path, start: str, end: str, content: str, check: bool) -> None:
    """Put `content` between these lines of a file. With `check`, raises UserError where that would change it."""
    before = file.read_text()
    after = replaced(before, start, end, content, file)
    if check and after != before:
        raise UserError(f"a table in {file} is not what results/ says; run python tools/results_table.py")
    if not check:
        write_atomically(file, lambda temporary: temporary.write_text(after))
        print(f"{file} updated")


def main() -> None:
    options = parse_options(None, Options, __doc__)
    directory = Path(options.results)
    if options.add:
        add_result(options.add, options.name, options.remark, directory)
    published = json.loads((directory / "published.json").read_text())["rows"]
    update(Path(options.readme), START, END, table(read_results(directory), published), options.check)


if __name__ == "__main__":
    run(main)
