"""The search for a backbone: networks of the space are drawn, scored, and the better ones bred."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.backbones.space import TRIES, Space, Spec
from utils.errors import UserError
from utils.pareto import pareto_front

UNITS = ((1e-6, "M multiply-adds"), (1e3, "ms"))  # of the costs


@dataclass(frozen=True)
class Candidate:
    """A network, what it costs (multiply-adds, and seconds where these are limited), and its score."""

    spec: Spec
    costs: tuple[float, ...]
    mAP: float


class Scores:
    """Scores of networks, each computed once and then kept in a file, a line each."""

    def __init__(self, file: Path, score: Callable[[Spec], float]):
        self.file, self.score, self.known = file, score, {}
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                self.known[json.dumps(entry["spec"])] = float(entry["mAP"])
            except (ValueError, KeyError, TypeError):  # was being written when the program was killed
                continue
        if lines and not lines[-1].endswith("\n"):
            with open(file, "a") as torn:
                torn.write("\n")  # so that the next line is one of its own

    def __call__(self, spec: Spec) -> float:
        key = json.dumps(spec.to_dict())
        if key not in self.known:
            self.known[key] = self.score(spec)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a") as file:
                file.write(json.dumps({"spec": spec.to_dict(), "mAP": self.known[key]}) + "\n")
        return self.known[key]


Limits = list[tuple[Callable[[Spec], float], float]]  # for each cost a function of the network and the most it may be


def costs_within(spec: Spec, limits: Limits) -> tuple[float, ...] | None:
    """What a network costs; None beyond a limit. Later ones, which have to be measured, are not asked for then."""
    costs = []
    for cost, most in limits:
        costs.append(cost(spec))
        if costs[-1] > most:
            return None
    return tuple(costs)


@dataclass
class Evolution:
    """Networks of a space within limits, bred for their score (Real et al., Regularized Evolution for Image Classifier
    Architecture Search, AAAI 2019), with parents from the Pareto front (as in Deb et al., NSGA-II, 2002).

    All chance follows from the seed, so a search that was stopped and begins anew goes the same way, as far as before
    in no time if `score` remembers.
    """

    space: Space
    limits: Limits
    score: Callable[[Spec], float]
    seed: int | tuple[int, ...] = 0
    mutation: float = 0.15  # probability that a gene of a child is drawn anew
    found: dict[Spec, Candidate] = field(default_factory=dict)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def run(self, count: int, at_random: int, told: Callable[[Candidate], Any] = lambda _: None) -> list[Candidate]:
        """Score `count` networks, the first `at_random` of them drawn, the others bred; best first. Fewer, or none,
        where the limits leave fewer."""
        while len(self.found) < count:
            candidate = self.propose(self.draw) if len(self.found) < at_random else None
            candidate = candidate or self.propose(self.child)  # of the smallest, where chance finds none
            if candidate is None:
                break
            told(candidate)
        return best_first(self.found.values())

    def propose(self, make: Callable[[], Spec]) -> Candidate | None:
        """A network within the limits that is new, scored; None where chance finds none."""
        for _ in range(TRIES):
            spec = make()
            costs = None if spec in self.found else costs_within(spec, self.limits)
            if costs is not None:
                self.found[spec] = Candidate(spec, costs, self.score(spec))
                return self.found[spec]
        return None

    def draw(self) -> Spec:
        return self.space.random(self.rng)

    def child(self) -> Spec:
        """A mutant of one of the parents, or of a cross of two."""
        parents = self.parents()
        first, second = (parents[self.rng.integers(len(parents))] for _ in range(2))
        spec = self.space.cross(first, second, self.rng) if self.rng.random() < 0.5 else first
        return self.space.mutate(spec, self.rng, self.mutation)

    def parents(self) -> list[Spec]:
        """The Pareto front of score and the last cost, and the best quarter whatever they cost."""
        everyone = list(self.found.values())
        front = pareto_front([c.costs[-1] for c in everyone], [c.mAP for c in everyone])
        best = best_first(everyone)[: max(len(everyone) // 4, 2)]
        return list(dict.fromkeys(c.spec for c in [everyone[i] for i in front] + best)) or [self.space.smallest()]


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: -c.mAP)


def search_each_size(
    space: Space,
    limits: Limits,
    score: Callable[[Spec], float],
    seed: int,
    count: int,
    at_random: int,
    told: Callable[[Candidate], Any] = lambda _: None,
) -> list[Candidate]:
    """`count` networks from one evolution for each size of images, with equal shares of them; best first.

    Together, most of them would be for small images: these are within limits more often, and at the front's cheap end.
    Where the limits leave a size fewer networks than its share, the other sizes have the rest. Raises UserError where
    they leave none at all.
    """
    found: list[Candidate] = []
    for number, size in enumerate(space.sizes):  # large images, which leave the fewest networks, first
        share = (count - len(found)) // (len(space.sizes) - number)
        evolution = Evolution(space.of_size(size), limits, score, (seed, number))
        found += evolution.run(share, -(-share * at_random // count), told)
    if not found:
        smallest = space.smallest()
        costs = [
            f"{scale * cost(smallest):.1f} {unit} where {scale * most:.1f} are allowed"
            for (cost, most), (scale, unit) in zip(limits, UNITS, strict=False)
        ]
        raise UserError(
            f"no network of the space is within the limits: the smallest has {' and '.join(costs)}; raise "
            "--max-flops or --max-latency, or give a smaller --height and --width"
        )
    return best_first(found)
