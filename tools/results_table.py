"""Write the README's results table from results/*.json and results/published.json: `python tools/results_table.py`.

`--add FILE --name EXPERIMENT` first copies a result (RUN/results/train.json or test_*.json) to results/. Runs of one
experiment with other seeds are files NAME-s1.json, NAME-s2.json, ...; the table then shows mean ± standard deviation.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, run
from utils.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"
HEAD = "| experiment | protocol | published mAP / R1 | measured mAP / R1 | mINP | seeds | hardware | training |"


@dataclass
class Options:
    add: str = ""  # result file of a run to take in first
    name: str = ""  # experiment that it belongs to
    remark: str = ""  # what a reader of the result must know and its settings do not say
    results: str = str(ROOT / "results")  # directory of the results
    readme: str = str(ROOT / "README.md")  # file whose table is rewritten
    check: bool = False  # write nothing; fail if the table is not up to date


def add_result(source: str, name: str, remark: str, directory: Path) -> None:
    """Copy a result under its experiment's name, without the machine's own paths. A result of a cut set is refused."""
    if not name:
        raise UserError("--add needs --name, the experiment that the result belongs to")
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
    write_json(directory / (f"{name}.json" if seed == 0 else f"{name}-s{seed}.json"), result)


def read_results(directory: Path) -> dict[str, list[dict]]:
    """Experiment to its results, one a seed."""
    experiments: dict[str, list[dict]] = {}
    for path in sorted(directory.glob("*.json")):
        if path.name != "published.json":
            result = json.loads(path.read_text())
            experiments.setdefault(result["experiment"], []).append(result)
    return experiments


def table(experiments: dict[str, list[dict]], published: list[dict]) -> str:
    """The table in Markdown: published rows first, in their order, then what has no published counterpart; remarks."""
    rows = [(p["experiment"], p["protocol"], p) for p in published]
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
    claim = f"{reference['mAP']} / {reference['rank1']}" if reference else "–"
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


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    directory, readme = Path(options.results), Path(options.readme)
    if options.add:
        add_result(options.add, options.name, options.remark, directory)
    published = json.loads((directory / "published.json").read_text())["rows"]
    before = readme.read_text()
    if START not in before or END not in before:
        raise UserError(f"{readme} lacks the lines {START} and {END} between which the table goes")
    head, rest = before.split(START, 1)
    tail = rest.split(END, 1)[1]
    after = f"{head}{START}\n{table(read_results(directory), published)}\n{END}{tail}"
    if options.check:
        if after != before:
            raise UserError(f"the table in {readme} is not what results/ says; run python tools/results_table.py")
        return
    write_atomically(readme, lambda temporary: temporary.write_text(after))
    print(f"{readme} updated")


if __name__ == "__main__":
    run(main)
