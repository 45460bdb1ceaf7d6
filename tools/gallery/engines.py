"""Nearest neighbors among millions of features.

exact multiplies matrices in PyTorch, a block of rows at a time. hnsw (Malkov and Yashunin, TPAMI 2020) follows a graph
of neighbors in FAISS: faster, but it misses some rows.
"""

from typing import Any

import numpy as np
import torch

from utils.distance import exact_products
from utils.errors import UserError
from utils.lookup import package

BLOCK = 1 << 22  # exact: products at a time
MIN_ROWS, MAX_ROWS = 1024, 1 << 17  # exact: rows of a block
LINKS = 32  # hnsw: neighbors of a row in the graph (twice as many in its lowest layer)
CANDIDATES = 64  # hnsw: rows that a search keeps


def nearest(query: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest inner products per query and their gallery rows, both (Q, K), in descending order; K = min(k, G).

    query (Q, D) and gallery (G, D) are float32; if the rows have length 1, the products are cosines. Equal products
    are in the order of their rows, but which of them are kept as the last of the k is undefined.
    """
    count = min(k, len(gallery))
    value = query.new_full((len(query), count), -torch.inf)
    index = torch.zeros(len(query), count, dtype=torch.int64, device=query.device)
    rows = min(max(BLOCK // max(len(query), 1), MIN_ROWS), MAX_ROWS)
    for start in range(0, len(gallery) if len(query) else 0, rows):
        with exact_products(query.device):
            product = query @ gallery[start : start + rows].T
        # After some blocks, most queries find nothing better than they have, and topk is the expensive part.
        better = (product.amax(1) > value.amin(1)).nonzero().flatten()
        found, place = product[better].topk(min(count, product.shape[1]), dim=1, sorted=False)
        found, place = torch.cat([value[better], found], 1), torch.cat([index[better], place + start], 1)
        value[better], chosen = found.topk(count, dim=1, sorted=False)
        index[better] = place.gather(1, chosen)
    index, order = index.sort(1)  # rows first, then products by a stable sort: equal products stay in row order
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    return value, index.gather(1, order)


def load_faiss() -> Any:
    """Import FAISS. Raises UserError if it is not installed."""
    return package("faiss", "--engine hnsw, unlike exact,", "faiss-cpu")


def build_engine(features: np.ndarray, ids: np.ndarray) -> Any:
    """Make a FAISS graph (inner product) of features (N, D) float32 with ids (N,) int64. Raises UserError for N = 0."""
    faiss = load_faiss()
    if not len(features):
        raise UserError("--engine hnsw needs at least one picture; add pictures first, or use exact")
    engine = faiss.IndexIDMap(faiss.IndexHNSWFlat(features.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT))
    engine.add_with_ids(features, ids)
    return engine


def search_engine(engine: Any, query: np.ndarray, k: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return inner products (Q, K) in descending order and their rows, which are places in `ids`; K = min(k, N).

    ids: (N,) ascending, of the rows that may be found. Removed rows stay in the graph, as links between others. If
    fewer than K rows are found, the last ones are -1.
    """
    faiss = load_faiss()
    count = min(k, len(ids))
    # some of the rows that a search keeps are removed ones
    candidates = max(CANDIDATES, 2 * count) * engine.ntotal // len(ids)
    options = {"efSearch": min(candidates, engine.ntotal)}
    if engine.ntotal > len(ids):
        removed = faiss.IDSelectorBatch(np.setdiff1d(faiss.vector_to_array(engine.id_map), ids))
        options["sel"] = faiss.IDSelectorNot(removed)
    value, found = engine.search(np.ascontiguousarray(query), count, params=faiss.SearchParametersHNSW(**options))
    row = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
    return value, np.where(found >= 0, row, -1)
