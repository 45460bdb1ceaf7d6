"""Evolutionary search: score random networks of a space, then mutants and crosses of the better ones."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.backbones.searchable import Spec
from tools.light.space import TRIES, Space, pick
from utils.errors import UserError

MUTATION = 0.15  # probability that a gene of a child is drawn again
Limits = list[tuple[Callable[[Spec], float], float]]  # cost functions of a network, each with its largest allowed value


@dataclass(frozen=True)
class Candidate:
    """A scored network; costs: multiply-adds and, where latency is limited, seconds; mAP in percent."""

    spec: Spec
    costs: tuple[float, ...]
    mAP: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its input images."""
        return self.spec.height, self.spec.width


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> np.ndarray:
    """Indices of the Pareto-optimal points, by rising cost; of equal points the first.

    A point is not optimal if another has at most its cost and at least its gain, and one of the two is better.
    """
    front, best = [], -np.inf
    for index in np.lexsort((np.arange(len(costs)), -np.asarray(gains), np.asarray(costs))):
        if gains[index] > best:
            front.append(index)
            best = gains[index]
    return np.array(front, dtype=int)


class Scores:
    """Scores of networks. Each is computed once and appended to a file, so that a stopped search resumes."""

    def __init__(self, file: Path, score: Callable[[Spec], float]):
        self.file, self.score, self.known = file, score, {}
        for line in file.read_text().splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut off by a kill
                entry = json.loads(line)
                self.known[json.dumps(entry["spec"])] = float(entry["mAP"])

    def __call__(self, spec: Spec) -> float:
        key = json.dumps(spec.to_dict())
        if key not in self.known:
            self.known[key] = self.score(spec)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a") as file:
                # A newline on both sides, as the line before may be cut off.
                file.write("\n" + json.dumps({"spec": spec.to_dict(), "mAP": self.known[key]}) + "\n")
        return self.known[key]


def costs_within(spec: Spec, limits: Limits) -> tuple[float, ...] | None:
    """The costs of a network; None if one is above its limit. The costs after that one are not computed."""
    costs = []
    for cost, limit in limits:
        costs.append(cost(spec))
        if costs[-1] > limit:
            return None
    return tuple(costs)


def evolve(
    space: Space, limits: Limits, score: Callable[[Spec], float], count: int, at_random: int,
    seed: int | tuple[int, ...] = 0,
) -> list[Candidate]:  # fmt: skip
    """Score `count` networks within limits, of which the first `at_random` are random; best first. There are
    fewer, perhaps none, if not enough networks are within the limits.

    Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019, with parents from the Pareto
    front, as in Deb et al., NSGA-II, 2002. All randomness comes from the seed, so a search that is restarted repeats
    itself, and quickly if `score` remembers the results.
    """
    rng, found = np.random.default_rng(seed), {}

    def child() -> Spec:
        """A mutant of a parent, or of a cross of two."""
        parents = choose_parents(list(found.values())) or [space.smallest()]
        first, second = pick(parents, rng), pick(parents, rng)
        return space.mutate(space.cross(first, second, rng) if rng.random() < 0.5 else first, rng, MUTATION)

    def add(make: Callable[[], Spec]) -> bool:
        """Score a new network within the limits; False if `make` finds none."""
        for _ in range(TRIES):
            spec = make()
            known = spec in found or not space.allows(spec)
            costs = None if known else costs_within(spec, limits)
            if costs is not None:
                found[spec] = Candidate(spec, costs, score(spec))
                return True
        return False

    while len(found) < count:
        at_first = len(found) < at_random
        if not (at_first and add(lambda: space.random(rng))) and not add(child):
            break
    return best_first(found.values())


def choose_parents(candidates: Sequence[Candidate]) -> list[Spec]:
    """The Pareto front of score and last cost, and the quarter with the best scores."""
    front = pareto_front([c.costs[-1] for c in candidates], [c.mAP for c in candidates])
    best = best_first(candidates)[: max(len(candidates) // 4, 2)]
    return list(dict.fromkeys(c.spec for c in [candidates[i] for i in front] + best))


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: -c.mAP)


def search_each_size(
    space: Space, limits: Limits, score: Callable[[Spec], float], seed: int, count: int, at_random: int
) -> list[Candidate]:
    """`count` networks, equally many from one evolution per image size; best first.

    In one evolution for all sizes, most networks would be for small images, which are more often within the limits.
    If a size has fewer networks than its share, the next sizes get more. Raises UserError if there is none at all.
    """
    found: list[Candidate] = []
    for number, size in enumerate(space.sizes):  # large images first, as they have the fewest networks
        share = (count - len(found)) // (len(space.sizes) - number)
        random = -(-share * at_random // count)
        found += evolve(space.of_size(size), limits, score, share, random, (seed, number))
    if not found:
        raise UserError(
            "no network of the space is within the limits; raise --max-flops or --max-latency, or give a smaller "
            "--height and --width"
        )
    return best_first(found)
