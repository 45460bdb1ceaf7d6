"""Runs of unequal lengths stored end to end in one tensor."""

import torch


def offsets(lengths: torch.Tensor) -> torch.Tensor:
    """Return where each of consecutive runs of these lengths begins, and where the last ends: (N,) to (N + 1,)."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def ranges(first: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """first[0], first[0] + 1, ... (length[0] numbers), then first[1], ...: all in one tensor."""
    begin = offsets(length)
    return torch.arange(int(begin[-1]), device=first.device) + (first - begin[:-1]).repeat_interleave(length)


def padded_places(run: torch.Tensor, runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For entries in ascending order of their run: each run's length (runs,), and each entry's place in its run."""
    number = torch.bincount(run, minlength=runs)
    return number, torch.arange(len(run), device=run.device) - offsets(number)[run]
