"""Numerical precision of a run, and torch's switches for it."""

import contextlib
import ctypes
import os
import sys
from typing import Any

import torch
from torch import nn

from config import Config

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOO_LARGE = 1e18  # a gradient whose square is inf would stay in Adam's moments


def resolve_precision(cfg: Config, device: torch.device) -> str:
    """Return float32, bf16 or fp16; `auto` is bf16 on GPUs that support it, fp16 on older ones, float32 on CPUs. On
    CPUs that compute in bf16, it stays `auto` until there is a model: see `processor.cpu_precision`.

    bf16 has the range of float32, so nothing overflows; the optimizer's weights stay in float32.
    """
    if cfg.loop.precision != "auto":
        return cfg.loop.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "auto" if device.type == "cpu" and native else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Run convolutions and matrix products in this precision; operations that need float32 stay in float32."""
    return contextlib.nullcontext() if precision == "float32" else torch.autocast(device.type, DTYPES[precision])


def layout(cfg: Config) -> torch.memory_format:
    """Return the memory format of images and convolutions."""
    return torch.channels_last if cfg.loop.channels_last else torch.contiguous_format


class Scaler(torch.amp.GradScaler):
    """torch's loss scaler (Micikevicius et al., Mixed Precision Training, ICLR 2018). It skips steps with NaN,
    inf or TOO_LARGE in the gradient. In float32 and bf16 the scale is always 1.

    The check runs on the device and fused optimizers read its result there, so that no step waits for the device.
    """

    def __init__(self, device: torch.device, precision: str):
        self.dynamic = precision == "fp16"
        super().__init__(device.type, init_scale=2.0**16 if self.dynamic else 1.0)

    def step_and_update(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """A step of the optimizer, after `unscale_`. Returns 1 on the device, or 0 if the step was skipped."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = torch.stack(torch._foreach_norm(gradients, float("inf"))).max()
        (found,) = self._found_inf_per_device(optimizer).values()  # 1 for NaN or inf; all weights are on one device
        found.copy_(torch.maximum(found, (largest > TOO_LARGE).float()))
        moved = 1 - found
        self.step(optimizer)
        self.update(None if self.dynamic else 1.0)
        return moved

    def state_dict(self) -> dict[str, Any]:
        """The scale and its age; empty if the scale is always 1."""
        return super().state_dict() if self.dynamic else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the state of a run with another precision."""
        if self.dynamic and state:
            super().load_state_dict(state)


class FiniteStatistics:
    """Restores batch norm's running statistics after a batch that made them NaN or inf, as overflows in half precision
    do: such a batch changes no weight, but the statistics would stay NaN in every later checkpoint and evaluation."""

    def __init__(self, model: nn.Module):
        self.buffers = [x for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
        self.before = self._now()

    def _now(self) -> torch.Tensor:
        return torch.cat([x.flatten() for x in self.buffers] or [torch.empty(0)])

    @torch.no_grad()
    def check(self) -> None:
        """Call after each forward pass: restores all if any is not finite. Nothing here waits for the device."""
        if not self.buffers:
            return
        now = self._now()
        self.before = torch.where(torch.isfinite(now).all(), now, self.before)
        parts = self.before.split([x.numel() for x in self.buffers])
        torch._foreach_copy_(self.buffers, [part.view_as(x) for part, x in zip(parts, self.buffers, strict=True)])


def configure_torch(cfg: Config, device: torch.device) -> None:
    """Set torch's global switches for this run."""
    torch.backends.cudnn.allow_tf32 = cfg.loop.tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # distances and scores are always exact
    torch.backends.cudnn.benchmark = not cfg.loop.deterministic
    if cfg.loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(cfg.loop.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
        # Weights that decay towards 0 become denormal numbers, with which a CPU computes several times as slowly.
        torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, as CUDA's allocator does; other systems have no such switch.

    By default, it returns large blocks at once, and the system clears every page of the activations again in each step:
    a third of a step's CPU time (MobileNetV2, 128 × 64, batches of 64). Blocks of 1 GB and more are still returned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
