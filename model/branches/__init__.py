"""Name to kind of model: a class of (Config, number of identities), see `model/reid.py`. A new one is one file, and
one line here."""

from __future__ import annotations

from model.branches.bdb import BDB
from model.branches.lightmbn import LightMBN
from model.branches.mgn import MGN
from model.branches.one import OneBranch
from model.branches.pcb import PCB
from model.reid import ReIDModel

BRANCHES: dict[str, type[ReIDModel]] = {
    "one": OneBranch,
    "pcb": PCB,
    "mgn": MGN,
    "bdb": BDB,
    "lightmbn": LightMBN,
}
