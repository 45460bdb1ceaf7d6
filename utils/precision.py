"""Half precision where it is safe and fast, float32 where it is not."""

import torch
from torch.nn import functional as F


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias, stride, padding, dilation=1, groups: int = 1) -> torch.Tensor:
    """`F.conv2d`. With autocast on a CPU, depthwise convolutions stay in float32, except 3 × 3 with stride 1: torch's
    gradients of the others are up to 100 times slower in bf16."""
    depthwise = 1 < groups == len(weight)
    fast = weight.shape[2:] == (3, 3) and stride in (1, (1, 1))
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not depthwise or fast:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x.float(), weight, bias, stride, padding, dilation, groups)
