"""Write the tables of results: `python tools/results_table.py [--check]`.

README.md gets a few rows, docs/results.md all rows, including published ones that are not measured yet. docs/cpu.md and
docs/cpu.png get the Market-1501 runs on CPUs with their core-hours. All rows come from results/published.json and
results/*.json, never from a user's own runs (`tools/compare.py` compares those). Each result is a copy of
RUN/results/train.json or test_*.json, with an optional "remark". It is named EXPERIMENT.json; with other seeds
EXPERIMENT-s1.json, ...; on another test set EXPERIMENT-veri776.json. Several seeds are shown as mean ± standard
deviation. results/benchmark_*.json belong to benchmarks/tables.py.
"""

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.options import parse_options
from tools.tables import mean_and_std
from utils.errors import UserError, run
from utils.files import reading, write_atomically

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"
USUAL = ("market1501", "demo")  # test sets that a row does not name
README_EXPERIMENTS = (
    "demo",
    "tiny_b1_mobilenet_v2_128x64",
    "tiny_b1_mobilenet_v2_256x128, distilled from person-reidentification-retail-0277",
    "tiny_b1_resnet50_gem_256x128",
)
README_ROWS = [(name, row) for name in README_EXPERIMENTS for row in ("plain", "flip+rerank")]
HEAD = "| experiment | protocol | published mAP / R1 | measured mAP / R1 | mINP | seeds | hardware | training |"


@dataclass
class Options:
    root: str = str(ROOT)  # directory that holds results/, README.md and docs/
    check: bool = False  # write nothing; fail if a table is not up to date


def read_results(directory: Path) -> dict[str, list[dict]]:
    """Return results by experiment, one per seed; results with a teacher name it, and form their own experiment.

    Raises UserError for results on a reduced test set.
    """
    experiments: dict[str, list[dict]] = {}
    for path in sorted(directory.glob("*.json")):
        if path.name == "published.json" or path.name.startswith("benchmark_"):
            continue
        with reading(path, "give a copy of RUN/results/train.json"):
            result = json.loads(path.read_text())
            note, _, _ = result["note"], result["seed"], result["scores"]
            tested_on = Path(result.get("test_dataset") or result["dataset"].split("+")[0]).name
        taught = re.fullmatch("(distilled from [^;]+); not comparable with published scores", note)
        if note and not taught and "searched on the test split" not in note:
            raise UserError(f"{path} does not belong in a table: {note}")
        name = result.get("experiment") or re.sub(r"-s\d+$", "", path.stem).removesuffix(f"-{tested_on}")
        name = labelled(name, tested_on) + (f", {taught[1]}" if taught else "")
        experiments.setdefault(name, []).append(result)
    return experiments


def labelled(experiment: str, dataset: str) -> str:
    """Return the experiment, with its test set unless that is the usual one."""
    return experiment if dataset in USUAL else f"{experiment}, {dataset}"


def table(experiments: dict[str, list[dict]], published: list[dict], all_rows: bool) -> str:
    """Return the table in Markdown: published rows in their order, then experiments without one; then the remarks.

    all_rows: show more than README_ROWS, also published rows that are not measured yet, and remarks below the table.
    """
    pairs = [(experiment, p) for p in published for experiment in p["experiments"]]
    rows = [(labelled(e, p.get("dataset", USUAL[0])), p["protocol"], p) for e, p in pairs]
    known = {(e, p) for e, p, _ in rows}
    rows += [(e, p, None) for e, runs in experiments.items() for p in runs[0]["scores"] if (e, p) not in known]
    order = list(dict.fromkeys(e for e, _, _ in rows))
    lines = [HEAD, re.sub(r"[^|]+", "---", HEAD)]
    for experiment, protocol, reference in sorted(rows, key=lambda row: order.index(row[0])):
        scored = [r for r in experiments.get(experiment, []) if protocol in r["scores"]]
        if all_rows or (scored and (experiment, protocol) in README_ROWS):
            lines.append(_row(experiment, protocol, reference, scored))
    remarks = [(e, r["seed"], r["remark"]) for e, runs in experiments.items() for r in runs if r.get("remark")]
    remarks = remarks if all_rows else []
    return "\n".join(lines + [f"\n`{e}`, seed {seed}: {remark}" for e, seed, remark in remarks])


