"""Options that all tasks have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from config import Config
from utils.errors import UserError


@dataclass
class Task:
    """A task: its options are the fields. `task` is its name, `contenders` what is compared, in this order."""

    skip: tuple[str, ...] = ()  # contenders to leave out
    save: str = ""  # JSON file for the measurement, such as results/benchmark_eval_market_cpu.json
    contender: str = ""  # measure only this one, in this process, and print one line of JSON
    scratch: str = ""  # directory of files that the contenders share

    task = ""
    contenders = ()
    device = "cpu"

    def reason_not_to_run(self, contender: str) -> str:
        """Why a contender cannot run here ("": it can)."""
        return ""

    def measure(self, contender: str) -> dict[str, Any]:
        """Time and memory of one contender, which has this process to itself, as plain values."""
        raise NotImplementedError

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        """Differences between the outcomes of the contenders. Raises UserError where one of them must be wrong."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What describes the measurement: the options, unless overridden."""
        return {k: v for k, v in asdict(self).items() if k not in Task.__dataclass_fields__ and k != "data_root"}


def check_close(rows: dict[str, dict], key: str, limits: dict[str, float], relative: bool) -> dict[str, float]:
    """Differences of a value from classic's. Raises UserError where one is above the limit of its contender."""
    values = {name: row[key] for name, row in rows.items() if key in row}
    if "classic" not in values:
        return {}
    classic = values.pop("classic")
    apart = {name: (value - classic) / (classic if relative else 1) for name, value in values.items()}
    for name, difference in apart.items():
        if not abs(difference) <= limits.get(name, limits.get("", 0)):
            raise UserError(f"{key} of {name} is {values[name]:.4f}, that of classic {classic:.4f}: one is wrong")
    return apart


def usual_config(options: Any, **settings: Any) -> Config:
    """The usual settings with those options that are settings too."""
    known = Config().to_dict()
    shared = {name: value for name, value in vars(options).items() if name in known and value != ""}
    return Config(**{**shared, **settings}).check()
