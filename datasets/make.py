"""Name to dataset. A new dataset is one file with one function, and one line here."""

from __future__ import annotations

from config import Config
from datasets.base import ReIDDataset, first_identities, hold_out
from datasets.demo import demo
from datasets.market1501 import market1501

DATASETS = {
    "demo": demo,
    "market1501": market1501,
}


def make_dataset(cfg: Config) -> ReIDDataset:
    """The dataset of the settings, less `holdout_ids`, then cut to `train_ids` / `test_ids`.

    Raises UserError when it is not to be had.
    """
    whole = DATASETS[cfg.dataset](cfg.data_root)
    return first_identities(hold_out(whole, cfg.holdout_ids), cfg.train_ids, cfg.test_ids)
