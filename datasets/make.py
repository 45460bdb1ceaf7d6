"""Name to dataset. A new dataset is one file with one function, and one line here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from config import Config
from config.config import option
from datasets.base import ReIDDataset, cut_test, cut_train, hold_out, join
from datasets.cuhk03 import cuhk03, cuhk03_classic
from datasets.demo import demo
from datasets.dukemtmc import dukemtmc, occluded_duke
from datasets.market1501 import market1501, market1501_500k
from datasets.msmt17 import msmt17
from datasets.own import own
from datasets.partial_ilids import partial_ilids
from datasets.randperson import randperson
from datasets.vehicleid import vehicleid
from datasets.veri776 import veri776
from datasets.veriwild import veriwild
from utils.errors import UserError, did_you_mean

DATASETS: dict[str, Callable[[Config], ReIDDataset]] = {
    "demo": lambda cfg: demo(cfg.data.data_root),
    "market1501": lambda cfg: market1501(cfg.data.data_root),
    "market1501_500k": lambda cfg: market1501_500k(cfg.data.data_root),
    "dukemtmc": lambda cfg: dukemtmc(cfg.data.data_root),
    "occluded_duke": lambda cfg: occluded_duke(cfg.data.data_root),
    "cuhk03_detected": lambda cfg: cuhk03(cfg.data.data_root, "detected"),
    "cuhk03_labeled": lambda cfg: cuhk03(cfg.data.data_root, "labeled"),
    "cuhk03_classic_detected": lambda cfg: cuhk03_classic(cfg.data.data_root, "detected", cfg.data.split_seed),
    "cuhk03_classic_labeled": lambda cfg: cuhk03_classic(cfg.data.data_root, "labeled", cfg.data.split_seed),
    "msmt17": lambda cfg: msmt17(cfg.data.data_root),
    "msmt17_trainval": lambda cfg: msmt17(cfg.data.data_root, merge_val=True),
    "partial_ilids": lambda cfg: partial_ilids(cfg.data.data_root),
    "randperson": lambda cfg: randperson(cfg.data.data_root),
    "veri776": lambda cfg: veri776(cfg.data.data_root),
    "veriwild_small": lambda cfg: veriwild(cfg.data.data_root, 3000),
    "veriwild_medium": lambda cfg: veriwild(cfg.data.data_root, 5000),
    "veriwild_large": lambda cfg: veriwild(cfg.data.data_root, 10000),
    "vehicleid_small": lambda cfg: vehicleid(cfg.data.data_root, 800),
    "vehicleid_medium": lambda cfg: vehicleid(cfg.data.data_root, 1600),
    "vehicleid_large": lambda cfg: vehicleid(cfg.data.data_root, 2400),
}


def find_dataset(name: str, cfg: Config) -> ReIDDataset:
    """The whole dataset of that name, or of that folder or .csv file. Raises UserError when it is not to be had."""
    if name in DATASETS:
        return DATASETS[name](cfg)
    if name and Path(name).exists():
        return own(name, cfg.data.test_share, cfg.data.split_seed, cfg.data.camera_pattern)
    hint = did_you_mean(name, DATASETS) or f"the names are {', '.join(DATASETS)}"
    raise UserError(f"{name!r} is neither a dataset's name nor a folder or .csv file under {os.getcwd()}; {hint}")


def make_dataset(cfg: Config) -> ReIDDataset:
    """Both sides of the settings: what to train on, of several datasets the one after the other, less `holdout_ids`,
    then cut to `train_ids`; and what to test on, cut to `test_ids`. Raises UserError when it is not to be had."""
    names = train_names(cfg)
    whole = cfg.replace(test_share=0.0) if trains_on_all(cfg) else cfg
    train = join([find_dataset(name, whole) for name in names])
    test = cut_test(find_dataset(test_name(cfg), cfg) if cfg.data.test_dataset else train, cfg.data.test_ids)
    train = cut_train(hold_out(train, cfg.data.holdout_ids), cfg.data.train_ids)
    name = f"{train.name}, tested on {test.name}" if cfg.data.test_dataset else train.name
    return replace(test, name=name, train=train.train, heldout=train.heldout, train_note=train.train_note)


def make_test_set(cfg: Config) -> ReIDDataset:
    """What to test on alone, cut to `test_ids`: what a model was trained on need not be there to test it elsewhere."""
    return replace(cut_test(find_dataset(test_name(cfg), cfg), cfg.data.test_ids), train=[], train_note="")


def train_names(cfg: Config) -> list[str]:
    """Names of the datasets to train on. Raises UserError where one is empty or comes twice."""
    if cfg.data.dataset in DATASETS or Path(cfg.data.dataset).exists():  # a folder may have a + in its name
        return [cfg.data.dataset]
    names = cfg.data.dataset.split("+")
    if "" in names or len({place(name) for name in names}) < len(names):
        raise UserError(f"--dataset {cfg.data.dataset} names nothing, or the same twice, beside a +; name each once")
    return names


def test_name(cfg: Config) -> str:
    """Name of the dataset to test on. Raises UserError where there are several."""
    name = cfg.data.test_dataset or train_names(cfg)[0]
    if name not in DATASETS and "+" in name and not Path(name).exists():
        raise UserError(f"--test-dataset {name}: only one dataset is tested on at a time; name one of them")
    return name


def place(name: str) -> str:
    """One spelling for each dataset: its name, or where its folder or file is."""
    return name if name in DATASETS else os.path.realpath(name)


def short_name(name: str) -> str:
    """A dataset in the names of files."""
    return name if name in DATASETS else Path(os.path.abspath(name)).name


def trains_on_all(cfg: Config) -> bool:
    """Own pictures are all trained on when the test is elsewhere."""
    return bool(cfg.data.test_dataset) and place(cfg.data.test_dataset) not in map(place, train_names(cfg))


def refuse_another_split(cfg: Config, trained: Config, dataset: ReIDDataset) -> None:
    """Raises UserError where `dataset`, which the settings test on, is one that a model was `trained` on, but split
    otherwise: people that it knows would be in the test."""
    name = test_name(cfg)
    if not dataset.drawn or place(name) not in map(place, train_names(trained)):
        return
    if trains_on_all(trained):
        raise UserError(f"the model was trained on all of {name}; test it on other pictures")
    settings = ("test_share", "split_seed")
    if any(cfg.get(s) != trained.get(s) for s in settings):
        before = " ".join(f"{option(s)} {trained.get(s)}" for s in settings)
        raise UserError(
            f"the model was trained on {name} with {before}; another split has people that it was trained on in its "
            "test, so leave these settings as they were"
        )
