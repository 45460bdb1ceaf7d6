"""Write the tables of docs/benchmarks.md from results/benchmark_*.json: `python benchmarks/tables.py [--check]`."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.options import parse_options
from tools.results_table import ROOT, update
from utils.errors import run
from utils.files import reading

START, END = "<!-- speed and memory: written by benchmarks/tables.py -->", "<!-- end of speed and memory -->"
SCORING = ("seconds", "CPU seconds", "× matmul", "faster than numpy", "faster than published", "peak MB",
           "above features MB", "mAP")  # fmt: skip
DATA = ("images/s per core", "× classic", "CPU ms/image", "seconds", "peak MB")
MODELS = ("images/s", "× classic", "% of matmul", "% waiting for data", "peak MB", "mAP")
SEARCH = ("queries per CPU second", "ms for one alone", "recall@10", "build seconds", "peak MB", "above vectors MB")
COLUMNS = {"eval": SCORING, "rerank": SCORING, "data": DATA, "train": MODELS, "extract": MODELS, "search": SEARCH}


def cells(result: dict, row: dict) -> dict[str, float | str]:
    """Return the values of one contender by column, without those that it lacks."""
    task, rows = result["task"], {r["contender"]: r for r in result["rows"] if "seconds" in r}
    if "seconds" not in row:
        return {COLUMNS[task][0]: f"not run: {row['not_run']}"}

    def cost(name: str) -> float:
        """Seconds (for `data`: CPU seconds) per image or per call; NaN without that contender."""
        other = rows.get(name, {})
        return other.get("cpu_seconds" if task == "data" else "seconds", float("nan")) / other.get("images", 1)

    mine, images = cost(row["contender"]), row.get("images", 1)
    values = {"peak MB": row.get("peak_mb"), "seconds": row["seconds"], "× matmul": mine / cost("matmul")}
    values |= {"faster than numpy": cost("numpy") / mine, "faster than published": cost("published") / mine}
    values |= {"images/s": 1 / mine, "images/s per core": 1 / mine, "× classic": cost("classic") / mine}
    values |= {"% of matmul": 100 * cost("matmul") / mine, "CPU seconds": row.get("cpu_seconds")}
    if task == "data":
        values["CPU ms/image"] = 1000 * row["cpu_seconds"] / images
    if "waited" in row:
        values["% waiting for data"] = 100 * row["waited"] / row["seconds"]
    mAP = row.get("mAP", row.get("scores", {}).get("mAP"))
    values["mAP"] = None if mAP is None else f"{100 * mAP:.2f}"
    values["above features MB"] = values["above vectors MB"] = row.get("above_mb")
    if task == "search":
        values |= {"queries per CPU second": row["queries"] / row["cpu_seconds"]}
        values |= {"ms for one alone": 1000 * row["alone_seconds"]}
        build = row["build_seconds"] if row["contender"] != "exact" else None
        values |= {"recall@10": f"{row['recall']:.4f}", "build seconds": build}
    return {name: value for name, value in values.items() if value is not None and value == value}


def title(result: dict) -> str:
    if result["task"] in ("eval", "rerank"):
        wide = f", {result['width']} wide" if result["width"] != 2048 else ""
        return ", ".join(str(result[key]) for key in ("task", "size", "features", "metric")) + wide
    if result["task"] == "search":
        return f"search, {result['size']} × {result['width']}, varying in {result['inner']}"
    names = [result[key] for key in ("task", "backbone", "dataset") if key in result]
    return f"{', '.join(names)}, {result['height']} × {result['width']}, batches of {result['batch_size']}"


def table(results: list[dict]) -> str:
    """Tables in Markdown, one per set of columns, one line per contender, with the hardware."""
    texts = []
    for columns in dict.fromkeys(COLUMNS.values()):
        head = f"| benchmark | contender | {' | '.join(columns)} | hardware |"
        lines = [head, re.sub(r"[^|]+", "---", head)]
        for result in (r for r in results if COLUMNS[r["task"]] == columns):
            for row in result["rows"]:
                values = cells(result, row)
                shown = [short(values.get(column, ""), column) for column in columns]
                lines.append(f"| {' | '.join([title(result), row['contender'], *shown, result['hardware']])} |")
        if len(lines) > 2:
            texts.append("\n".join(lines))
    return "\n\n".join(texts) or "Not measured yet."


def short(value: float | str, column: str) -> str:
    """Format with three significant digits, from 100 on as a whole number; memory in whole MB."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or column.endswith("MB") else f"{value:.3g}"


def read_results(directory: Path) -> list[dict]:
    """Read the measurements in a directory. Raises UserError for a damaged one."""
    results = []
    for path in sorted(directory.glob("benchmark_*.json")):
        with reading(path, "measure it again with benchmarks/run.py, or remove it"):
            results.append(json.loads(path.read_text()))
            table(results[-1:])
    return results


@dataclass
class Options:
    results: str = str(ROOT / "results")  # directory of the measurements
    page: str = str(ROOT / "docs" / "benchmarks.md")  # file whose tables are written
    check: bool = False  # write nothing; fail if the tables are not up to date


def main() -> None:
    options = parse_options(None, Options, __doc__)
    update(Path(options.page), START, END, table(read_results(Path(options.results))), options.check)


if __name__ == "__main__":
    run(main)
