"""Training on growing images: --start-sizes."""

import copy
from dataclasses import replace

import torch

from config import Config
from config.sizes import stages
from datasets.cache import Images
from datasets.loaders import Loaders
from model import ReIDModel
from processor.state import TrainState
from utils.errors import UserError, reason
from utils.logging import log


def sized_data(state: TrainState, data: Loaders, epoch: int) -> Loaders:
    """Return the loaders with the image size of this epoch (from 0); images of a new size are decoded now."""
    cfg = state.cfg.at_epoch(epoch)
    if (cfg.data.height, cfg.data.width) == (data.train.images.height, data.train.images.width):
        return data
    log.info("images of %d x %d from here on", cfg.data.height, cfg.data.width)
    train, query, gallery = loaders = [copy.copy(x) for x in (data.train, data.query, data.gallery)]
    train.cfg = cfg
    with state.session.ranks.sync_errors(first_alone=True):
        for loader in loaders:
            paths = [s.path for s in loader.samples]
            loader.images = Images(cfg.replace(on_bad_image="refuse"), paths, loader.images.name)
    return replace(data, train=train, query=query, gallery=gallery)


@torch.no_grad()
def check_sizes(cfg: Config, model: ReIDModel) -> None:
    """Raises UserError if the model (for example a transformer) does not take all image sizes of the training."""
    for height, width, _ in stages(cfg):
        try:
            model.eval()(torch.zeros(1, 3, height, width))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"--backbone {cfg.model.backbone} does not take images of {height}x{width} ({reason(error)}); leave "
                "--start-sizes out, or choose other sizes"
            ) from error
    model.train()
