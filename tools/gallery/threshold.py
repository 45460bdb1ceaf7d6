"""Thresholds of similarity for two pictures, or two tracklets, of the same person, and how often they are wrong.

Error rates are measured on known people. Their 95 % intervals come from a bootstrap over people: pairs of one person
depend on each other, so a million pairs of a hundred people show less than a million pairs of a thousand people.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from datasets.base import MOST_CAMERAS, ReIDDataset, Sample
from tools.tables import text_table
from utils.errors import UserError
from utils.roc import count_pairs, pair_blocks

DRAWS = 1000  # bootstrap samples; fewer if there are more people than WEIGHTS allows
WEIGHTS = 1 << 26  # most weights, of all people in all samples
FEWEST = 10  # smallest number of expected errors at a promised rate
# Default rates, which are promised if the data can show them, and what they are shares of.
USUAL = {
    "fmr": (1e-3, "pairs of different people"),
    "fnmr": (1e-2, "pairs of one person"),
    "fpir": (5e-2, "queries"),
}
SHARES = {  # by answer, and whether a search gave it: a rate, and what it is a share of
    ("same", False): ("fmr", "pairs of different people"),
    ("different", False): ("refused", "pairs of one person"),
    ("unknown", False): ("unknown", "pairs of one person"),
    ("same", True): ("fpir", "searches for people who are not in the gallery"),
    ("unknown", True): ("fnir", "searches for people in the gallery, or another person is the nearest"),
}
LISTED = 20  # pairs of cameras, those with the highest FMR
LINES = {  # of a table: a field of Thresholds or a rate
    "same": "same from",
    "fmr": "  different people called same (FMR)",
    "fnmr": "  one person not called same (FNMR)",
    "different": "different below",
    "refused": "  one person called different",
    "unknown": "  one person called unknown",
    "search": "a search names a person from",
    "fpir": "  people not in the gallery who are named (FPIR)",
    "fnir": "  people in the gallery who are not found (FNIR)",
}


class Rate(NamedTuple):
    """A share of errors, its 95 % interval, and the numbers that it comes from."""

    errors: int
    number: int  # pairs, or queries
    people: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.errors / max(self.number, 1)

    def __str__(self) -> str:
        low, share, high = (f"{100 * value:.3g}" for value in (self.low, self.share, self.high))
        return f"{share} % ({low} to {high})"


@dataclass
class Thresholds:
    """What a similarity means, and how often that is wrong on known people. For JSON: `asdict`, and the constructor."""

    same: float  # from this similarity on, two pictures show one person
    different: float  # below this similarity, they show two people
    search: float  # from this similarity on, a search names the person
    source: str  # the data that they were found on
    gallery: int = 0  # size of the gallery that was searched
    rates: dict[str, Rate] = field(default_factory=dict)  # see `find_thresholds`; empty: unknown
    spread: dict[str, str] = field(default_factory=dict)  # number and similarities of each kind of pairs
    cameras: list[tuple[int, int, Rate, Rate]] = field(default_factory=list)  # query and gallery camera, FMR, FNMR

    def __post_init__(self):
        self.rates = {name: Rate(*rate) for name, rate in self.rates.items()}

    def answer(self, similarity: float, search: bool = False) -> str:
        """Return same, different or unknown, for two pictures or for a hit of a search."""
        if similarity >= (self.search if search else self.same):
            return "same"
        return "different" if similarity < self.different else "unknown"

    def reason(self, answer: str, search: bool = False) -> str:
        """Return the similarities that have this answer, and how often it is wrong for known people, as text."""
        same = self.search if search else self.same
        limits = {"same": f"at least {same:.3f}", "different": f"below {self.different:.3f}"}
        limit = limits.get(answer, f"below {same:.3f}" + f", at least {self.different:.3f}" * (not search))
        name, whose = SHARES[answer, search]
        rate = f"; so are {self.rates[name]} of {whose}" if name in self.rates else ""
        return f"{limit} ({self.source}{rate})"


class Bootstrap:
    """Error rates, with intervals from samples that hold each person as often as it was drawn."""

    def __init__(self, people: int):
        draws = max(min(DRAWS, WEIGHTS // people), 100)
        weights = np.random.default_rng(0).multinomial(people, np.full(people, 1 / people), draws)
        self.people, self.weights = people, torch.from_numpy(weights).double()  # (draws, people)

    def of_one(self, label: np.ndarray, wrong: np.ndarray) -> Rate:
        """Return the share of wrong things; wrong (N,) bool, label (N,): the person of each."""
        errors, all_of = self._count(label[wrong]), self._count(label)
        people = int((all_of > 0).sum())
        return self._rate(wrong.sum(), len(label), people, people, self.weights @ errors, self.weights @ all_of)

    def of_two(self, first: np.ndarray, second: np.ndarray, query: np.ndarray, gallery: np.ndarray) -> Rate:
        """Return the share of wrong pairs, of people `first` and `second` (E,), among all pairs of different people."""
        pairs = torch.from_numpy(np.stack((first, second)))
        shape = (self.people, self.people)
        wrong = torch.sparse_coo_tensor(
            pairs, torch.ones(len(first)).double(), shape, check_invariants=False
        ).coalesce()
        a, b, w = self._count(query), self._count(gallery), self.weights
        people = [int(((a > 0) | (b > 0)).sum()), int((a > 0).sum() * (b > 0).sum() - (a * b > 0).sum())]
        total = (w @ a) * (w @ b) - w.square() @ (a * b)
        return self._rate(len(first), a.sum() * b.sum() - a @ b, *people, (w.T * (wrong @ w.T)).sum(0), total)

    def _count(self, label: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.bincount(label, minlength=self.people)).double()

    def _rate(self, errors: float, number: float, people: int, units: int, wrong: torch.Tensor, total: torch.Tensor):
        """The upper end is at least that of the rule of three for `units` people, or pairs of people."""
        shares = (wrong / total)[total > 0].numpy()
        low, high = np.quantile(shares, (0.025, 0.975)) if len(shares) else (0, 1)
        return Rate(int(errors), int(number), people, float(low), float(min(max(high, 3 / max(units, 1)), 1)))


def find_thresholds(
    query: torch.Tensor, gallery: torch.Tensor, *ids: Sequence[int], source: str = "",
    fmr: float = 0, fnmr: float = 0, fpir: float = 0, equal: bool = False,
) -> Thresholds:  # fmt: skip
    """Find thresholds and their error rates from the pairs of features (Q, D) and (G, D) float32 of length 1.

    fmr: share of the pairs of different people from `same` on. fnmr: share of the pairs of one person below
    `different`; in the result, below `same`: `refused` are those below `different`, `unknown` the others. equal: both
    thresholds at the equal error rate. fpir: share of the queries that a search names while their person is not in the
    gallery. fnir: share of those whose person is in it, but not nearest, or below `search`. Raises UserError for a rate
    that the pairs cannot show, and ValueError if there are no pairs of one person, or none of different people.
    """
    counter = count_pairs(query, gallery, *ids)
    if not counter.number.all():
        missing = "of different people" if counter.number[0] else "of one person under two cameras"
        raise ValueError(f"there are no two pictures {missing}")
    wanted = {"fmr": (fmr, counter.number[1]), "fnmr": (fnmr, counter.number[0]), "fpir": (fpir, len(query))}
    fmr, fnmr, fpir = (promised(name, *given, source) for name, given in wanted.items())
    place = counter.equal_error() if equal else counter.at_fpr(fmr)
    refused = place if equal else max(place, counter.quantile(0, 1 - fnmr))
    same, different = (-float(counter.thresholds[i]) for i in (place, refused))
    accepted, matching, cosines, best = [], [], [], []
    for rows, cosine, mates, others in pair_blocks(query, gallery, *ids):
        for found, mask in ((accepted, others & (cosine >= same)), (matching, mates)):
            found.append(mask.nonzero() + torch.tensor([int(rows[0]), 0]))
        cosines.append(cosine[mates])
        best.append(torch.stack([cosine.masked_fill(~mask, -torch.inf).amax(1) for mask in (mates, others)]))
    accepted, matching, cosines = (torch.cat(found).numpy() for found in (accepted, matching, cosines))
    mate, stranger = torch.cat(best, 1).numpy()
    search = float(np.nextafter(np.sort(stranger)[::-1][int(fpir * len(query) + 1e-9)], np.float32(np.inf)))

    pids, cameras = np.concatenate(ids[:2]), [np.asarray(camids) for camids in ids[2:]]
    # every distractor (pid 0) counts as a different person
    people, label = np.unique(np.where(pids > 0, pids, -1 - np.arange(len(pids))), return_inverse=True)
    labels, sample = np.split(label, [len(query)]), Bootstrap(len(people))
    first, second = (side[accepted[:, i]] for i, side in enumerate(labels))
    person, known = labels[0][matching[:, 0]], np.isfinite(mate)
    missed, low = cosines < same, cosines < different
    rates = {"fmr": sample.of_two(first, second, *labels)}
    rates |= {
        name: sample.of_one(person, x) for name, x in (("fnmr", missed), ("refused", low), ("unknown", missed & ~low))
    }
    rates["fpir"] = sample.of_one(labels[0], stranger >= search)
    rates["fnir"] = sample.of_one(labels[0][known], ((mate < search) | (mate <= stranger))[known])
    spread = {}
    for kind, name in enumerate(("pairs of one person", "pairs of different people")):
        ends = (-float(counter.thresholds[counter.quantile(kind, 1 - q)]) for q in (0.5, 0.05, 0.95))
        spread[name] = "{:,}, similarity {:.3f}, nine of ten {:.3f} to {:.3f}".format(counter.number[kind], *ends)
    views, rows = [np.unique(camids).tolist() for camids in cameras], []
    for pair in product(*views) if max(map(len, views)) <= MOST_CAMERAS else ():
        on = [camids == camera for camids, camera in zip(cameras, pair, strict=True)]
        wrong, mates = (on[0][pairs[:, 0]] & on[1][pairs[:, 1]] for pairs in (accepted, matching))
        sides = [side[mask] for side, mask in zip(labels, on, strict=True)]
        rows.append(
            (*pair, sample.of_two(first[wrong], second[wrong], *sides), sample.of_one(person[mates], missed[mates]))
        )
    rows = sorted((row for row in rows if row[2].number), key=lambda row: -row[2].share)
    return Thresholds(same, different, search, source, len(gallery), rates, spread, rows)


def pool_tracklets(features: Sequence[torch.Tensor], sides: Sequence[list[Sample]], dataset: ReIDDataset) -> tuple:
    """Return features and ids, as `find_thresholds` takes them, of the tracklets of queries and of the gallery.

    A tracklet holds the pictures of both sides with the same identity, camera and track; its feature is their mean. A
    picture without a track is a tracklet of its own. If cameras are unknown, each tracklet counts as a camera.
    """
    samples = [sample for side in sides for sample in side]
    known = [(s.pid, s.camid if dataset.cameras else 0, dataset.tracks.get(s.path, s.path)) for s in samples]
    number = {key: place for place, key in enumerate(dict.fromkeys(known))}
    group = torch.tensor([number[key] for key in known])
    rows = torch.cat(list(features)).double()
    mean = F.normalize(rows.new_zeros(len(number), rows.shape[1]).index_add_(0, group, rows), eps=1e-30).float()
    pids, camids = (torch.tensor([key[i] for key in number]) for i in (0, 1))
    camids = camids if dataset.cameras else torch.arange(len(number))
    of_query, of_gallery = (part.unique() for part in group.split([len(side) for side in sides]))
    return *(mean[p] for p in (of_query, of_gallery)), *(
        ids[p].numpy() for ids in (pids, camids) for p in (of_query, of_gallery)
    )


def promised(name: str, rate: float, number: int, source: str) -> float:
    """Return the given rate; for 0, the usual one, or the least that this number of pairs or queries can show.

    Raises UserError for a given rate that is not a share, or at which fewer than FEWEST errors are expected.
    """
    least, (usual, whose) = FEWEST / number, USUAL[name]
    if not 0 <= rate < 1:
        raise UserError(f"--{name} must be between 0 and 1, not {rate:g}")
    if 0 < rate < least:
        needed = int(np.ceil(FEWEST / rate))
        raise UserError(
            f"{source}: {number:,} {whose} are too few for --{name} {rate:g}, which needs {needed:,}, so that {FEWEST} "
            f"errors are expected; use more pictures, or --{name} {least:.2g}"
        )
    return rate or min(max(usual, least), 0.5)


def threshold_table(found: dict[str, Thresholds], camera_of: Callable[[int], str]) -> str:
    """Return a table of thresholds and their error rates, one column per kind (pictures, tracklets)."""
    rows = [["95 % intervals by bootstrap over people", *found]]
    rows += [[name, *(known.spread[name] for known in found.values())] for name in next(iter(found.values())).spread]
    full = "{0}, {0.errors:,} of {0.number:,}, people: {0.people:,}"
    for name, words in LINES.items():
        values = [known.rates.get(name) or getattr(known, name) for known in found.values()]
        rows.append([words, *(full.format(value) if isinstance(value, Rate) else f"{value:.3f}" for value in values)])
    cells = [{(a, b): rates for a, b, *rates in known.cameras} for known in found.values()]
    for pair in list(cells[0])[:LISTED]:
        shown = [zip(("FMR", "FNMR"), rates.get(pair, ()), strict=False) for rates in cells]
        words = (", ".join(f"{name} {rate} of {rate.number:,}" for name, rate in row if rate.number) for row in shown)
        rows.append([" in ".join(map(camera_of, pair)), *words])
    more = len(cells[0]) - LISTED
    return text_table(rows, str.ljust) + f"\nand {more} pairs of cameras with a lower FMR" * (more > 0)
