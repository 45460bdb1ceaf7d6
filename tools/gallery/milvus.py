"""An index in Milvus: in Milvus Lite (a database in a file), or on a server or cluster.

The index's folder then holds index.json only, with the model and the URI of the database. The entries are in a
collection whose name follows from the model and the folder of pictures, so that machines with the same folder share it.
An entry's key is a digest of its path, so an entry that is written again after a stop exists only once.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tools.gallery.index import EVERYWHERE, File, Index, Where
from utils.errors import UserError
from utils.logging import log
from utils.lookup import package

BLOCK = 1000  # entries written or asked for at a time
READ = 16384  # entries read at a time, the most that Milvus returns
LONGEST = 65535  # bytes of a path, Milvus's limit
CANDIDATES = 64  # entries that a search of the graph keeps
LINKS = {"M": 32, "efConstruction": 40}  # of the graph, as in FAISS


class MilvusIndex(Index):
    """As `Index`, with the entries in Milvus. Its `files` and `ids` are empty, and only `about` needs to be saved."""

    adding = False  # entries to a file, which cannot be searched until `finish`

    @cached_property
    def client(self) -> Any:
        """The connection. Raises UserError if the library is missing or the database cannot be opened."""
        uri = self.about["uri"]
        milvus = load_milvus(self.lite)
        with named_errors(uri):
            client = milvus.MilvusClient(uri=uri, timeout=30)
            if not client.has_collection(self.collection):
                self._create(client)
            client.load_collection(self.collection)
        return client

    @property
    def lite(self) -> bool:
        """Whether the database is a file, which no other program may use meanwhile."""
        return "://" not in self.about["uri"]

    @property
    def collection(self) -> str:
        """Name of the collection."""
        text = json.dumps([self.about[name] for name in ("model", "flip", "half", "root")])
        return "plainreid_" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def _create(self, client: Any) -> None:
        DataType = load_milvus().DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        for name in ("path", "picture", "camera"):
            schema.add_field(name, DataType.VARCHAR, max_length=LONGEST)
        for name in ("size", "changed"):
            schema.add_field(name, DataType.INT64)
        schema.add_field("time", DataType.DOUBLE)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.about["dim"])
        graph = client.prepare_index_params()
        graph.add_index("vector", index_type="HNSW", metric_type="IP", params=LINKS)
        # strong: a search sees all that was written before it
        client.create_collection(self.collection, schema=schema, index_params=graph, consistency_level="Strong")

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the client for this collection."""
        client = self.client
        with named_errors(self.about["uri"]):
            return getattr(client, method)(self.collection, *args, **options)

    def __len__(self) -> int:
        return self._call("query", filter="", output_fields=["count(*)"])[0]["count(*)"]

    def find(
        self, query: torch.Tensor, k: int, exact: bool = False, where: Where = EVERYWHERE
    ) -> list[tuple[float, File]]:
        if exact:
            raise UserError("milvus searches only with its own graph; for --exact, index again with --engine exact")
        return self.find_all(query, k, where)[0]

    def find_all(self, query: torch.Tensor, k: int, where: Where = EVERYWHERE) -> list[list[tuple[float, File]]]:
        """As `find`, for each of several queries (Q, D)."""
        how = {"metric_type": "IP", "params": {"ef": max(CANDIDATES, 2 * k)}}
        data, fields = query.numpy(), list(File._fields)
        found = self._call("search", data, expression(where), k, output_fields=fields, search_params=how)
        return [[(hit["distance"], as_file(hit["entity"])) for hit in hits] for hits in found]

    def entries(self) -> list[File]:
        rows, found = self._call("query_iterator", batch_size=READ, output_fields=list(File._fields)), []
        with named_errors(self.about["uri"]):
            while block := rows.next():
                found += map(as_file, block)
            rows.close()
        return sorted(found)

    def missing(self, files: Sequence[File]) -> list[File]:
        known = set()
        for some in blocks(files):
            keys = [key_of(file.path) for file in some]
            known |= set(map(as_file, self._call("get", keys, output_fields=list(File._fields))))
        return [file for file in files if file not in known]

    def append(self, files: Sequence[File], features: np.ndarray) -> None:
        if self.lite and not self.adding:  # a server builds its graph while others search in it
            self._call("release_collection")
            self.adding = True
        for some in blocks(list(zip(files, features, strict=True))):
            rows = [{"key": key_of(file.path), **file._asdict(), "vector": row} for file, row in some]
            self._call("upsert", rows)

    def finish(self, wanted: Sequence[File] | None = None) -> None:
        self._call("flush")  # otherwise the last entries are searched one by one, without the graph
        if self.adding:
            log.info("Milvus builds its graph")
            self._call("load_collection")
            self.adding = False
        if wanted is not None:
            kept = set(wanted)
            self.drop_paths({file.path for file in self.entries() if file not in kept})
            self._call("flush")

    def drop_paths(self, paths: Set[str]) -> None:
        for some in blocks(sorted(paths)):
            self._call("delete", ids=[key_of(path) for path in some])


def blocks(things: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (things[start : start + BLOCK] for start in range(0, len(things), BLOCK))


def load_milvus(lite: bool = False) -> Any:
    """Import pymilvus. lite: also check for the package that opens files. Raises UserError if one is not installed."""
    use, install = "--engine milvus, unlike exact,", "pymilvus milvus-lite"
    if lite:
        package("milvus_lite", use, install)
    pymilvus = package("pymilvus", use, install)
    logging.getLogger("pymilvus").setLevel(logging.ERROR)  # it warns about each list of entries
    return pymilvus


def key_of(path: str) -> str:
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]


def as_file(row: dict[str, Any]) -> File:
    return File(*(row[name] for name in File._fields))


def expression(where: Where) -> str:
    """Return a filter for Milvus."""
    parts = [f"camera == {json.dumps(where.camera, ensure_ascii=False)}"] if where.camera else []
    parts += [f"time >= {where.after!r}"] if where.after > EVERYWHERE.after else []
    parts += [f"time <= {where.before!r}"] if where.before < EVERYWHERE.before else []
    return " and ".join(parts)


@contextmanager
def named_errors(uri: str) -> Iterator[None]:
    """Turn errors of Milvus into one sentence that names the database."""
    try:
        yield
    except (load_milvus().MilvusException, OSError, UnicodeError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise UserError(f"Milvus at {uri}: {reason}; is the server up, and no other program using the file?") from error
