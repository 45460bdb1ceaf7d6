"""In which numbers a run computes, and by which kernels: what suits the device, unless the settings say otherwise."""

from __future__ import annotations

import contextlib
import os

import torch

from config import Config

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(cfg: Config, device: torch.device) -> str:
    """float32, bf16 or fp16; `auto` is bf16 on GPUs that compute in it, fp16 on older ones, float32 on CPUs.

    bf16 has the range of float32, so nothing overflows, and of its 8 bits the optimizer's float32 weights lose none.
    """
    if cfg.precision != "auto":
        return cfg.precision
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
    ICLR 2018): gradients that are not finite move no weight. In float32 and bf16 the scale stays 1.

    Looking for them happens on the device. Fused optimizers are told there, too, so no step waits for it.
    """

    def __init__(self, device: torch.device, precision: str):
        self.moves = precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.moves else 1.0)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Gradients as they are without the scale; to be called before anything looks at them, and before `step`."""
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)

    def step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update(None if self.moves else 1.0)

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take over the scale of a run that was stopped; nothing of one with another precision."""
        if self.moves and state.get("scale", 1.0) != 1.0:
            self.scaler.load_state_dict(state)


def set_up(cfg: Config, device: torch.device, precision: str) -> str:
    """Set torch's switches for this run. Gives the sentence that says what was chosen."""
    torch.backends.cudnn.allow_tf32 = cfg.tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # distances and scores are exact, whatever the network computes in
    torch.backends.cudnn.benchmark = not cfg.deterministic
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(cfg.deterministic)
    words = [f"training in {precision}", f"tests in {cfg.test_precision}"]
    if device.type == "cuda" and "float32" in (precision, cfg.test_precision):
        words.append("float32 convolutions " + ("in TF32" if cfg.tf32 else "in full, no TF32"))
    words.append("channels last" if cfg.channels_last else "channels first")
    words.append("fused optimizer" if cfg.fused else "plain optimizer")
    words += ["compiled"] * cfg.compile + ["deterministic"] * cfg.deterministic
    return ", ".join(words)
