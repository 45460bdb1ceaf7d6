"""In which numbers a run computes, and by which kernels: what suits the device, unless the settings say otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import torch

from config import Config

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(cfg: Config, device: torch.device) -> str:
    """float32, bf16 or fp16; `auto` is bf16 on GPUs that compute in it, fp16 on older ones, float32 on CPUs.

    bf16 has the range of float32, so nothing overflows, and of its 8 bits the optimizer's float32 weights lose none.
    """
    if cfg.loop.precision != "auto":
        return cfg.loop.precision
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Convolutions and matrix products in that precision; what needs float32 stays in it."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


class Scaler:
    """One scale for the loss and one decision a step for all optimizers (Micikevicius et al., Mixed Precision Training,
    ICLR 2018): where any gradient is not finite, no weight moves. In float32 and bf16 the scale stays 1.

    Looking for them happens on the device. Fused optimizers are told there, too, so no step waits for it.
    """

    def __init__(self, device: torch.device, precision: str):
        self.device, self.moves = device, precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.moves else 1.0)
        self.together: Together | None = None  # what the gradients that are unscaled belong to

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Gradients as they are without the scale; to be called before anything looks at them, and before `step`."""
        self.together = Together(optimizers, self.device)
        self.scaler.unscale_(self.together)

    def step(self, optimizers: list[torch.optim.Optimizer]) -> torch.Tensor:
        """Move the weights. Gives 1 on the device where that was done, and 0 where a gradient was not finite."""
        if self.together is None:
            self.unscale(optimizers)
        self.scaler.step(self.together)
        self.scaler.update(None if self.moves else 1.0)
        moved, self.together = self.together.moved, None
        return moved

    def state_dict(self) -> dict:
        """The scale, and how long it has been that; nothing where it stays 1."""
        return self.scaler.state_dict() if self.moves else {}

    def load_state_dict(self, state: dict) -> None:
        """Take over the scale of a run that was stopped; nothing of one with another precision."""
        if self.moves and state:
            self.scaler.load_state_dict(state)


class Together:
    """Several optimizers as the one that torch's GradScaler decides for, which it would else do for each by itself."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], device: torch.device):
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._step_supports_amp_scaling = all(hasattr(o, "_step_supports_amp_scaling") for o in optimizers)
        self.moved = torch.zeros((), device=device)

    def step(self) -> None:
        """A step of each. Fused ones find on the device whether they are to do nothing; without these, the scaler has
        waited for that and does not call."""
        self.moved = 1 - self.found_inf if self._step_supports_amp_scaling else torch.ones_like(self.moved)
        for optimizer in self.optimizers:
            if self._step_supports_amp_scaling:
                optimizer.grad_scale, optimizer.found_inf = self.grad_scale, self.found_inf
            optimizer.step()
            if self._step_supports_amp_scaling:
                del optimizer.grad_scale, optimizer.found_inf


def set_up(cfg: Config, device: torch.device, precision: str) -> str:
    """Set torch's switches for this run. Gives the sentence that says what was chosen."""
    torch.backends.cudnn.allow_tf32 = cfg.loop.tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # distances and scores are exact, whatever the network computes in
    torch.backends.cudnn.benchmark = not cfg.loop.deterministic
    if cfg.loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(cfg.loop.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    words = [f"training in {precision}", f"tests in {cfg.loop.test_precision}"]
    if device.type == "cuda" and "float32" in (precision, cfg.loop.test_precision):
        words.append("float32 convolutions " + ("in TF32" if cfg.loop.tf32 else "in full, no TF32"))
    words.append("channels last" if cfg.loop.channels_last else "channels first")
    words.append("fused optimizer" if cfg.loop.fused else "plain optimizer")
    words += ["compiled"] * cfg.loop.compile + ["deterministic"] * cfg.loop.deterministic
    return ", ".join(words)


def keep_freed_memory() -> None:
    """Have the C library keep the memory that is freed, as CUDA's allocator does.

    glibc gives large blocks back at once, and the system clears every page of the activations anew at each step. That
    took a third of a training step's CPU time (MobileNetV2, 128 × 64, batches of 64). Blocks of 1 GB and more still go
    back. Nothing is done where there is no such switch (musl, macOS, Windows).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
