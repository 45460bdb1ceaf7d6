"""Search spaces: the networks among which the search chooses."""

import copy
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from model.backbones.searchable import Spec, Stage, multiply_adds
from utils.errors import UserError

TRIES = 2000  # random networks in a row that may exceed a limit, or be known, before the search gives up


def mobilenet_v2(height: int, width: int, last_stride: int = 2) -> Spec:
    """MobileNetV2 1.0, the reference point of the space."""
    depths, widths = (1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320)
    stages = (Stage(d, w, 1 if n == 0 else 6, 3, False) for n, (d, w) in enumerate(zip(depths, widths, strict=True)))
    return Spec(height, width, last_stride, tuple(stages))


class Space:
    """All networks for images of at most `height` x `width` pixels: MobileNetV2's shape with open numbers.

    A network is described by its genes: "size", "last_stride" and, for each stage, (number, field of `Stage`);
    `choices` holds the values of each. Another space is a subclass with other class attributes or `stage_choices`.

    budget: largest number of multiply-adds of a random network. Image sizes for which even the smallest network exceeds
    it are left out. Raises UserError where none is left, and for images below 32 x 32.
    """

    kernels, expansions = (3, 5, 7), (3, 4, 6)
    widths = ((8, 16, 24), (16, 24, 32), (24, 32, 40), (48, 64, 80), (64, 96, 112), (112, 160, 200), (192, 320, 400))
    depths = ((1,), (1, 2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4), (2, 3, 4), (1, 2))
    scales = (0.875, 0.75, 0.625)  # smaller image sizes, as shares of height and width

    def __init__(self, height: int, width: int, budget: float = math.inf):
        if min(height, width) < 32:
            raise UserError(f"images of {height} x {width} are too small to search networks for; give 32 x 32 or more")
        self.budget = budget
        sizes = {(round(height * s / 8) * 8, round(width * s / 8) * 8) for s in self.scales} | {(height, width)}
        self.choices: dict[Any, tuple] = {"size": (), "last_stride": (1, 2)}
        for number in range(len(self.widths)):
            self.choices |= {(number, name): values for name, values in self.stage_choices(number).items()}
        least = {size: multiply_adds(self.of_size(size).smallest()) for size in sizes}
        self.choices["size"] = tuple(sorted((size for size in least if least[size] <= budget), reverse=True))
        if not self.sizes:
            raise UserError(
                f"no network of the space is within {budget / 1e6:.1f} M multiply-adds: the smallest has "
                f"{min(least.values()) / 1e6:.1f} M; allow more, or give a smaller --height and --width"
            )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Image sizes (height, width), the largest first."""
        return self.choices["size"]

    def stage_choices(self, number: int) -> dict[str, tuple]:
        """Values of the fields of a stage, from small to large; as in MobileNetV2, the first stage does not expand."""
        expansions = self.expansions if number else (1,)
        values = (self.depths[number], self.widths[number], expansions, self.kernels, (False, True))
        return dict(zip(("depth", "width", "expansion", "kernel", "se"), values, strict=True))

    def build(self, genes: dict[Any, Any]) -> Spec:
        """The network with these genes."""
        stages: list[dict[str, Any]] = [{} for _ in self.widths]
        for gene, value in genes.items():
            if isinstance(gene, tuple):
                stages[gene[0]][gene[1]] = value
        return Spec(*genes["size"], genes["last_stride"], tuple(Stage(**values) for values in stages))

    def genes(self, spec: Spec) -> dict[Any, Any]:
        """The inverse of `build`."""
        stages = {(n, name): value for n, stage in enumerate(spec.stages) for name, value in asdict(stage).items()}
        return {"size": (spec.height, spec.width), "last_stride": spec.last_stride} | stages

    def random(self, rng: np.random.Generator) -> Spec:
        """A random network: all values of a gene are equally likely. Networks above the budget are drawn again.

        The image size is drawn only once, as networks for small images are within the budget more often. If none is
        found, the smallest network of that size.
        """
        space = self.of_size(pick(self.sizes, rng))
        for _ in range(TRIES):
            spec = space.build({gene: pick(values, rng) for gene, values in space.choices.items()})
            if multiply_adds(spec) <= self.budget:
                return spec
        return space.smallest()

    def of_size(self, size: tuple[int, int]) -> "Space":
        """The part of the space for one image size."""
        part = copy.copy(self)
        part.choices = {**self.choices, "size": (size,)}
        return part

    def mutate(self, spec: Spec, rng: np.random.Generator, rate: float) -> Spec:
        """Each gene is drawn again with probability `rate`."""
        genes = self.genes(spec)
        return self.build({g: pick(v, rng) if rng.random() < rate else genes[g] for g, v in self.choices.items()})

    def cross(self, a: Spec, b: Spec, rng: np.random.Generator) -> Spec:
        """Each gene from one of the two networks."""
        first, second = self.genes(a), self.genes(b)
        return self.build({gene: (first if rng.random() < 0.5 else second)[gene] for gene in self.choices})

    def largest(self) -> Spec:
        """The network of which all others are a part."""
        genes = {gene: values[-1] for gene, values in self.choices.items()}
        return self.build(genes | {"size": self.sizes[0], "last_stride": 1})

    def smallest(self) -> Spec:
        genes = {gene: values[0] for gene, values in self.choices.items()}
        return self.build(genes | {"size": self.sizes[-1], "last_stride": 2})


def pick(choices: tuple, rng: np.random.Generator) -> Any:
    return choices[rng.integers(len(choices))]
