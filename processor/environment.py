"""Where a run happened: device, versions, commit. Every result is stored with it."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

from utils.errors import UserError, reason

ROOT = Path(__file__).resolve().parents[1]


def pick_device(name: str) -> torch.device:
    """Return the device; `auto` is cuda if available, else cpu. Raises UserError for a device that is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.index:  # memory, time and streams refer to the current device
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({reason(error)}); try auto or cpu") from error
    return device


def commit() -> str:
    """Return the commit of this checkout, with `-dirty` if tracked files differ from it; `unknown` without git."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(words, cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Return hardware, versions and commit as plain values for JSON and the log."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "hardware": f"{processes} x {hardware}" if processes > 1 else hardware, "python": platform.python_version(),
        # str: torch's is a subclass, which weights_only would refuse to read
        "torch": str(torch.__version__), "torchvision": str(torchvision.__version__), "numpy": str(np.__version__),
        "commit": commit(),
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
