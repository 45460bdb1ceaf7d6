"""Search spaces: the networks among which the search chooses."""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from model.backbones.searchable import Spec, Stage, multiply_adds
from utils.errors import UserError

FIELDS = [field.name for field in fields(Stage)]
TRIES = 2000  # mutants in a row that may exceed a limit, or be known, before the search gives up


@dataclass(frozen=True)
class Choices:
    """A space as data: the allowed values of each number of a network, stage by stage."""

    depths: tuple
    widths: tuple
    expansions: tuple
    kernels: tuple = (3,)
    se: tuple = (False,)
    stem: tuple = (32,)
    head: tuple = (1280,)
    scales: tuple = (1.0,)  # image sizes, as shares of height and width
    growth: int = 0  # each width, from stage 1 to the head, is 1 to so many times the previous (0: any)
    share: tuple = (0.0, 1.0)  # smallest and largest share of the budget
    norms: bool = False  # multiply-adds are counted with batch norm, ReLU and pooling
    tries: int = TRIES  # random networks to draw before the smallest is taken


SPACES = {
    # MobileNetV2 with variable numbers. Its first stage does not expand.
    "mobilenet_v2": Choices(
        depths=((1,), (1, 2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4), (2, 3, 4), (1, 2)),
        widths=(
            (8, 16, 24), (16, 24, 32), (24, 32, 40), (48, 64, 80), (64, 96, 112), (112, 160, 200), (192, 320, 400),
        ),
        expansions=((1,), *[(3, 4, 6)] * 6),
        kernels=(3, 5, 7),
        se=(False, True),
        scales=(1.0, 0.875, 0.75, 0.625),
    ),
    # Matrix Light ReID's, search_tools/generate_configs_0.56gf.py: four stages after one block, each 1 to 4 times as
    # wide as the one before, and a head of 1,024 to 2,048. From smaller widths than here, no such head is reached. In
    # the script, stem and first block have 64 channels with a probability of 1/57, not 1/8, and factors are below 4.
    "mlr": Choices(
        depths=((1,), *[(1, 2, 3, 4, 5, 6)] * 4),
        widths=tuple(tuple(range(low, high + 8, 8)) for low, high in zip(
            (8, 8, 16, 64, 256), (64, 256, 1024, 2048, 2048), strict=True)),
        expansions=((1,), *[(2, 3, 4, 5, 6)] * 4),
        stem=tuple(range(8, 72, 8)),
        head=tuple(range(1024, 2056, 8)),
        growth=4,
        share=(0.98, 1.02),
        norms=True,
        tries=100_000,
    ),
}  # fmt: skip


def mobilenet_v2(height: int, width: int, last_stride: int = 2) -> Spec:
    """MobileNetV2 1.0, the reference point of both spaces."""
    depths, widths = (1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320)
    stages = (Stage(d, w, 1 if n == 0 else 6, 3, False) for n, (d, w) in enumerate(zip(depths, widths, strict=True)))
    return Spec(height, width, last_stride, tuple(stages))


