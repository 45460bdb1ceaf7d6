"""Draw ranked lists: `python get_vis_result.py [CKPT] [--sort worst|best|random] [--num N]`.

Writes one PNG per query (query | rank 1 ... rank 10) and an overview of up to ten queries. Correct matches have a green
frame, wrong ones a red frame. Images of the same person from the same camera are left out, as in the scores.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config.cli import typed_command
from processor.ranked_lists import choose_queries, ranked_rows
from processor.test import do_test, parse_test
from utils.errors import run
from utils.logging import log
from utils.pictures import draw_rows, remove_rows


@dataclass
class Options:
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or random ones
    num: int = 10  # number of queries
    top: int = 10  # number of ranks
    output: str = ""  # directory of the pictures (empty: results/ranked_SORT in the run's directory)


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options, {"num": "[1, inf)", "top": "[1, inf)"})
    tested = do_test(cfg, stored, command=typed_command(), ranked_lists=True)
    if tested is None:
        return  # with several processes only the first draws
    job, inference = tested
    ap = list(inference.scores.values())[-1].ap
    directory = Path(options.output) if options.output else job.directory / "results" / f"ranked_{options.sort}"
    directory.mkdir(parents=True, exist_ok=True)
    remove_rows(directory)
    chosen = choose_queries(ap, options.sort, options.num, cfg.run.seed)
    rows, columns = ranked_rows(job.cfg, inference, job.query, job.gallery, chosen, options.top)
    for number, (index, row) in enumerate(zip(chosen, rows, strict=True), 1):
        name = f"{number:03}_ap{100 * ap[index]:05.1f}_{Path(job.query.samples[index].path).stem}.png"
        draw_rows(directory / name, [row], columns)
    draw_rows(directory / "overview.png", rows[:10], columns)
    log.info("%d ranked lists and overview.png written to %s", len(rows), directory)


if __name__ == "__main__":
    run(main)
