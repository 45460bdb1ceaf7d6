"""Half precision where it is safe and fast, float32 where it is not."""

from typing import Any

import torch
from torch.nn import functional as F


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Any, **options: Any):
    """`F.conv2d`. With autocast on a CPU, depthwise convolutions stay in float32, except 3 × 3 with stride 1: torch's
    gradients of the others are up to 100 times slower in bf16."""
    fast = len(weight) != options["groups"] or (weight.shape[2:] == (3, 3) and stride in (1, (1, 1)))
    if fast or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, stride, **options)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x.float(), weight, bias, stride, **options)
