"""Nearest neighbours among millions of features: exactly, or faster by FAISS.

exact multiplies matrices in PyTorch, a block of rows at a time; flat does the same in FAISS. ivf (Sivic and Zisserman,
ICCV 2003) searches only the clusters near the query, hnsw (Malkov and Yashunin, TPAMI 2020) follows a graph of
neighbours: both miss some rows.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.distance import exact_products
from utils.errors import UserError

ENGINES = ("flat", "ivf", "hnsw")  # of FAISS
BLOCK = 1 << 22  # exact: products at a time
MIN_ROWS, MAX_ROWS = 1024, 1 << 17  # exact: rows of a block
HNSW_LINKS = 32  # neighbours of a row in the graph (twice as many in its lowest layer)
HNSW_CANDIDATES = 64  # rows that a search keeps
IVF_SHARE, IVF_MIN = 1 / 32, 8  # clusters that a search looks into: a share, and the minimum
IVF_TRAIN_ROWS = 64  # rows per cluster that the clusters are computed from


def nearest(query: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest inner products per query and their gallery rows, both (Q, K), in descending order; K = min(k, G).

    query (Q, D) and gallery (G, D) are float32; of rows of length 1 the products are cosines. Equal products are in the
    order of their rows, but which of them are cut off behind the k-th is undefined.
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
    """The library. Raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("the engines flat, ivf and hnsw need FAISS: pip install faiss-cpu (or use exact)") from error
    return faiss


def build_engine(kind: str, features: np.ndarray, ids: np.ndarray) -> Any:
    """A FAISS index of inner products over features (N, D) float32 with ids (N,) int64. Raises UserError for N = 0."""
    faiss = load_faiss()
    if not len(features):
        raise UserError(f"--engine {kind} needs at least one picture; add pictures first, or use exact")
    width = features.shape[1]
    if kind == "ivf":
        clusters = max(1, min(int(4 * math.sqrt(len(features))), len(features) // 39))  # 39: what FAISS asks for
        engine = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
        engine.cp.max_points_per_centroid = IVF_TRAIN_ROWS
        engine.train(features)
    elif kind == "hnsw":
        engine = faiss.IndexIDMap(faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT))
    else:
        engine = faiss.IndexIDMap(faiss.IndexFlatIP(width))
    engine.add_with_ids(features, ids)
    return engine


def search_engine(engine: Any, query: np.ndarray, k: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (Q, K) in descending order and their rows, which are places in `ids`; K = min(k, N).

    ids: (N,) ascending, those that may be found. Rows are -1 at the end where less than K were found.
    """
    faiss = load_faiss()
    count = min(k, len(ids))
    chosen = {}
    if engine.ntotal > len(ids):  # of an hnsw, from which nothing can be removed
        removed = faiss.IDSelectorBatch(np.setdiff1d(faiss.vector_to_array(engine.id_map), ids))
        chosen["sel"] = faiss.IDSelectorNot(removed)
    if hasattr(engine, "nlist"):
        # Clusters may hold fewer than k rows: as many clusters as hold twice that on average.
        enough = math.ceil(2 * count * engine.nlist / max(engine.ntotal, 1))
        probed = min(max(round(IVF_SHARE * engine.nlist), IVF_MIN, enough), engine.nlist)
        chosen = faiss.SearchParametersIVF(nprobe=probed, **chosen)
    elif is_graph(engine):
        candidates = max(HNSW_CANDIDATES, 2 * count) * engine.ntotal // len(ids)  # as removed rows are among them
        chosen = faiss.SearchParametersHNSW(efSearch=min(candidates, engine.ntotal), **chosen)
    else:
        chosen = faiss.SearchParameters(**chosen)
    value, found = engine.search(np.ascontiguousarray(query), count, params=chosen)
    row = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
    return value, np.where(found >= 0, row, -1)


def remove_from_engine(engine: Any, ids: np.ndarray) -> None:
    """Remove rows; hnsw keeps them as ways to others, and `search_engine` skips them."""
    if not is_graph(engine):
        engine.remove_ids(ids)


def is_graph(engine: Any) -> bool:
    return not hasattr(engine, "nlist") and "HNSW" in type(load_faiss().downcast_index(engine.index)).__name__


def read_engine(path: Path, width: int) -> Any:
    """Raises UserError for a file that is no index of features of that width."""
    try:
        engine = load_faiss().read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(": ")[-1]
        raise UserError(f"{path} cannot be read by FAISS ({reason}); index again with --engine") from error
    if engine.d != width or not (hasattr(engine, "nlist") or hasattr(engine, "id_map")):
        raise UserError(f"{path} is no index of features of width {width}; index again with --engine")
    return engine
