"""The most similar gallery rows of each query, exactly, without a (Q, G) matrix."""

from __future__ import annotations

import torch

from utils.distance import exact_products

BLOCK_BYTES = 16 << 20  # of similarities at a time: what is made of them finds them in the cache
FEWEST, MOST = 1024, 1 << 17  # gallery rows of a block


def nearest(query: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products (Q, K) float32, the largest first, and the rows (Q, K) int64 of the gallery that they belong to.

    query (Q, D) and gallery (G, D) are float32; of rows of length 1 the products are cosines. K is k, or G where that
    is less. Of equal products the rows come in their order, but which of them are left out behind the k-th is not
    said. Raises ValueError for shapes that do not fit, other types, NaN in a product, and k below 1.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be (Q, D) and (G, D), not {tuple(query.shape)} and {tuple(gallery.shape)}")
    if query.dtype != torch.float32 or gallery.dtype != torch.float32:
        raise ValueError(f"features must be float32, not {query.dtype} and {gallery.dtype}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    count = min(k, len(gallery))
    if not query.numel() or not count:
        return query.new_empty(len(query), count), torch.empty(len(query), count, dtype=torch.int64)
    value, index = _search(query, gallery, count)
    order = index.argsort(1)  # rows first, then values in a stable sort: equal values stay in the order of rows
    value, index = value.gather(1, order), index.gather(1, order)
    value, order = value.sort(dim=1, descending=True, stable=True)
    return value, index.gather(1, order)


def _search(query: torch.Tensor, gallery: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest products of each query, unordered."""
    rows = min(max(BLOCK_BYTES // (4 * len(query)), FEWEST, count), MOST)
    buffer = torch.empty(len(query), rows, dtype=torch.float32, device=query.device)
    value = query.new_full((len(query), count), -torch.inf)
    index = torch.zeros(len(query), count, dtype=torch.int64, device=query.device)
    for start in range(0, len(gallery), rows):
        part = gallery[start : start + rows]
        tile = buffer.flatten()[: len(query) * len(part)].view(len(query), len(part))
        with exact_products(query.device):
            torch.mm(query, part.T, out=tile)
        best = tile.amax(1)  # NaN where there is one
        if best.isnan().any():
            raise ValueError("features hold NaN or infinity; the model has diverged")
        # After some blocks most queries find nothing better than they have, and ordering is the dear part.
        some = (best > value.amin(1)).nonzero().flatten()
        found, place = tile[some].topk(min(count, len(part)), dim=1, sorted=False)
        found, place = torch.cat([value[some], found], 1), torch.cat([index[some], place + start], 1)
        value[some], chosen = found.topk(count, dim=1, sorted=False)
        index[some] = place.gather(1, chosen)
    return value, index