class Space:
    """All networks of one of SPACES for images of at most `height` x `width` pixels.

    A network is described by its genes: "size", "last_stride", "stem", "head" and, for each stage, (number, field of
    `Stage`); `choices` holds the values of each.

    budget: multiply-adds of a random network, within the space's share of them. Image sizes for which even the smallest
    network exceeds it are left out. Raises UserError if no size is left, and for images below 32 x 32.
    """

    def __init__(self, height: int, width: int, budget: float = math.inf, name: str = "mobilenet_v2"):
        if min(height, width) < 32:
            raise UserError(f"images of {height} x {width} are too small to search networks for; give 32 x 32 or more")
        self.data = data = SPACES[name]
        self.least, self.most = (budget * share if share else 0.0 for share in data.share)
        sizes = {(round(height * s / 8) * 8, round(width * s / 8) * 8) for s in data.scales if s < 1} | {
            (height, width)
        }
        self.choices: dict[Any, tuple] = {"size": (), "last_stride": (1, 2), "stem": data.stem}
        for number, values in enumerate(zip(data.depths, data.widths, data.expansions, strict=True)):
            values = zip(FIELDS, (*values, data.kernels, data.se), strict=True)
            self.choices |= {(number, name): value for name, value in values}
        self.choices["head"] = data.head
        least = {size: self.cost(self.of_size(size).smallest()) for size in sizes}
        self.choices["size"] = tuple(sorted((size for size in least if least[size] <= self.most), reverse=True))
        if not self.sizes:
            raise UserError(
                f"no network of the space is within {budget / 1e6:.1f} M multiply-adds: the smallest has "
                f"{min(least.values()) / 1e6:.1f} M; allow more, or give a smaller --height and --width"
            )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Image sizes (height, width), the largest first."""
        return self.choices["size"]

    def cost(self, spec: Spec) -> int:
        """Multiply-adds, as the space counts them."""
        return multiply_adds(spec, self.data.norms)

    def allows(self, spec: Spec) -> bool:
        """Whether its widths grow as required, and its multiply-adds are in the space's share of the budget."""
        widths = [*(stage.width for stage in spec.stages), spec.head]
        grow = all(a <= b <= self.data.growth * a for a, b in itertools.pairwise(widths)) or not self.data.growth
        return grow and self.least <= self.cost(spec) <= self.most

    def build(self, genes: dict[Any, Any]) -> Spec:
        """The network with these genes."""
        stages = tuple(Stage(*(genes[number, name] for name in FIELDS)) for number in range(len(self.data.widths)))
        return Spec(*genes["size"], genes["last_stride"], stages, genes["stem"], genes["head"])

    def genes(self, spec: Spec) -> dict[Any, Any]:
        """The inverse of `build`."""
        genes = {(n, name): value for n, stage in enumerate(spec.stages) for name, value in asdict(stage).items()}
        return (
            genes | {"size": (spec.height, spec.width)} | {n: getattr(spec, n) for n in ("last_stride", "stem", "head")}
        )

    def random(self, rng: np.random.Generator) -> Spec:
        """A random network: all values of a gene are equally likely. Networks outside the budget are drawn again.

        The image size is drawn only once, as networks for small images are within the budget more often. If none is
        found, returns the smallest network of that size.
        """
        space = self.of_size(pick(self.sizes, rng))
        for _ in range(self.data.tries):
            spec = space.draw(rng)
            if spec and self.allows(spec):
                return spec
        return space.smallest()

    def draw(self, rng: np.random.Generator) -> Spec | None:
        """A network of any cost; None if a randomly grown width is not in the space."""
        genes: dict[Any, Any] = {}
        before = 0  # the previous width
        for gene, values in self.choices.items():
            grows = self.data.growth and (gene == "head" or gene[1] == "width")
            genes[gene] = pick(range(before, self.data.growth * before, 8) if grows and before else values, rng)
            if genes[gene] not in values:
                return None
            before = genes[gene] if grows else before
        return self.build(genes)

    def of_size(self, size: tuple[int, int]) -> "Space":
        """The part of the space for one image size."""
        part = copy.copy(self)
        part.choices = {**self.choices, "size": (size,)}
        return part

    def mutate(self, spec: Spec, rng: np.random.Generator, rate: float) -> Spec:
        """Draw each gene again with probability `rate`."""
        genes = self.genes(spec)
        return self.build({g: pick(v, rng) if rng.random() < rate else genes[g] for g, v in self.choices.items()})

    def cross(self, a: Spec, b: Spec, rng: np.random.Generator) -> Spec:
        """Take each gene from one of the two networks."""
        first, second = self.genes(a), self.genes(b)
        return self.build({gene: (first if rng.random() < 0.5 else second)[gene] for gene in self.choices})

    def largest(self) -> Spec:
        """The network of which all others are a part."""
        genes = {gene: values[-1] for gene, values in self.choices.items()}
        return self.build(genes | {"size": self.sizes[0], "last_stride": 1})

    def smallest(self) -> Spec:
        genes = {gene: values[0] for gene, values in self.choices.items()}
        return self.build(genes | {"size": self.sizes[-1], "last_stride": 2})


def pick(choices: Sequence, rng: np.random.Generator) -> Any:
    return choices[rng.integers(len(choices))]
