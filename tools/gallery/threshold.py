"""The similarities at which two pictures, or two tracklets, count as of one person, and how often that is wrong.

Error rates are measured on known people. Their 95 % intervals come from a bootstrap over people: pairs of one person
depend on each other, so that a million pairs of a hundred people show less than a million pairs of a thousand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from datasets.base import MOST_CAMERAS, ReIDDataset, Sample
from utils.distance import exact_products
from utils.errors import UserError
from utils.roc import BLOCK, count_pairs

DRAWS = 1000  # bootstrap samples, fewer for more people than WEIGHTS allows
WEIGHTS = 1 << 26  # of the people in all samples
FEWEST = 10  # a promised rate allows at least so many errors
USUAL = {"fmr": 1e-3, "fnmr": 1e-2, "fpir": 5e-2}  # rates that are promised, where the data can show them
SHARES = {  # by answer and whether it is that of a search: a rate, and what it is a share of
    ("same", False): ("fmr", "pairs of different people"),
    ("different", False): ("refused", "pairs of one person"),
    ("unknown", False): ("unknown", "pairs of one person"),
    ("same", True): ("fpir", "searches for people who are not in the gallery"),
    ("unknown", True): ("fnir", "searches for people who are in it, or the nearest is another person"),
}
LISTED = 21  # pairs of cameras, the worst ones


class Rate(NamedTuple):
    """A share of errors, its 95 % interval, and what it rests on."""

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

    same: float  # from it on, two pictures are of one person
    different: float  # below it, they are of two
    search: float  # from it on, a search names the person
    source: str  # what they were found on
    rates: dict[str, Rate] = field(default_factory=dict)  # see `Known.measure`; empty: not known

    def __post_init__(self):
        self.rates = {name: Rate(*rate) for name, rate in self.rates.items()}

    def answer(self, similarity: float, search: bool = False) -> str:
        """same, different or unknown, of two pictures or of a hit of a search."""
        if similarity >= (self.search if search else self.same):
            return "same"
        return "different" if similarity < self.different else "unknown"

    def reason(self, answer: str, search: bool = False) -> str:
        """The similarities that have this answer, and the share of known people for whom it is wrong."""
        same = self.search if search else self.same
        limits = {"same": f"at least {same:.3f}", "different": f"below {self.different:.3f}"}
        limit = limits.get(answer, f"below {same:.3f}" + f", at least {self.different:.3f}" * (not search))
        name, whose = SHARES[answer, search]
        rate = f"; so are {self.rates[name]} of {whose}" if name in self.rates else ""
        return f"{limit} ({self.source}{rate})"


class Known:
    """Features of known people, compared with each other: pairs, errors, and samples of the bootstrap.

    query (Q, D), gallery (G, D) float32 of length 1, and their ids. Pairs of one person under one camera do not count.
    Raises ValueError where there are no pairs of one person, or none of different people.
    """

    def __init__(self, query: torch.Tensor, gallery: torch.Tensor, *ids: Sequence[int]):
        self.features, (query_pids, gallery_pids, *cameras) = (query, gallery), map(np.asarray, ids)
        self.counter = count_pairs(query, gallery, *ids)
        if not self.counter.number.all():
            missing = "of different people" if self.counter.number[0] else "of one person under two cameras"
            raise ValueError(f"there are no two pictures {missing}")
        self.cameras, pids = cameras, np.concatenate((query_pids, gallery_pids))
        # every distractor, pid 0, is a person of its own
        people, label = np.unique(np.where(pids > 0, pids, -1 - np.arange(len(pids))), return_inverse=True)
        self.labels, self.people = (label[: len(query)], label[len(query) :]), len(people)
        draws = max(min(DRAWS, WEIGHTS // self.people), 100)
        weights = np.random.default_rng(0).multinomial(self.people, np.full(self.people, 1 / self.people), draws)
        self.weights = torch.from_numpy(weights).double()  # how often each sample has each person

    def thresholds(self, fmr: float = 0, fnmr: float = 0, equal: bool = False) -> tuple[float, float]:
        """The similarity from which on a pair is of one person, and that below which it is of two.

        fmr: most pairs of two people that the first accepts. fnmr: most pairs of one person that the second refuses.
        equal: both are at the equal error rate. Raises UserError for a rate that the pairs cannot show.
        """
        fnmr, fmr = promised("fnmr", fnmr, self.counter.number[0]), promised("fmr", fmr, self.counter.number[1])
        places = [self.counter.equal_error()] * 2
        if not equal:
            same = self.counter.at_fpr(fmr)
            places = [same, max(same, self.counter.quantile(0, 1 - fnmr))]
        same, different = (-float(self.counter.thresholds[place]) for place in places)
        return same, different

    def errors(self, same: float, different: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (E, 2) of different people from `same` on, and of one person below `different`, and between the two."""
        found: tuple[list, list, list] = ([], [], [])
        for rows, cosine, others, matching in self._blocks():
            low = cosine < different
            wrong = (others & (cosine >= same), matching & low, matching & (cosine < same) & ~low)
            for pairs, mask in zip(found, wrong, strict=True):
                pairs.append(mask.nonzero() + torch.tensor([int(rows[0]), 0]))
        return tuple(torch.cat(pairs).numpy() for pairs in found)

    def measure(
        self, source: str, fmr: float = 0, fnmr: float = 0, fpir: float = 0, equal: bool = False
    ) -> tuple[Thresholds, list[tuple[tuple[int, int], Rate, Rate]]]:
        """Thresholds with their error rates, and FMR and FNMR by the two cameras of the pairs, the highest FMR first.

        Rates: fmr of pairs of different people from `same` on; of pairs of one person, fnmr below `same`, refused below
        `different`, unknown between; fpir and fnir as in `open_set`.
        """
        same, different = self.thresholds(fmr, fnmr, equal)
        search, *searches = self.open_set(fpir)
        accepted, refused, unknown = self.errors(same, different)
        missed = np.concatenate((refused, unknown))
        rates = {"fmr": self.rate(accepted, False), "fnmr": self.rate(missed, True)}
        rates |= {"refused": self.rate(refused, True), "unknown": self.rate(unknown, True)}
        rates |= zip(("fpir", "fnir"), searches, strict=True)
        views = [np.unique(c).tolist() for c in self.cameras]
        pairs = {(min(pair), max(pair)) for pair in product(*views)} if max(map(len, views)) <= MOST_CAMERAS else ()
        rows = [(pair, self.rate(accepted, False, pair), self.rate(missed, True, pair)) for pair in sorted(pairs)]
        rows = [row for row in rows if row[1].number]
        return Thresholds(same, different, search, source, rates), sorted(rows, key=lambda row: -row[1].share)

    @cached_property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Per query the similarity of its nearest match, -inf if it has none, and of the nearest other person."""
        found = []
        for _, cosine, *masks in self._blocks():
            found.append(torch.stack([cosine.masked_fill(~mask, -torch.inf).amax(1) for mask in masks]))
        other, match = torch.cat(found, 1).numpy()
        return match, other

    def _blocks(self):
        pids, other_pids, camids, other_camids = map(torch.from_numpy, (*self.labels, *self.cameras))
        query, gallery = self.features
        for rows in torch.arange(len(query)).split(max(1, BLOCK // len(gallery))):
            with exact_products(query.device):
                cosine = query[rows] @ gallery.T
            others = pids[rows, None] != other_pids
            yield rows, cosine, others, ~others & (camids[rows, None] != other_camids)

    def rate(self, errors: np.ndarray, matching: bool, cameras: tuple[int, int] | None = None) -> Rate:
        """The share of these pairs (E, 2) among those of one person (`matching`), or of different people.

        cameras: of pairs under these two cameras. With few errors, the upper end is at least that of the rule of three,
        for as many people, or pairs of people, as were compared.
        """
        count = lambda labels: torch.from_numpy(np.bincount(labels, minlength=self.people)).double()  # noqa: E731
        parts, wrong, total, number, units, found = [cameras], 0, 0, 0, 0, 0
        compared = torch.zeros(self.people, dtype=torch.bool)
        if cameras and cameras[0] != cameras[1]:
            parts.append(cameras[::-1])
        for part in parts:
            chosen = [np.ones(len(c), bool) if part is None else c == part[i] for i, c in enumerate(self.cameras)]
            pairs = errors[chosen[0][errors[:, 0]] & chosen[1][errors[:, 1]]]
            q, g = (label[mask] for label, mask in zip(self.labels, chosen, strict=True))
            of_query, of_gallery = count(q), count(g)
            first, second = self.labels[0][pairs[:, 0]], self.labels[1][pairs[:, 1]]
            found += len(pairs)
            if matching:
                own = of_query * of_gallery - self._under_one_camera(chosen)
                wrong, total, number = (
                    wrong + self.weights @ count(first),
                    total + self.weights @ own,
                    number + own.sum(),
                )
                compared |= own > 0
                units = int(compared.sum())
            else:
                own = of_query * of_gallery
                place = torch.from_numpy(np.stack((first, second)))
                pair = torch.sparse_coo_tensor(
                    place, torch.ones(len(pairs)).double(), (self.people, self.people), check_invariants=False
                )
                wrong = wrong + (self.weights.T * (pair.coalesce() @ self.weights.T)).sum(0)
                total = total + (self.weights @ of_query) * (self.weights @ of_gallery) - self.weights.square() @ own
                number += of_query.sum() * of_gallery.sum() - own.sum()
                compared |= (of_query > 0) | (of_gallery > 0)
                units += int((of_query > 0).sum() * (of_gallery > 0).sum() - (own > 0).sum())
        return self._rate(found, int(number), int(compared.sum()), units, wrong, total)

    def _rate(self, errors: int, number: int, people: int, units: int, wrong, total) -> Rate:
        shares = (wrong / total)[total > 0].numpy()
        low, high = np.quantile(shares, (0.025, 0.975)) if len(shares) else (0, 1)
        return Rate(errors, number, people, float(low), float(min(max(high, 3 / max(units, 1)), 1)))

    def _under_one_camera(self, chosen: Sequence[np.ndarray]) -> torch.Tensor:
        """Pairs of each person under one camera."""
        keys = [
            np.stack((label, camera))[:, mask]
            for label, camera, mask in zip(self.labels, self.cameras, chosen, strict=True)
        ]
        views, place = np.unique(np.concatenate(keys, 1), axis=1, return_inverse=True)
        of_query, of_gallery = (
            np.bincount(p, minlength=views.shape[1]) for p in np.split(place.ravel(), [keys[0].shape[1]])
        )
        return torch.from_numpy(np.bincount(views[0], of_query * of_gallery, self.people))

    def open_set(self, fpir: float = 0) -> tuple[float, Rate, Rate]:
        """The similarity from which on a search names somebody, and how often it is wrong: FPIR and FNIR.

        Each query is asked twice: with its own person kept out of the gallery, where naming somebody is wrong; and with
        it, where it is wrong if the nearest picture is of another person, or not similar enough. fpir: most of the
        first. Raises UserError for a rate that so many queries cannot show.
        """
        match, other = self.best
        known = np.isfinite(match)
        fpir = promised("fpir", fpir, len(other), "queries")
        order = np.sort(other)[::-1]
        threshold = float(np.nextafter(order[int(fpir * len(order) + 1e-9)], np.float32(np.inf)))
        rates = []
        for wrong, asked in ((other >= threshold, known | True), ((match < threshold) | (match <= other), known)):
            label = self.labels[0]
            counts = [np.bincount(label[mask], minlength=self.people) for mask in (wrong & asked, asked)]
            weighted = (self.weights @ torch.from_numpy(count).double() for count in counts)
            people = int((counts[1] > 0).sum())
            rates.append(self._rate(int(counts[0].sum()), int(counts[1].sum()), people, people, *weighted))
        return threshold, *rates


def pool_tracklets(features: Sequence[torch.Tensor], sides: Sequence[list[Sample]], dataset: ReIDDataset) -> tuple:
    """Features and ids, as `Known` takes them, of the tracklets of the queries, and of those of the gallery.

    A tracklet is the pictures of both sides with one identity, camera and track; its feature is the mean of theirs. A
    picture without a track is one of its own. Where cameras are unknown, each tracklet counts as a camera.
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


