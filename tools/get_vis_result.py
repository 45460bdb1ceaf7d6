"""Draw ranked lists: `python tools/get_vis_result.py [CKPT] [--sort worst|best|random] [--num N]`.

One PNG a query (query | rank 1 ... rank 10) and one of up to ten queries together. Right matches are framed green,
wrong ones red; images of the same person under the same camera are left out, as the protocol does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.cli import typed_command
from processor.ranked_lists import choose_queries, ranked_rows
from processor.test import do_test, parse_test
from utils.errors import UserError, run
from utils.logging import log
from utils.pictures import draw_rows


@dataclass
class Options:
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or any
    num: int = 10  # queries to draw
    top: int = 10  # ranks to draw
    output: str = ""  # directory of the pictures (empty: results/ranked_SORT in the run's directory)


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options, {"num": "[1, inf)", "top": "[1, inf)"})
    if cfg.eval.protocol in ("single_shot", "vehicle_id"):
        raise UserError(
            f"--protocol {cfg.eval.protocol} has many random galleries and no single ranked list; leave it out"
        )
    if cfg.eval.protocol == "auto":
        cfg.eval.protocol = "standard"  # one ranked list per query, whatever the dataset's protocol
    tested = do_test(cfg, stored, command=typed_command())
    if tested is None:
        return  # one of several processes: the first draws
    ap = list(tested.inference.scores.values())[-1].ap
    directory = Path(options.output) if options.output else tested.directory / "results" / f"ranked_{options.sort}"
    directory.mkdir(parents=True, exist_ok=True)
    chosen = choose_queries(ap, options.sort, options.num, cfg.run.seed)
    rows, columns = ranked_rows(cfg, tested.inference, tested.query, tested.gallery, chosen, options.top)
    for place, (index, row) in enumerate(zip(chosen, rows, strict=True), 1):
        name = f"{place:03}_ap{100 * ap[index]:05.1f}_{Path(tested.query.samples[index].path).stem}.png"
        draw_rows(directory / name, [row], columns)
    draw_rows(directory / "overview.png", rows[:10], columns)
    log.info("%d ranked lists and overview.png written to %s", len(rows), directory)


if __name__ == "__main__":
    run(main)
