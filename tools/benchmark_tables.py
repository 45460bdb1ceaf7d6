"""Tables in Markdown of what `tools/benchmark.py --save` left in results/benchmark_*.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from utils.errors import UserError

BENCHMARK_COLUMNS = (
    "contender", "seconds", "CPU seconds", "× matmul", "faster than numpy", "faster than published", "peak MB",
    "above features MB", "mAP",
)  # fmt: skip
DATA_COLUMNS = ("contender", "images/s a core", "× classic", "CPU ms/image", "seconds", "peak MB")
SPEED_COLUMNS = (
    "contender", "images/s", "× classic", "% of matmul", "% waiting for data", "CPU ms/image", "peak MB", "mAP",
)  # fmt: skip
SEARCH_COLUMNS = (
    "contender", "queries/s", "ms for one alone", "recall@10", "build seconds", "peak MB", "above vectors MB",
)  # fmt: skip


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
    """The tables in Markdown, a line for each contender of each benchmark, with the hardware."""
    kinds = (BENCHMARK_COLUMNS, DATA_COLUMNS, SPEED_COLUMNS, SEARCH_COLUMNS)
    tables: dict[tuple[str, ...], list[str]] = {columns: [] for columns in kinds}
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
    if result["task"] == "search":
        title = f"search, {result['size']} × {result['width']}, varying in {result['inner']}"
        return SEARCH_COLUMNS, title, search_rows(result)
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


def search_rows(result: dict) -> list[tuple[str, ...]]:
    """The cells under SEARCH_COLUMNS of every contender of one benchmark."""
    rows = []
    for row in result["rows"]:
        if "seconds" not in row:
            rows.append((row["contender"], f"not run: {row['not_run']}", *[""] * (len(SEARCH_COLUMNS) - 2)))
            continue
        speed = (_short(row["queries"] / row["seconds"]), _short(1000 * row["alone_seconds"]))
        built = _short(row["build_seconds"]) if row["contender"] != "exact" else ""
        memory = (f"{row['peak_mb']:,.0f}", f"{row['above_mb']:,.0f}")
        rows.append((row["contender"], *speed, f"{row['recall']:.4f}", built, *memory))
    return rows


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
