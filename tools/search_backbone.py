"""Find the best backbone for a budget: `tools/search_backbone.py [PRESET] [--max-flops 210M] [--max-latency 5]`.

Trains a supernet that contains all networks of the search space, scores parts of it on held-out training identities,
evolves the better ones, trains the best one of each image size on its own, and writes the winner as a specification for
`train.py --backbone searched:FILE.json`. In Matrix Light ReID's search space (`--space mlr`, also used by the presets
light_210m...) there is no supernet; each network is trained on its own. `--retrain N` also trains the winner and
reference backbones with N seeds and compares them. Each step resumes where it was stopped. No test image is read before
the retraining. See docs/light_models.md.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, load_preset
from config.config import option
from model.backbones.searchable import Spec, read_spec
from tools.light.evolution import Candidate, costs_within
from tools.light.report import check_latency, check_ranking, compare, report, write_winner
from tools.light.runs import Options, Search, open_search, parse_search, spec_id, train_network, usual_last_stride
from tools.light.space import mobilenet_v2
from utils.errors import run
from utils.logging import log, setup_logging

USED = 0.8  # smallest share of a limit that a finalist uses


def choose(search: Search, finals: bool, found: Sequence[Candidate]) -> tuple[Candidate, float | None]:
    """The winner, and its score when trained alone (None without finals).

    Finalists are the best network of each image size, and MobileNetV2 if it is within the limits. Networks that use
    little of the budget are finalists only where a size has no others: trained alone, those with more multiply-adds
    are better, which scores with shared weights hardly show (docs/light_models.md).
    """
    alone = search.scored == "trained alone"
    if alone or not finals:
        return found[0], found[0].mAP if alone else None

    def rank(candidate: Candidate) -> tuple[bool, float]:
        used = max(cost / limit for cost, (_, limit) in zip(candidate.costs, search.limits, strict=True))
        return used >= USED, candidate.mAP

    best = {candidate.size: candidate for candidate in sorted(found, key=rank)}  # the last one of each size is kept
    finalists = sorted(best.values(), key=lambda c: c.size)
    reference = mobilenet_v2(search.cfg.data.height, search.cfg.data.width)
    costs = costs_within(reference, search.limits)
    if costs is not None:
        finalists.append(Candidate(reference, costs, search.score(reference)))
    scores = search.train_each(finalists, search.cfg.run.seed)
    winner = max(range(len(scores)), key=scores.__getitem__)
    return finalists[winner], scores[winner]


def retrain(search: Search, options: Options, found: dict[str, Spec]) -> dict[str, list[dict]]:
    """Train networks and references with each seed on all training identities; results by name, one per seed."""
    results: dict[str, list[dict]] = {}
    for seed in range(options.retrain):
        cfg = search.cfg.replace(holdout_ids=0, seed=seed)
        for name, spec in found.items():
            result = train_network(cfg, search.directory, f"{spec_id(spec)}-s{seed}", spec)
            results.setdefault(name, []).append(result)
        for name in options.references:
            changes = {"backbone": name, "last_stride": usual_last_stride(name)}
            results.setdefault(name, []).append(train_network(cfg, search.directory, f"{name}-s{seed}", **changes))
    return results


def train_command(cfg: Config, file: Path) -> str:
    """The command that trains a searched network as `retrain` does."""
    spec, default = read_spec(file), load_preset(cfg.run.preset)
    cfg = cfg.replace(backbone=f"searched:{file}", weights="none", holdout_ids=0, name="", last_stride=spec.last_stride)
    words = ["python", "train.py", cfg.run.preset]
    for name, value in cfg.replace(height=spec.height, width=spec.width).to_dict().items():
        if value != default.get(name):
            plain = () if isinstance(value, bool) else map(str, value if isinstance(value, tuple) else (value,))
            words += [option(f"no_{name}" if value is False else name), *plain]
    return shlex.join(words)


def main() -> None:
    cfg, options = parse_search(__doc__, os.environ)
    if options.check_latency:
        setup_logging()
        return check_latency(cfg, options.check_latency, options.latency_batch)
    search = open_search(cfg, options)
    if options.check_ranking:
        return check_ranking(search, options.check_ranking, options.ranking_seeds)
    found = search.run(options.candidates, options.at_random)
    log.info(report(search, found))
    chosen, score = choose(search, options.finals, found)
    winner = write_winner(search, chosen, score)
    best = {"winner": chosen.spec}
    log.info("the winner: %s", winner)
    log.info("train it with: %s", train_command(cfg, winner))
    if options.against_random:
        log.info("the same number of random networks:")
        random = search.run(options.candidates, options.candidates)
        best["best of random"] = choose(search, options.finals, random)[0].spec
    if options.retrain:
        results = retrain(search, options, best)
        setup_logging(search.directory / "search.log")
        log.info(compare(search, results))
    log.info("everything is in %s", search.directory)


if __name__ == "__main__":
    run(main)
