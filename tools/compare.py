"""Compare runs: `python tools/compare.py [RUN ...] [--log-dir log]`; default: all finished runs in LOG_DIR.

RUN is a name or directory, or a JSON file of a run's results, such as log/demo/results/test_last_demo_cosine.json.
Runs that differ only in the seed form one group, shown as mean ± standard deviation. `best` is the highest plain mAP of
each run at an evaluation, with its epoch. It is chosen on the test split, so report the scores of the last epoch.

Results of test.py contain the AP of each query. The scores of such a result, and the differences between two of them on
the same images, are shown with 95 % confidence intervals (bootstrap over the queries).
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from config import Config
from config.options import parse_options
from processor.checkpoint import FILES
from processor.resume import FREE_SETTINGS
from processor.state import best_score
from tools.curves import METRICS, read_history
from tools.tables import mean_and_std, text_table
from utils.errors import UserError, run
from utils.files import reading
from utils.logging import log, setup_logging

TRAINED = Path("results", "train.json")
TRIALS = 1000  # bootstrap samples
WIDEST = 40  # most letters of a setting's value
COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "Rank-1"}


@dataclass
class Options:
    runs: tuple[str, ...] = ()  # names or directories of runs, or JSON files of results (default: all finished runs)
    log_dir: str = "log"  # directory of all runs


def find_results(names: Sequence[str], log_dir: Path) -> dict[str, Path]:
    """Return the JSON file of results for each name to show. Raises UserError for a run that has none."""
    found = {}
    for name in names or sorted(path.parents[1].name for path in log_dir.glob(f"*/{TRAINED}")):
        places = [place if place.is_file() else place / TRAINED for place in (Path(name), log_dir / name)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f"{name} has no {TRAINED} (a run writes it at its end) and is not a JSON file of results")
        found[name] = path
    if not found:
        raise UserError(f"there is no finished run in {log_dir.absolute()}; train one with python train.py")
    return found


def read_result(path: Path) -> dict[str, Any]:
    """Read a result, and add `best`: the highest plain mAP of the run and its epoch, or None if unknown."""
    with reading(path, "give a file of RUN/results/"):
        result = json.loads(path.read_text())
        _ = result["seed"], result["note"], result["epochs"]
        result["settings"] = Config.from_dict(result["settings"]).to_dict()  # adds defaults that older runs lack
        _ = [row[key] for row in result["scores"].values() for key in COLUMNS]
    known = (path.parents[1] / METRICS).is_file() if path.parent.name == "results" else False
    return result | {"best": best_score(read_history(path.parents[1])[0]) if known else None}


def shaping(result: dict[str, Any]) -> dict[str, str]:
    """Return the settings that a score may depend on, without the seed, as text."""
    ignored = FREE_SETTINGS | {"seed"}
    return {name: str(value) for name, value in result["settings"].items() if name not in ignored}


def group_results(results: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group results that differ only in the seed, under the name of the first and the number of the others."""
    alike: dict[str, list[str]] = {}
    for name, result in results.items():
        alike.setdefault(str(shaping(result)), []).append(name)
    groups = {}
    for first, *others in alike.values():
        if others:
            log.info("%s +%d: also %s", first, len(others), ", ".join(others))
        groups[f"{first} +{len(others)}" if others else first] = [results[name] for name in (first, *others)]
    return groups


def score_rows(groups: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row per group and protocol."""
    rows = [["runs", "seeds", "protocol", *COLUMNS.values(), "queries", "last epoch", "best mAP (epoch)"]]
    for name, results in groups.items():
        for protocol in dict.fromkeys(p for result in results for p in result["scores"]):
            some = [result for result in results if protocol in result["scores"]]
            scores = [result["scores"][protocol] for result in some]
            best = [f"{r['best'][0]:.2f} ({r['best'][1]})" for r in some if r["best"] and protocol == "plain"]
            row = [name, " ".join(str(r["seed"]) for r in some), protocol]
            cells = {key: mean_and_std([s[key] for s in scores]) for key in COLUMNS}
            if len(some) == 1 and protocol in some[0].get("queries", {}):
                for key, (low, high) in zip(("mAP", "rank1"), intervals(per_query(some[0], protocol)), strict=True):
                    cells[key] += f" [{low:.2f}, {high:.2f}]"
            row += cells.values()
            row += [" ".join(dict.fromkeys(str(s.get("valid_queries", "")) for s in scores))]
            rows.append([*row, " ".join(dict.fromkeys(str(r["epochs"]) for r in some)), ", ".join(best)])
    return rows


def setting_rows(groups: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row per setting that differs between groups."""
    values = [shaping(results[0]) for results in groups.values()]
    names = [name for name in values[0] if len({v[name] for v in values}) > 1]
    cut = [[v[name] if len(v[name]) <= WIDEST else f"{v[name][:WIDEST]}…" for v in values] for name in names]
    return [["setting", *groups], *([name, *row] for name, row in zip(names, cut, strict=True))]


def per_query(result: dict[str, Any], protocol: str) -> np.ndarray:
    """(Q, 2) AP and Rank-1 of the queries in percent."""
    values = result["queries"][protocol]
    return 100 * np.stack([np.array(values["ap"]), np.array(values["first"]) == 1], 1)


def intervals(rows: np.ndarray) -> list[tuple[float, float]]:
    """95 % bootstrap intervals of the means of the columns of (Q, 2); the same samples for all results."""
    rng = np.random.default_rng(0)
    means = np.stack([rows[rng.integers(0, len(rows), len(rows))].mean(0) for _ in range(TRIALS)])
    return list(map(tuple, np.percentile(means, [2.5, 97.5], 0).T))


def difference_rows(groups: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row per protocol and pair of results on the same images: the scores of the second minus the first."""
    rows = [["protocol", "from", "to", "mAP", "Rank-1"]]
    alone = {name: results[0] for name, results in groups.items() if len(results) == 1 and results[0].get("queries")}
    for (a, first), (b, second) in itertools.combinations(alone.items(), 2):
        for protocol in first["queries"] if first["images"] == second["images"] else ():
            if protocol in second["queries"]:
                change = per_query(second, protocol) - per_query(first, protocol)
                cells = [
                    f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" + (" within chance" if low <= 0 <= high else "")
                    for mean, (low, high) in zip(change.mean(0), intervals(change), strict=True)
                ]
                rows.append([protocol, a, b, *cells])
    return rows


def log_comparison(groups: dict[str, list[dict[str, Any]]]) -> None:
    """Log the tables of results by name, the settings that differ, and the notes."""
    log.info(text_table(score_rows(groups), str.ljust))
    if len(differences := difference_rows(groups)) > 1:
        log.info(f"\ndifferences, with 95 % confidence intervals\n{text_table(differences, str.ljust)}")
    trained = {name: r for name, r in groups.items() if not r[0]["settings"]["backbone"].endswith(FILES)}
    if len(trained) > 1:
        log.info(f"\nsettings that differ\n{text_table(setting_rows(trained), str.ljust)}")
    for name, results in groups.items():
        for note in dict.fromkeys(result["note"] for result in results if result["note"]):
            log.info("note on %s: %s", name, note)


def main() -> None:
    options = parse_options(None, Options, __doc__, positional="runs")
    setup_logging()
    found = find_results(options.runs, Path(options.log_dir))
    results = {name: read_result(path) for name, path in found.items()}
    log_comparison(group_results(results))


if __name__ == "__main__":
    run(main)
