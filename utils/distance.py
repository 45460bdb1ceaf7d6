"""Distances between query and gallery features, exact to float32 and equal for equal features."""

import contextlib
from collections.abc import Iterator

import torch

from utils.precision import at_least_float32

METRICS = ("cosine", "euclidean")
CHUNK_BYTES = 8 << 20  # of features converted at a time
LARGEST = 1e18  # largest norm of a row whose squares float32 can add and subtract


def pairwise_distance(query: torch.Tensor, gallery: torch.Tensor, metric: str = "cosine") -> torch.Tensor:
    """Distance of every query to every gallery feature: (Q, D) and (G, D) to (Q, G) float32, also under autocast.

    cosine: 1 - cos, in 0..2 up to rounding (a zero row has distance 1 to every row). euclidean: the root of the
    squared distance. No gradient is computed. Raises ValueError for shapes that do not match, unknown metrics, and
    features that are NaN, infinite, or too large to square in float32.
    """
    return Pair(query, gallery, metric).distances(0, len(query))


class Pair:
    """Checked query and gallery features, and their distances for some queries at a time.

    The features may be float16, or in a memory-mapped file: they are converted in chunks, and never copied as a whole.
    """

    def __init__(self, query: torch.Tensor, gallery: torch.Tensor, metric: str):
        self.query, self.gallery, (query_norm, gallery_norm) = check_pair(query, gallery, metric)
        self.metric = metric
        self.copies, self.originals = equal_rows(self.gallery, gallery_norm)
        if metric == "cosine":
            self.query_scale, self.gallery_scale = unit_factors(query_norm), unit_factors(gallery_norm)
        else:
            self.query_square, self.gallery_square = query_norm.square().float(), gallery_norm.square().float()

    def distances(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Distances (stop - start, G) float32 of queries start..stop, written to `out`."""
        query, whole = self.query[start:stop].float(), self.gallery.dtype == torch.float32
        if self.metric == "cosine":
            query = query * self.query_scale[start:stop, None]
        if out is None:
            out = torch.empty(len(query), len(self.gallery), dtype=torch.float32, device=query.device)
        chunks = [self.gallery] if whole and self.gallery.is_contiguous() else _chunks(self.gallery, 4)
        with exact_products(query.device):
            for rows, columns in zip(chunks, out.split([len(rows) for rows in chunks], dim=1), strict=True):
                torch.mm(query, rows.float().contiguous().T, out=columns)
        # A matrix product may sum its last columns in another order. The later steps round alike for equal rows.
        out[:, self.copies] = out[:, self.originals]
        if self.metric == "cosine":
            return out.mul_(self.gallery_scale).neg_().add_(1)
        return out.mul_(-2).add_(self.query_square[start:stop, None]).add_(self.gallery_square).clamp_(min=0).sqrt_()


def check_pair(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> tuple:
    """Return query (Q, D) and gallery (G, D) detached, and the float64 norms of their rows. Raises ValueError."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    query, gallery = query.detach(), gallery.detach()
    return query, gallery, check_features(query=query, gallery=gallery)


def check_features(**features: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the float64 norms (N,) of the rows of each of the features (N, D).

    Raises ValueError that names them if they differ in D, are not floating-point numbers, or hold NaN, infinity or
    values too large to square in float32.
    """
    if any(rows.ndim != 2 for rows in features.values()) or len({rows.shape[1] for rows in features.values()}) > 1:
        shapes = " and ".join(f"{name} {tuple(rows.shape)}" for name, rows in features.items())
        raise ValueError(f"features must be (N, D), all of the same D, not {shapes}")
    norms = []
    for name, rows in features.items():
        if not rows.is_floating_point():
            raise ValueError(f"{name} features must be floating-point numbers, not {rows.dtype}")
        chunks = _chunks(rows.detach(), 8)
        norms.append(torch.cat([torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64) for chunk in chunks]))
        if not torch.isfinite(norms[-1]).all():
            bad = sum(int((~torch.isfinite(chunk)).any(1).sum()) for chunk in chunks)
            raise ValueError(f"{bad} of {len(rows)} {name} features hold NaN or infinity; the model has diverged")
        if large := int((norms[-1] > LARGEST).sum()):
            raise ValueError(f"{large} of {len(rows)} {name} features are too large to square")
    return tuple(norms)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside, float32 matrix products are computed in float32: no autocast, TF32 or bfloat16, whatever the settings."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _chunks(features: torch.Tensor, itemsize: int) -> tuple[torch.Tensor, ...]:
    """Split the rows into views of at most CHUNK_BYTES each. itemsize: bytes per number."""
    return features.split(max(1, CHUNK_BYTES // (itemsize * max(features.shape[1], 1))))


def equal_rows(features: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the rows (N, D) that equal an earlier row, and of the first such row. norm: (N,) their norms."""
    ordered, order = norm.sort()
    same = torch.zeros(len(norm) + 1, dtype=torch.bool, device=norm.device)
    same[1:-1] = ordered[1:] == ordered[:-1]
    rows = order[same[1:] | same[:-1]].sort().values  # rows whose norm another row shares
    group = at_least_float32(features[rows]).unique(dim=0, return_inverse=True)[1] if len(rows) else rows
    first = torch.full_like(rows, len(norm)).scatter_reduce(0, group, rows, "amin")[group] if len(rows) else rows
    return rows[first < rows], first[first < rows]


def unit_factors(norm: torch.Tensor) -> torch.Tensor:
    """Return the float32 factors that scale rows with these norms (N,) to length 1; a zero row stays zero."""
    return torch.where(norm > 0, 1 / norm, 0).float()
