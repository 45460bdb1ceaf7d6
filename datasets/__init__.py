from datasets.base import ReIDDataset, Sample
from datasets.demo import demo
from datasets.loaders import Loaders, make_loaders
from datasets.make import DATASETS, make_dataset
from datasets.market1501 import market1501
from datasets.sampler import PKSampler, ShuffleSampler

__all__ = [
    "DATASETS",
    "Loaders",
    "PKSampler",
    "ReIDDataset",
    "Sample",
    "ShuffleSampler",
    "demo",
    "make_dataset",
    "make_loaders",
    "market1501",
]
