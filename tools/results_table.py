"""Write the README's tables: `python tools/results_table.py`. Results come from results/published.json and the runs in
results/*.json, speed and memory from results/benchmark_*.json, which `tools/benchmark.py --save` writes.

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

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, run
from utils.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"
BENCHMARK_START = "<!-- speed and memory: written by tools/results_table.py -->"
BENCHMARK_END = "<!-- end of speed and memory -->"
BENCHMARK_COLUMNS = (
    "contender", "seconds", "CPU seconds", "× matmul", "faster than numpy", "faster than published", "peak MB",
    "above features MB", "mAP",
)  # fmt: skip
DATA_COLUMNS = ("contender", "images/s a core", "× classic", "CPU ms/image", "seconds", "peak MB")
SPEED_COLUMNS = (
    "contender", "images/s", "× classic", "% of matmul", "% waiting for data", "CPU ms/image", "peak MB", "mAP",
)  # fmt: skip
USUAL = ("market1501", "demo")  # test sets that a row does not name
HEAD = "| experiment | protocol | published mAP / R1 | measured mAP / R1 | mINP | seeds | hardware | training |"


@dataclass
class Options:
    add: str = ""  # result file of a run to take in first
    name: str = ""  # experiment that it belongs to
    remark: str = ""  # what a reader of the result must know and its settings do not say
    results: str = str(ROOT / "results")  # directory of the results
    readme: str = str(ROOT / "README.md")  # file whose tables are rewritten
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


def read_benchmarks(directory: Path) -> list[dict]:
    """What `tools/benchmark.py --save` left there, by file name."""
    found = []
    for path in sorted(directory.glob("benchmark_*.json")):
        try:
            result = json.loads(path.read_text())
            lines_of(result)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no result of tools/benchmark.py ({error!r}); run that again or remove it"
            ) from error
        found.append(result)
    return found


def benchmark_table(benchmarks: list[dict]) -> str:
    """The tables in Markdown, a line for each contender of each benchmark, with the hardware: scoring, data, speed."""
    tables: dict[tuple[str, ...], list[str]] = {BENCHMARK_COLUMNS: [], DATA_COLUMNS: [], SPEED_COLUMNS: []}
    for result in benchmarks:
        columns, title, rows = lines_of(result)
        tables[columns] += [f"| {' | '.join((title, *row, result['hardware']))} |" for row in rows]
    texts = []
    for columns, lines in tables.items():
        head = f"| benchmark | {' | '.join(columns)} | hardware |"
        if lines:
            texts.append("\n".join((head, re.sub(r"[^|]+", "---", head), *lines)))
    return "\n\n".join(texts) or "Not measured yet."


def lines_of(result: dict) -> tuple[tuple[str, ...], str, list[tuple[str, ...]]]:
    """Of one benchmark: the columns of the table that it belongs into, its title there, and its rows."""
    if result["task"] == "data":
        title = f"data, {result['dataset']}, {result['height']} × {result['width']}, batches of {result['batch_size']}"
        return DATA_COLUMNS, title, data_rows(result)
    if result["task"] in ("train", "extract"):
        title = f"{result['task']}, {result['backbone']}, {result['dataset']}, {result['height']} × {result['width']}"
        return SPEED_COLUMNS, f"{title}, batches of {result['batch_size']}", speed_rows(result)
    title = ", ".join(str(result[key]) for key in ("task", "size", "features", "metric"))
    title += f", {result['width']} wide" if result["width"] != 2048 else ""
    return BENCHMARK_COLUMNS, title, benchmark_rows(result)


def benchmark_rows(result: dict) -> list[tuple[str, ...]]:
    """The cells under BENCHMARK_COLUMNS of every contender of one benchmark."""
    seconds = {row["contender"]: row["seconds"] for row in result["rows"] if "seconds" in row}

    def ratio(over: str, under: str) -> str:
        return _short(seconds[over] / seconds[under]) if over in seconds and under in seconds else ""

    rows = []
    for row in result["rows"]:
        name = row["contender"]
        if name not in seconds:
            rows.append((name, f"not run: {row['not_run']}", *[""] * (len(BENCHMARK_COLUMNS) - 2)))
            continue
        times = (_short(row["seconds"]), _short(row["cpu_seconds"]), ratio(name, "matmul"))
        times += (ratio("numpy", name), ratio("published", name))
        memory = (f"{row['peak_mb']:,.0f}", f"{row['above_mb']:,.0f}")
        rows.append((name, *times, *memory, f"{100 * row['scores']['mAP']:.2f}" if row["scores"] else ""))
    return rows


def data_rows(result: dict) -> list[tuple[str, ...]]:
    """The cells under DATA_COLUMNS of every contender of one benchmark."""
    each = {row["contender"]: row["cpu_seconds"] / row["images"] for row in result["rows"]}
    rows = []
    for row in result["rows"]:
        one = each[row["contender"]]
        speed = (_short(1 / one), _short(each["classic"] / one) if "classic" in each else "", _short(1000 * one))
        rows.append((row["contender"], *speed, _short(row["seconds"]), f"{row['peak_mb']:,.0f}"))
    return rows


def speed_rows(result: dict) -> list[tuple[str, ...]]:
    """The cells under SPEED_COLUMNS of every contender of one benchmark."""
    speeds = {row["contender"]: row["images"] / row["seconds"] for row in result["rows"] if "seconds" in row}

    def times(name: str, other: str, factor: float = 1.0) -> str:
        return _short(factor * speeds[name] / speeds[other]) if other in speeds else ""

    rows = []
    for name, row in {row["contender"]: row for row in result["rows"]}.items():
        if name not in speeds:
            rows.append((name, f"not run: {row['not_run']}", *[""] * (len(SPEED_COLUMNS) - 2)))
            continue
        cells = (name, _short(speeds[name]), times(name, "classic"), times(name, "matmul", 100))
        used = ("", "", "")
        if "waited" in row:
            waited, cpu = 100 * row["waited"] / row["seconds"], 1000 * row["cpu_seconds"] / row["images"]
            used = (_short(waited), _short(cpu), f"{row['peak_mb']:,.0f}")
        rows.append((*cells, *used, f"{100 * row['scores']['mAP']:.2f}" if "scores" in row else ""))
    return rows


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def replaced(text: str, start: str, end: str, content: str, readme: Path) -> str:
    """`text` with `content` between its lines `start` and `end`."""
    if start not in text or end not in text.split(start, 1)[1]:
        raise UserError(f"{readme} lacks the lines {start} and {end} between which a table goes")
    head, rest = text.split(start, 1)
    return f"{head}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    directory, readme = Path(options.results), Path(options.readme)
    if options.add:
        add_result(options.add, options.name, options.remark, directory)
    published = json.loads((directory / "published.json").read_text())["rows"]
    before = readme.read_text()
    after = replaced(before, START, END, table(read_results(directory), published), readme)
    after = replaced(after, BENCHMARK_START, BENCHMARK_END, benchmark_table(read_benchmarks(directory)), readme)
    if options.check:
        if after != before:
            raise UserError(f"a table in {readme} is not what results/ says; run python tools/results_table.py")
        return
    write_atomically(readme, lambda temporary: temporary.write_text(after))
    print(f"{readme} updated")


if __name__ == "__main__":
    run(main)