def promised(name: str, rate: float, number: int, what: str = "pairs") -> float:
    """The rate as given, or (0) the usual one where so many pairs or queries can show it, else the least that they can.

    Raises UserError for a given rate that is no share, or at which fewer than FEWEST errors are expected.
    """
    least = FEWEST / number
    if not 0 <= rate < 1:
        raise UserError(f"--{name} must be between 0 and 1, not {rate:g}")
    if 0 < rate < least:
        kind = {"fmr": " of different people", "fnmr": " of one person"}.get(name, "")
        raise UserError(
            f"{number:,} {what}{kind} cannot promise --{name} {rate:g}: that needs {int(np.ceil(FEWEST / rate)):,}, "
            f"so that {FEWEST} errors are expected; use more pictures, or --{name} {least:.2g}"
        )
    return rate or min(max(USUAL[name], least), 0.5)


def threshold_table(found: dict[str, tuple[Known, Thresholds, list]], camera_of: Callable[[int], str]) -> str:
    """What thresholds promise, one column per kind of thing compared (pictures, tracklets) next to each other."""
    columns = [[("95 % intervals by bootstrap over people", kind), *lines(*of)] for kind, of in found.items()]
    rows = [[name for name, _ in columns[0]], *([text for _, text in column] for column in columns)]
    by_camera = [{pair: rates for pair, *rates in of[2]} for of in found.values()]
    for pair in list(by_camera[0])[:LISTED]:
        rows[0].append(" – ".join(map(camera_of, pair)))
        for row, rates in zip(rows[1:], by_camera, strict=True):
            row.append(
                ", ".join(
                    f"{n} {r} of {r.number:,}"
                    for n, r in zip(("FMR", "FNMR"), rates.get(pair, ()), strict=False)
                    if r.number
                )
            )
    widths = [max(map(len, row)) for row in rows]
    more = f"\nand {len(by_camera[0]) - LISTED} pairs of cameras with a lower FMR" if len(by_camera[0]) > LISTED else ""
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in zip(*rows, strict=True)) + more


def lines(known: Known, found: Thresholds, _: list) -> list[tuple[str, str]]:
    """The rows of one column."""
    rows, counter = [], known.counter
    for kind, name in enumerate(("pairs of one person", "pairs of different people")):
        low, middle, high = (-float(counter.thresholds[counter.quantile(kind, 1 - q)]) for q in (0.05, 0.5, 0.95))
        text = f"{counter.number[kind]:,}, similarity {middle:.3f}, nine of ten {low:.3f} to {high:.3f}"
        rows.append((name, text))
    full = {
        name: f"{rate}, {rate.errors:,} of {rate.number:,}, people: {rate.people:,}"
        for name, rate in found.rates.items()
    }
    return [
        *rows,
        ("same from", f"{found.same:.3f}"),
        ("  different people called same (FMR)", full["fmr"]),
        ("  one person not called same (FNMR)", full["fnmr"]),
        ("different below", f"{found.different:.3f}"),
        ("  one person called different", full["refused"]),
        ("  one person called unknown", full["unknown"]),
        ("a search names a person from", f"{found.search:.3f}, of {len(known.features[1]):,}"),
        ("  people kept out who are named (FPIR)", full["fpir"]),
        ("  people in it who are not found (FNIR)", full["fnir"]),
    ]
