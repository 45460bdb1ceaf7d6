"""Distances between query and gallery features."""

from __future__ import annotations

import torch

METRICS = ("cosine", "euclidean")


def pairwise_distance(query: torch.Tensor, gallery: torch.Tensor, metric: str = "cosine") -> torch.Tensor:
    """Distance of every query to every gallery feature: (Q, D) and (G, D) to (Q, G) float32, autocast or not.

    cosine: 1 - cos, in 0..2 up to rounding (a zero row is at distance 1 of everything). euclidean: the root of the
    squared distance. Raises ValueError for shapes that do not fit, unknown metrics, and features that are NaN,
    infinite, or too large to square in float32.
    """
    query, gallery = prepare(query, gallery, metric)
    with torch.autocast(query.device.type, enabled=False):
        return from_product(query @ gallery.T, *(x.square().sum(1) for x in (query, gallery)), metric)


def prepare(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Check features and give float32 rows whose inner products `from_product` turns into distances."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be (Q, D) and (G, D), not {tuple(query.shape)} and {tuple(gallery.shape)}")
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    rows = []
    for name, features in (("query", query), ("gallery", gallery)):
        bad = int((~torch.isfinite(features)).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(features)} {name} features hold NaN or infinity; the model has diverged")
        norm = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
        if metric == "cosine":
            rows.append((features / norm.clamp(min=1e-300)[:, None]).float())
        elif bool((norm > 1e18).any()):  # half of what float32 can square, add and subtract
            raise ValueError(f"{int((norm > 1e18).sum())} of {len(features)} {name} features are too large to square")
        else:
            rows.append(features.float())
    return rows[0], rows[1]


def from_product(
    product: torch.Tensor, query_squares: torch.Tensor, gallery_squares: torch.Tensor, metric: str
) -> torch.Tensor:
    """Distances from inner products (Q, G) and the rows' squared norms (Q,), (G,); overwrites `product`."""
    if metric == "cosine":
        return product.neg_().add_(1)
    return product.mul_(-2).add_(query_squares[:, None]).add_(gallery_squares).clamp_(min=0).sqrt_()
