"""Find datasets by name. To add one, write a file with one function and add a line here."""

import os
from dataclasses import replace
from pathlib import Path

from config import Config
from datasets.base import ReIDDataset, check_test, check_train, join_notes
from utils.errors import UserError, did_you_mean
from utils.lookup import load

# "module:function" and the arguments that follow the data root; only the module of the chosen dataset is imported.
DATASETS: dict[str, tuple] = {
    "demo": ("datasets.demo:demo",),
    "market1501": ("datasets.market1501:market1501",),
    "market1501_500k": ("datasets.market1501_500k:market1501_500k",),
    "dukemtmc": ("datasets.dukemtmc:dukemtmc",),
    "occluded_duke": ("datasets.dukemtmc:occluded_duke",),
    "cuhk03_detected": ("datasets.cuhk03:cuhk03", "detected"),
    "cuhk03_labeled": ("datasets.cuhk03:cuhk03", "labeled"),
    "cuhk03_classic_detected": ("datasets.cuhk03:cuhk03_classic", "detected"),
    "cuhk03_classic_labeled": ("datasets.cuhk03:cuhk03_classic", "labeled"),
    "msmt17": ("datasets.msmt17:msmt17",),
    "msmt17_trainval": ("datasets.msmt17:msmt17", True),
    "partial_ilids": ("datasets.partial_ilids:partial_ilids",),
    "randperson": ("datasets.randperson:randperson",),
    "veri776": ("datasets.veri776:veri776",),
    "veriwild_small": ("datasets.veriwild:veriwild", 3000),
    "veriwild_medium": ("datasets.veriwild:veriwild", 5000),
    "veriwild_large": ("datasets.veriwild:veriwild", 10000),
    "vehicleid_small": ("datasets.vehicleid:vehicleid", 800),
    "vehicleid_medium": ("datasets.vehicleid:vehicleid", 1600),
    "vehicleid_large": ("datasets.vehicleid:vehicleid", 2400),
}


def find_dataset(name: str, cfg: Config) -> ReIDDataset:
    """Return the whole dataset with this name, or of this folder or .csv file. Raises UserError if it is not found."""
    if name in DATASETS:
        spec, *arguments = DATASETS[name]
        if name.startswith("cuhk03_classic"):
            arguments.append(cfg.data.split_seed)
        return load(spec)(cfg.data.data_root, *arguments)
    if name and Path(name).exists():
        data = cfg.data
        return load("datasets.own:own")(name, data.test_share, data.split_seed, data.camera_pattern, data.folders)
    hint = did_you_mean(name, DATASETS) or f"the names are {', '.join(DATASETS)}"
    raise UserError(f"{name!r} is neither a dataset's name nor a folder or .csv file in {os.getcwd()}; {hint}")


def make_dataset(cfg: Config) -> ReIDDataset:
    """Return the training and test side of the settings: training images of one dataset or several, without
    `holdout_ids`, then cut to `train_ids`; test images, cut to `test_ids`. Raises UserError if one is not found."""
    train = train_set(cfg)
    test = test_side(cfg, find_dataset(test_name(cfg), cfg) if cfg.data.test_dataset else train)
    check_train(train)
    name = f"{train.name}, tested on {test.name}" if cfg.data.test_dataset else train.name
    note = test.test_note
    if not all_published(cfg):
        shared = load("datasets.copies:count_shared")(train.train, test.query + test.gallery)
        note = join_notes(note, f"{shared} test images are also trained on" if shared else "")
    return replace(
        test, name=name, train=train.train, heldout=train.heldout, train_note=train.train_note, test_note=note,
        train_names=train.train_names or train.names,
    )  # fmt: skip


def train_set(cfg: Config) -> ReIDDataset:
    """Return the dataset to train on, or several joined, with its training side cut by `holdout_ids` and `train_ids`.
    Own pictures that are not tested on are all used for training."""
    whole = cfg.replace(test_share=0.0) if trains_on_all(cfg) else cfg
    sets = [find_dataset(name, whole) for name in train_names(cfg)]
    train = sets[0] if len(sets) == 1 else load("datasets.several:join")(sets)
    if cfg.data.holdout_ids or cfg.data.train_ids:
        train = load("datasets.subsets:select_train")(train, cfg.data.holdout_ids, cfg.data.train_ids)
    return train


def make_test_set(cfg: Config) -> ReIDDataset:
    """Return only the test side, cut to `test_ids`: the training set need not exist to test a model elsewhere."""
    return replace(test_side(cfg, find_dataset(test_name(cfg), cfg)), train=[], train_note="")


def test_side(cfg: Config, dataset: ReIDDataset) -> ReIDDataset:
    """Return the dataset with its test side cut to `test_ids`; for own pictures, also without copies of queries."""
    if cfg.data.test_ids:
        dataset = load("datasets.subsets:select_test")(dataset, cfg.data.test_ids)
    dataset = check_test(dataset)
    return dataset if test_name(cfg) in DATASETS else load("datasets.copies:ignore_own_pictures")(dataset)


def all_published(cfg: Config) -> bool:
    """Whether all datasets for training and test are published ones, not own pictures."""
    return {test_name(cfg), *train_names(cfg)} <= DATASETS.keys()


def train_names(cfg: Config) -> list[str]:
    """Names of the datasets to train on. Raises UserError if one is empty or repeated."""
    if cfg.data.dataset in DATASETS or Path(cfg.data.dataset).exists():  # a folder may have a + in its name
        return [cfg.data.dataset]
    names = cfg.data.dataset.split("+")
    if "" in names or len({place(name) for name in names}) < len(names):
        raise UserError(f"--dataset {cfg.data.dataset} has an empty or repeated name next to a +; give each once")
    return names


def test_name(cfg: Config) -> str:
    """Name of the dataset to test on. Raises UserError if there are several."""
    name = cfg.data.test_dataset or train_names(cfg)[0]
    if name not in DATASETS and "+" in name and not Path(name).exists():
        raise UserError(f"--test-dataset {name}: a test uses one dataset at a time; give one of them")
    return name


def place(name: str) -> str:
    """One spelling per dataset: its name, or the real path of its folder or file."""
    return name if name in DATASETS else os.path.realpath(name)


def short_name(name: str) -> str:
    """Name of the dataset in file names."""
    return name if name in DATASETS else Path(os.path.abspath(name)).name


def trains_on_all(cfg: Config) -> bool:
    """Whether all own pictures are used for training, because the test uses another dataset."""
    return bool(cfg.data.test_dataset) and place(cfg.data.test_dataset) not in map(place, train_names(cfg))
