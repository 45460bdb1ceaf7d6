"""Half precision where it is safe, float32 where it is not."""

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
