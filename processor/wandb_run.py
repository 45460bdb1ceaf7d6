"""Weights & Biases, with --wandb PROJECT."""

from pathlib import Path
from typing import Any

from config import Config
from utils.errors import UserError, reason
from utils.lookup import package


def start_wandb(cfg: Config, directory: Path) -> Any:
    """Start the run at Weights & Biases, or continue a resumed one. Raises UserError without the package or a login."""
    wandb = package("wandb", "--wandb")
    identity = f"{directory.name}-{cfg.run.seed}"
    settings = {"project": cfg.loop.wandb, "name": directory.name, "dir": str(directory), "config": cfg.to_dict()}
    try:
        return wandb.init(**settings, id=identity, resume="allow" if cfg.run.resume else None)
    except wandb.Error as error:
        raise UserError(f"--wandb {cfg.loop.wandb} cannot start ({reason(error)}); try WANDB_MODE=offline") from error
