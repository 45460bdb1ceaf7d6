"""Identities and cameras as plain integer arrays."""

from collections.abc import Sequence

import numpy as np
import torch

Ids = torch.Tensor | np.ndarray | Sequence[int]  # one-dimensional


def check_ids(length: int, **ids: Ids) -> list[np.ndarray]:
    """Return the ids as int64 arrays (length,). Raises ValueError that names an array that is not `length` integers."""
    checked = []
    for name, values in ids.items():
        array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        if array.shape != (length,) or (array.dtype.kind not in "iu" and length):
            raise ValueError(f"{name} must be {length} integers, not {array.dtype} of shape {array.shape}")
        checked.append(array.astype(np.int64))
    return checked
