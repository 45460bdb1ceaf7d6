"""Initial weights of backbones that are not torchvision's, and checks of settings that they do not support."""

from torch import nn

from config import Config
from utils.errors import UserError


def init_convolutions(net: nn.Module) -> None:
    """Initialize convolutions as in He et al. (Delving Deep into Rectifiers, ICCV 2015), by fan-out, with biases 0."""
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def refuse_last_stride_2(cfg: Config) -> None:
    """Raises UserError for --last-stride 2, for a backbone that has no last stride."""
    if cfg.model.last_stride != 1:
        raise UserError(
            f"--last-stride {cfg.model.last_stride} is not possible: {cfg.model.backbone} ends at 1/16; leave it out"
        )


def refuse_tiny_images(cfg: Config) -> None:
    """Raises UserError if the map at 1/16 has a single position, whose instance norm would always be 0."""
    if max(cfg.data.height, cfg.data.width) < 32:
        raise UserError(
            f"--backbone {cfg.model.backbone} normalizes each image's map at 1/16 of its size, a single position with "
            f"--height {cfg.data.height} --width {cfg.data.width}; give --height 32 or more, or another --backbone"
        )