def _row(experiment: str, protocol: str, reference: dict | None, runs: list[dict]) -> str:
    claim = f"{reference['mAP']} / {reference.get('rank1', '–')}" if reference else "–"
    claim += f", mINP {reference['mINP']}" if reference and "mINP" in reference else ""
    if not runs:
        return f"| {experiment} | {protocol} | {claim} | not measured | | | | |"
    scores = [r["scores"][protocol] for r in runs]
    mAP, rank1, mINP = (mean_and_std([s[key] for s in scores]) for key in ("mAP", "rank1", "mINP"))
    hardware = ", ".join(dict.fromkeys(r["hardware"] for r in runs))
    minutes = statistics.mean(r["train_seconds"] for r in runs) / 60
    speed = statistics.mean(r["images_per_second"] for r in runs)
    cells = (experiment, protocol, claim, f"{mAP} / {rank1}", mINP, f"n = {len(runs)}", hardware)
    return f"| {' | '.join(cells)} | {minutes:.1f} min, {speed:.0f} images/s |"


def cpu_runs(experiments: dict[str, list[dict]]) -> list[tuple[float, str, dict]]:
    """Return core-hours, name and result of each run on Market-1501 on a CPU, the cheapest first."""
    found = []
    for name, runs in experiments.items():
        for result in runs:
            cores = re.fullmatch(r"(?:(\d+) x )?.*, (\d+) of \d+ cores", result["hardware"])
            if cores and result["dataset"] == "market1501" and not result.get("test_dataset"):
                number = int(cores[1] or 1) * int(cores[2])
                found.append((number * result["train_seconds"] / 3600, name, result))
    return sorted(found, key=lambda run: run[0])


def cpu_table(runs: list[tuple[float, str, dict]]) -> str:
    """One row per run, and below the table their commands, without names of directories."""
    head = "| run | core-hours | mAP / R1 | flip, re-ranked | epochs | hardware |"
    lines, commands = [head, re.sub(r"[^|]+", "---", head)], []
    for hours, name, result in runs:
        plain, more = (result["scores"].get(key) for key in ("plain", "flip+rerank"))
        shown = (f"{s['mAP']:.2f} / {s['rank1']:.2f}" if s else "" for s in (plain, more))
        lines.append(f"| {' | '.join((name, f'{hours:.1f}', *shown, str(result['epochs']), result['hardware']))} |")
        command = re.sub(r" --((data-root|log-dir|name|save-minutes|workers) \S+|resume)", "", result["command"])
        commands += [f"# {name}", command]
    return "\n".join([*lines, "", "```sh", *commands, "```"])


def plot_cpu_runs(runs: list[tuple[float, str, dict]], path: Path) -> None:
    """mAP against core-hours, one point per run; labels leave out the preset."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axis, points = figure.subplots(), {}
    for number, (hours, experiment, result) in enumerate(runs):
        mAP, (name, _, teacher) = result["scores"]["plain"]["mAP"], experiment.partition(", ")
        (points[teacher or "no teacher"],) = axis.plot(hours, mAP, "o", color="#d95f02" if teacher else "#2b6cb0")
        y, side = (-3, "top") if number % 2 else (3, "bottom")  # so that labels of neighbors do not overlap
        label = name.removeprefix(f"{result['preset']}_")
        axis.annotate(label, (hours, mAP), (6, y), textcoords="offset points", fontsize=8, va=side)
    axis.legend(points.values(), points.keys(), fontsize=8, loc="lower right")
    axis.margins(y=0.15)
    axis.set(xlabel="core-hours of training", ylabel="mAP on Market-1501 (%), plain")
    axis.set_xlim(0, 1.5 * runs[-1][0])
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def update(file: Path, start: str, end: str, content: str, check: bool) -> None:
    """Put `content` between these lines of a file. With `check`, raises UserError if that would change it."""
    with reading(file):
        before = file.read_text()
    if start not in before or end not in before.split(start, 1)[1]:
        raise UserError(f"{file} lacks the lines {start} and {end}, which enclose a table")
    head, rest = before.split(start, 1)
    after = f"{head}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"
    if check and after != before:
        raise UserError(f"a table in {file} is not up to date; run the program named in {start}")
    if not check:
        write_atomically(file, lambda temporary: temporary.write_text(after))
        print(f"{file} updated")


def main() -> None:
    options = parse_options(None, Options, __doc__)
    root = Path(options.root)
    with reading(root / "results" / "published.json"):
        published = json.loads((root / "results" / "published.json").read_text())["rows"]
    results = read_results(root / "results")
    update(root / "README.md", START, END, table(results, published, all_rows=False), options.check)
    update(root / "docs" / "results.md", START, END, table(results, published, all_rows=True), options.check)
    runs = cpu_runs(results)
    update(root / "docs" / "cpu.md", START, END, cpu_table(runs), options.check)
    if runs and not options.check:
        plot_cpu_runs(runs, root / "docs" / "cpu.png")


if __name__ == "__main__":
    run(main)
