"""FAISS behind four functions: what finds the nearest of millions of rows faster than looking at all of them.

flat looks at all rows, as `utils.nearest` does. ivf (Sivic and Zisserman, ICCV 2003) looks at those whose cluster is
near, hnsw (Malkov and Yashunin, TPAMI 2020) at those that a graph of neighbours leads to: both miss some.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_atomically

ENGINES = ("flat", "ivf", "hnsw")
LINKS = 32  # hnsw: neighbours of a row in the graph (twice as many in its lowest layer)
LOOK_AT = 64  # hnsw: rows that a search keeps in sight
PROBED = 1 / 32  # ivf: share of the clusters that a search looks into
FEWEST_PROBED = 8
TRAINED_ON = 64  # ivf: rows a cluster that the clusters are made from


def load_faiss() -> Any:
    """The library. Raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("the engines flat, ivf and hnsw need FAISS: pip install faiss-cpu (or take exact)") from error
    return faiss


def build_engine(kind: str, features: np.ndarray, ids: np.ndarray) -> Any:
    """A FAISS index of inner products over features (N, D) float32 with ids (N,) int64. Raises UserError for N = 0."""
    faiss = load_faiss()
    if not len(features):
        raise UserError(f"--engine {kind} cannot be built of nothing; add pictures first, or take exact")
    width = features.shape[1]
    if kind == "ivf":
        clusters = max(1, min(int(4 * math.sqrt(len(features))), len(features) // 39))  # 39: what FAISS asks for
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = TRAINED_ON
        index.train(features)
    elif kind == "hnsw":
        index = faiss.IndexIDMap(faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT))
    else:
        index = faiss.IndexIDMap(faiss.IndexFlatIP(width))
    index.add_with_ids(features, ids)
    return index


def search_engine(index: Any, query: np.ndarray, k: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (Q, k), the largest first, and places (Q, k) in `ids` of what was found; -1 where that is less.

    ids: (N,) ascending, those that are to be found; a graph may still hold others, which were removed.
    """
    faiss = load_faiss()
    count = min(k, len(ids))
    chosen = {}
    if index.ntotal > len(ids):
        dead = np.setdiff1d(faiss.vector_to_array(index.id_map), ids)
        batch = faiss.IDSelectorBatch(dead)
        chosen["sel"] = faiss.IDSelectorNot(batch)
    if hasattr(index, "nlist"):
        # A small list may hold fewer than k: as many clusters as hold twice that on average.
        enough = math.ceil(2 * count * index.nlist / max(index.ntotal, 1))
        probed = min(max(round(PROBED * index.nlist), FEWEST_PROBED, enough), index.nlist)
        chosen = faiss.SearchParametersIVF(nprobe=probed, **chosen)
    elif isinstance(faiss.downcast_index(index.index), faiss.IndexHNSW):
        sight = max(LOOK_AT, 2 * count) * index.ntotal // len(ids)  # so that as many of them may be found
        chosen = faiss.SearchParametersHNSW(efSearch=min(sight, index.ntotal), **chosen)
    else:
        chosen = faiss.SearchParameters(**chosen)
    value, found = index.search(np.ascontiguousarray(query), count, params=chosen)
    place = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
    return value, np.where(found >= 0, place, -1)


def remove_from_engine(index: Any, ids: np.ndarray) -> None:
    """Take rows out; a graph keeps them as ways to others, and `search_engine` passes them over."""
    faiss = load_faiss()
    if hasattr(index, "nlist") or not isinstance(faiss.downcast_index(index.index), faiss.IndexHNSW):
        index.remove_ids(np.ascontiguousarray(ids))


def write_engine(path: Path, index: Any) -> None:
    """Atomically."""
    faiss = load_faiss()
    write_atomically(path, lambda temporary: faiss.write_index(index, str(temporary)))


def read_engine(path: Path, width: int) -> Any:
    """Raises UserError for what is no index of rows of that width."""
    faiss = load_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(": ")[-1]
        raise UserError(f"{path} cannot be read by FAISS ({reason}); index again with --engine") from error
    if index.d != width or not (hasattr(index, "nlist") or hasattr(index, "id_map")):
        raise UserError(f"{path} is no index of features of width {width}; index again with --engine")
    return index
