"""Identities and cameras as plain integer arrays."""

from collections.abc import Sequence

import numpy as np
import torch

Ids = torch.Tensor | np.ndarray | Sequence[int]  # one-dimensional


def check_ids(length: int, **ids: Ids) -> list[np.ndarray]:
    """The ids as int64 arrays (length,). Raises ValueError with the name of one that is not `length` integers."""
    checked = []
    for name, values in ids.items():
        try:
            array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        except ValueError:  # nested lists of unequal lengths
            array = np.empty((), dtype=object)
        if array.shape != (length,) or (array.dtype.kind not in "iu" and length):
            raise ValueError(f"{name} must be {length} integers, not {array.dtype} of shape {array.shape}")
        if array.dtype == np.uint64 and length and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds {array.max()}, which is more than an id can be (2^63 - 1)")
        checked.append(array.astype(np.int64))
    return checked
