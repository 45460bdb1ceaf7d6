"""bf16 on CPUs: slow convolutions stay in float32, and `--precision auto` measures whether it is faster."""

import copy
import time

import torch
from torch import nn

from config import Config
from config.sizes import stages
from model import ReIDModel
from processor.precision import autocast, layout
from utils.logging import log
from utils.precision import conv2d


class GroupedConv2d(nn.Conv2d):
    """`nn.Conv2d` by `utils.precision.conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def keep_float32(model: nn.Module) -> None:
    """Keep slow depthwise convolutions of the model in float32 (see `conv2d`)."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.groups > 1 and layer.padding_mode == "zeros":
            layer.__class__ = GroupedConv2d


def faster_precision(cfg: Config, model: ReIDModel) -> str:
    """Return bf16 if a step of the model takes at least a tenth less time in it on this CPU, else float32.

    Also float32 if the last feature map is at most 4 x 2: there some of torch's bf16 convolutions give wrong results on
    CPUs with AMX. Takes a few seconds. The model is not changed, but random numbers are drawn.
    """
    height, width, _ = min(stages(cfg))
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        maps = model.backbone(torch.zeros(2, 3, height, width))
    rows, columns = (maps if torch.is_tensor(maps) else maps[-1]).shape[2:]  # several maps for several branches
    if rows <= 4 and columns <= 2:
        return "float32"
    few, most = 4, cfg.data.batch_size  # bf16 gains less with few images, so measure as many as a second allows
    images = int(min(most, max(few, few / step_seconds(cfg, model, few, "float32"))))
    full, half = (step_seconds(cfg, model, images, precision) for precision in ("float32", "bf16"))
    log.info("precision auto: a step of %d images takes %.3f s in float32, %.3f s in bf16", images, full, half)
    return "bf16" if half < 0.9 * full else "float32"


def step_seconds(cfg: Config, model: ReIDModel, images: int, precision: str) -> float:
    """Measure the CPU time of one step (without other programs), after one step that prepares the convolutions."""
    batch = torch.randn(images, 3, cfg.data.height, cfg.data.width).contiguous(memory_format=layout(cfg))
    for _ in range(2):
        start = time.process_time()
        with autocast(batch.device, precision):
            logits, features = model(batch)
        sum(x.float().square().mean() for x in (*logits, *features)).backward()
    return time.process_time() - start
