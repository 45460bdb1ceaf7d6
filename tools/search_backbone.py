"""Search the best backbone for a budget: `tools/search_backbone.py [PRESET] [--max-flops 210M] [--max-latency 5]`.

Trains a supernet that holds all networks of the space (`model/backbones/space.py`), scores parts of it on training
identities that it has not seen, breeds the better ones, trains the best by themselves to choose among, and writes the
winner as a specification that `train.py --backbone searched:FILE.json` trains like any other. With `--retrain n` it
does so itself, with n seeds, beside MobileNetV2 1.0 and other backbones, all with the preset's schedule. Each step goes
on where it was stopped; the same settings give the same result. No test image is looked at before the retraining.
`docs/light_models.md` says more.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import load_preset
from config.cli import parse_train
from config.config import option
from model.backbones.space import Spec, mobilenet_v2, read_spec
from processor.search import Candidate, costs_within
from tools.search_report import comparison, report, write_winner
from tools.search_settings import SearchConfig, plain
from tools.search_steps import Search, alone, last_stride, open_search, short, size_of, train_each
from utils.errors import run
from utils.logging import log, setup_logging

USED = 0.8  # share of a limit that a finalist uses


@dataclass
class RetrainConfig(SearchConfig):
    finals: bool = True  # train the best of each image size by themselves, to choose among; else shared weights do
    against_random: bool = False  # also search by chance alone, as many networks, with finals, and retrain their best
    retrain: int = 0  # seeds with which the winner and its references are trained and tested; 0: only say how
    references: tuple[str, ...] = ("mobilenet_v2",)  # backbones that are retrained beside the winner

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.retrain < 0:
            yield f"--retrain must be 0 or more, not {self.retrain}"


def choose(search: Search, cfg: RetrainConfig, found: Sequence[Candidate]) -> tuple[Candidate, float | None]:
    """Of the best network of each image size, and of MobileNetV2 where that is within the limits, the one that does
    best on people held out when each is trained by itself; and its score then.

    Networks that leave much of the budget are finalists only where a size has no others: alone, those with more
    multiply-adds do better, which scores with shared weights hardly tell (docs/light_models.md).
    """
    if not cfg.finals:
        return found[0], None

    def rank(candidate: Candidate) -> tuple[bool, float]:
        used = max(cost / most for cost, (_, most) in zip(candidate.costs, search.limits, strict=True))
        return used >= USED, candidate.mAP

    best = {size_of(candidate): candidate for candidate in sorted(found, key=rank)}  # the last of a size stays
    finalists, reference = sorted(best.values(), key=size_of), mobilenet_v2(cfg.data.height, cfg.data.width)
    costs = costs_within(reference, search.limits)
    if costs is not None:
        finalists.append(Candidate(reference, costs, search.score(reference)))
    scores = train_each(search, plain(cfg), finalists, "search.log")
    score, place = max((score, -place) for place, score in enumerate(scores))
    return finalists[-place], score


def retrain(search: Search, cfg: RetrainConfig, found: dict[str, Spec]) -> dict[str, list[dict]]:
    """Train what was found, and the references, with each seed; gives their results by name. The name of a run says
    which network it is, so that none is trained twice."""
    results: dict[str, list[dict]] = {}
    for seed in range(cfg.retrain):
        one = plain(cfg, holdout_ids=0, seed=seed)
        for name, spec in found.items():
            results.setdefault(name, []).append(alone(one, search.directory, f"{short(spec)}-s{seed}", spec))
        for name in cfg.references:
            changes = {"backbone": name, "last_stride": last_stride(name)}
            results.setdefault(name, []).append(alone(one, search.directory, f"{name}-s{seed}", **changes))
    return results


def command_for(cfg: SearchConfig, file: Path) -> str:
    """The line that trains a searched network as `retrain` does."""
    spec, default = read_spec(file), load_preset(cfg.run.preset)
    changes = {"backbone": f"searched:{file}", "weights": "none", "holdout_ids": 0, "name": ""}
    changes |= {"height": spec.height, "width": spec.width, "last_stride": spec.last_stride}
    words = ["python", "train.py", cfg.run.preset]
    for name, value in vars(plain(cfg, **changes)).items():
        if value == getattr(default, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option(name)}")
        else:
            words += [f"{option(name)}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def main() -> None:
    cfg = parse_train(None, os.environ, RetrainConfig, "tools/search_backbone.py")
    search = open_search(cfg)
    setup_logging(search.directory / "search.log")
    found = search.run(cfg.candidates, cfg.at_random)
    log.info("%s", report(search, found))
    chosen, alone_score = choose(search, cfg, found)
    winner = write_winner(search, chosen, alone_score)
    best = {"winner": chosen.spec}
    log.info("the winner: %s", winner)
    log.info("train it with: %s", command_for(cfg, winner))
    if cfg.against_random:
        log.info("as many drawn by chance:")
        drawn, _ = choose(search, cfg, search.run(cfg.candidates, cfg.candidates))
        best["best of random"] = drawn.spec
    if cfg.retrain:
        results = retrain(search, cfg, best)
        setup_logging(search.directory / "search.log")
        log.info("%s", comparison(search, results))
    log.info("everything is in %s", search.directory)


if __name__ == "__main__":
    run(main)
