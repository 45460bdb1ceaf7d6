"""--start-sizes: the sizes of the images in the epochs of training."""

import math
import re

from config.config import Config
from utils.errors import UserError


def stages(cfg: Config) -> list[tuple[int, int, int]]:
    """Return height, width and last epoch of each image size of the training. Raises UserError for a wrong setting."""
    found, end = [], 0
    for word in cfg.data.start_sizes:
        match = re.fullmatch(r"(\d+)x(\d+):(\d+)", word)
        height, width, epochs = map(int, match.groups()) if match else (0, 0, 0)
        end += epochs
        if not 16 <= min(height, width) <= max(height, width) <= 8192 or not 0 < epochs <= end < cfg.solver.epochs:
            raise UserError(
                f"--start-sizes {word} must be HEIGHTxWIDTH:EPOCHS, such as 128x64:16, and all their epochs together "
                f"fewer than --epochs {cfg.solver.epochs}: the last epochs are at --height x --width"
            )
        found.append((height, width, end))
    return [*found, (cfg.data.height, cfg.data.width, cfg.solver.epochs)]


def size_at(cfg: Config, epoch: int) -> tuple[int, int]:
    """Return height and width of the images in this epoch, counted from 0."""
    return next((h, w) for h, w, end in stages(cfg) if epoch < end or end == cfg.solver.epochs)


def at_epoch(cfg: Config, epoch: int) -> Config:
    """Return the settings with the image size of this epoch, and padding in proportion to it."""
    height, width = size_at(cfg, epoch)
    return cfg.replace(height=height, width=width, pad=round(cfg.augment.pad * height / cfg.data.height))


def epochs_left(cfg: Config, done: int, present: int) -> float:
    """Return the epochs left after the first `done`, each weighted by its image area relative to epoch `present`."""
    sizes = [math.prod(size_at(cfg, epoch)) for epoch in (present, *range(done, cfg.solver.epochs))]
    return sum(sizes[1:]) / sizes[0]
