"""Query expansion: a feature and its nearest neighbors in the gallery describe a person better than the feature alone.

No labels are used: the neighbors may be images that the evaluation ignores for a query.
"""

import torch
import torch.nn.functional as F

from utils.distance import check_features, exact_products

BLOCK_BYTES = 64 << 20  # of similarities or gathered features at a time


@torch.no_grad()
def expand_queries(query: torch.Tensor, gallery: torch.Tensor, k: int = 5, alpha: float = 3.0) -> torch.Tensor:
    """Alpha query expansion of features (Q, D) by (G, D): unit rows (Q, D) float32, also under autocast.

    All rows are L2-normalized; a query q becomes q + the sum over its k nearest gallery rows g of max(cos, 0)^alpha g,
    normalized (Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018). With alpha 0
    every neighbor has weight 1: average query expansion (Chum et al., Total Recall, ICCV 2007). Ties are resolved by
    gallery order; k above G counts as G. Raises ValueError for shapes that do not match, for k or alpha out of
    range, and for NaN or infinite features (with their number).
    """
    _check_parameters(k, alpha)
    check_features(query=query, gallery=gallery)
    return _expand(unit_rows(query), unit_rows(gallery), k, alpha, same=False)


@torch.no_grad()
def augment_gallery(gallery: torch.Tensor, k: int = 5, alpha: float = 3.0) -> torch.Tensor:
    """Database-side augmentation: `expand_queries` of a gallery (G, D) by itself: unit rows (G, D) float32.

    A row has weight 1 and is not one of its own k neighbors; a duplicate of it can be (Arandjelović and Zisserman,
    Three Things Everyone Should Know to Improve Object Retrieval, CVPR 2012; Gordo et al., End-to-end Learning of Deep
    Visual Representations for Image Retrieval, IJCV 2017). k above G - 1 counts as G - 1. Errors as above.
    """
    _check_parameters(k, alpha)
    check_features(gallery=gallery)
    rows = unit_rows(gallery)
    return _expand(rows, rows, k, alpha, same=True)


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Rows (N, D) of length 1, float32. A zero row stays zero."""
    rows = torch.empty(features.shape, dtype=torch.float32, device=features.device)
    for part, unit in zip(features.detach().split(1024), rows.split(1024), strict=True):
        unit.copy_(F.normalize(part.double(), eps=1e-300))  # in float64, but only some rows at a time
    return rows


def _check_parameters(k: int, alpha: float) -> None:
    if int(k) != k or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, not {k}")
    if not 0 <= alpha < torch.inf:
        raise ValueError(f"alpha must be finite and at least 0, not {alpha}")


def _expand(rows: torch.Tensor, gallery: torch.Tensor, k: int, alpha: float, same: bool) -> torch.Tensor:
    """Unit rows expanded by unit gallery rows. same: both are the same, so row i is not its own neighbor."""
    k = min(int(k), len(gallery) - same)
    if k < 1:
        return rows
    expanded = torch.empty_like(rows)
    size = max(1, BLOCK_BYTES // (4 * max(len(gallery), k * rows.shape[1])))
    with exact_products(rows.device):
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            similarity = block @ gallery.T
            if same:
                similarity.diagonal(start).fill_(-torch.inf)
            neighbours = _nearest(similarity, k)
            weight = similarity.gather(1, neighbours).clamp(min=0).pow(alpha)
            added = (weight[:, None] @ gallery[neighbours])[:, 0]
            expanded[start : start + size] = unit_rows(block + added)
    return expanded


def _nearest(similarity: torch.Tensor, k: int) -> torch.Tensor:
    """Return the columns (B, k) of the k largest similarities of each row; ties take the first columns."""
    largest = similarity.topk(min(k + 1, similarity.shape[1]))
    nearest = largest.indices[:, :k]
    # topk picks any of equal values, which matters in rows whose k-th value equals the next one
    unclear = (largest.values[:, k - 1] == largest.values[:, -1]).nonzero()[:, 0]
    rows, smallest = similarity[unclear], largest.values[unclear, k - 1, None]
    above, tied = rows > smallest, rows == smallest
    chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)))
    nearest[unclear] = chosen.nonzero()[:, 1].view(-1, k)
    return nearest
