"""Settings of the programs around the search for a backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from config import Config

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass
class SearchConfig(Config):
    max_flops: str = ""  # most multiply-adds of an image, such as 210M; empty: as many as MobileNetV2 1.0 has
    max_latency: float = 0.0  # most milliseconds of a batch of --latency-batch images on --device; 0: no limit
    latency_batch: int = 1  # images of that batch
    supernet_epochs: int = 0  # epochs of the supernet; 0: four times those of the preset
    candidates: int = 200  # networks that are scored, as many for each size of images
    at_random: int = 60  # of these, how many are drawn by chance before breeding begins

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.max_flops and not flops(self.max_flops) > 0:
            yield f"--max-flops takes a number such as 210M or 1.2G, not {self.max_flops}"
        if not self.max_latency >= 0:
            yield f"--max-latency must be 0 or more, not {self.max_latency}"
        if self.supernet_epochs < 0:
            yield f"--supernet-epochs must be 0 or more, not {self.supernet_epochs}"
        if self.latency_batch < 1:
            yield f"--latency-batch must be at least 1, not {self.latency_batch}"
        if not 1 <= self.at_random <= self.candidates:
            yield f"--at-random must be at least 1 and at most --candidates, not {self.at_random} of {self.candidates}"


def flops(text: str) -> float:
    """210M to 210e6; 0 for what is no number."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1].lower() in SUFFIXES else (text, "")
    try:
        return float(number) * SUFFIXES.get(unit, 1.0)
    except ValueError:
        return 0.0


def plain(cfg: SearchConfig, **changes) -> Config:
    """The settings of a training, without those of the search."""
    values = {name: value for name, value in cfg.to_dict().items() if name in Config.__dataclass_fields__}
    return replace(Config(**values), **changes).check()
