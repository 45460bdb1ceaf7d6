"""Training on several datasets at once."""

from collections.abc import Sequence
from dataclasses import replace

from datasets.base import PID_OFFSET, ReIDDataset, Sample, join_notes
from utils.errors import UserError


def join(datasets: Sequence[ReIDDataset]) -> ReIDDataset:
    """Join several training sets, with separate identities and cameras; the test side is that of the first."""
    train, names = [], {}
    for number, dataset in enumerate(datasets):
        offset = number * PID_OFFSET
        if any(max(s.pid, s.camid) >= PID_OFFSET for s in dataset.train):
            raise UserError(
                f"{dataset.name} has pids or cameras from {PID_OFFSET} up; renumber them to train on several sets"
            )
        train += [Sample(s.path, s.pid + offset, s.camid + offset) for s in dataset.train]
        names |= {pid + offset: name for pid, name in dataset.names.items()}
    name, note = "+".join(d.name for d in datasets), join_notes(*(d.train_note for d in datasets))
    return replace(datasets[0], name=name, train=train, train_note=note, train_names=names)
