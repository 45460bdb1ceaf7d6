"""Name to dataset. A new dataset is one file with one function, and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from config import Config
from config.config import dashed
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
from utils.errors import UserError

DATASETS: dict[str, Callable[[Config], ReIDDataset]] = {
    "demo": lambda cfg: demo(cfg.data_root),
    "market1501": lambda cfg: market1501(cfg.data_root),
    "market1501_500k": lambda cfg: market1501_500k(cfg.data_root),
    "dukemtmc": lambda cfg: dukemtmc(cfg.data_root),
    "occluded_duke": lambda cfg: occluded_duke(cfg.data_root),
    "cuhk03_detected": lambda cfg: cuhk03(cfg.data_root, "detected"),
    "cuhk03_labeled": lambda cfg: cuhk03(cfg.data_root, "labeled"),
    "cuhk03_classic_detected": lambda cfg: cuhk03_classic(cfg.data_root, "detected", cfg.split_seed),
    "cuhk03_classic_labeled": lambda cfg: cuhk03_classic(cfg.data_root, "labeled", cfg.split_seed),
    "msmt17": lambda cfg: msmt17(cfg.data_root),
    "msmt17_trainval": lambda cfg: msmt17(cfg.data_root, merge_val=True),
    "partial_ilids": lambda cfg: partial_ilids(cfg.data_root),
    "randperson": lambda cfg: randperson(cfg.data_root),
    "veri776": lambda cfg: veri776(cfg.data_root),
    "veriwild_small": lambda cfg: veriwild(cfg.data_root, 3000),
    "veriwild_medium": lambda cfg: veriwild(cfg.data_root, 5000),
    "veriwild_large": lambda cfg: veriwild(cfg.data_root, 10000),
    "vehicleid_small": lambda cfg: vehicleid(cfg.data_root, 800),
    "vehicleid_medium": lambda cfg: vehicleid(cfg.data_root, 1600),
    "vehicleid_large": lambda cfg: vehicleid(cfg.data_root, 2400),
}


def find_dataset(name: str, cfg: Config) -> ReIDDataset:
    """The whole dataset of that name, or of that folder or .csv file. Raises UserError when it is not to be had."""
    if name in DATASETS:
        return DATASETS[name](cfg)
    if Path(name).exists():
        return own(name, cfg.test_share, cfg.split_seed, cfg.camera_pattern)
    near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
    near += [known for known in DATASETS if known.startswith(name) and known not in near]
    hint = f"did you mean {' or '.join(near)}?" if near else f"the names are {', '.join(DATASETS)}"
    raise UserError(f"{name} is neither a dataset's name nor a folder or .csv file that exists; {hint}")


def make_dataset(cfg: Config) -> ReIDDataset:
    """Both sides of the settings: what to train on, of several datasets the one after the other, less `holdout_ids`,
    then cut to `train_ids`; and what to test on, cut to `test_ids`. Raises UserError when it is not to be had."""
    train = join([find_dataset(name, cfg) for name in _names(cfg)])
    test = cut_test(find_dataset(cfg.test_dataset, cfg) if cfg.test_dataset else train, cfg.test_ids)
    train = cut_train(hold_out(train, cfg.holdout_ids), cfg.train_ids)
    name = f"{train.name}, tested on {test.name}" if cfg.test_dataset else train.name
    return replace(test, name=name, train=train.train, heldout=train.heldout, train_note=train.train_note)


def make_test_set(cfg: Config) -> ReIDDataset:
    """What to test on alone, cut to `test_ids`: what a model was trained on need not be there to test it elsewhere."""
    return replace(cut_test(find_dataset(test_name(cfg), cfg), cfg.test_ids), train=[], train_note="")


def test_name(cfg: Config) -> str:
    """Name of the dataset to test on."""
    return cfg.test_dataset or _names(cfg)[0]


def refuse_another_split(cfg: Config, trained: Config) -> None:
    """Raises UserError where the settings test on the dataset that a model was `trained` on but split it otherwise:
    people that it knows would be in the test."""
    splits = [{name: getattr(c, name) for name in ("test_share", "split_seed")} for c in (cfg, trained)]
    if test_name(cfg) in _names(trained) and splits[0] != splits[1]:
        before = " ".join(f"--{dashed(name)} {value}" for name, value in splits[1].items())
        raise UserError(
            f"the model was trained on {test_name(cfg)} with {before}; another split has people that it was trained on "
            "in its test, so leave these settings as they were"
        )


def _names(cfg: Config) -> list[str]:
    whole = cfg.dataset in DATASETS or Path(cfg.dataset).exists()  # a folder may have a + in its name
    return [cfg.dataset] if whole else cfg.dataset.split("+")
