from datasets.augment.draws import Draws
from datasets.augment.recipe import MEAN, OFF, STD, TRANSFORMS, augment, normalise, to_pixels

__all__ = ["MEAN", "OFF", "STD", "TRANSFORMS", "Draws", "augment", "normalise", "to_pixels"]
