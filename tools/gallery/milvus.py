"""An index in Milvus: Milvus Lite, a database in a file, or a server or cluster.

The index's folder then holds index.json only, with the model and the place of the database; the entries are in a
collection whose name follows from the model and the folder of pictures, so that machines with the same folder share it.
An entry's key is a digest of its path: whatever stops a program, an entry that is written twice is there once.
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

BLOCK = 1000  # entries written or asked for at a time
READ = 16384  # entries read at a time, the most that Milvus gives
LONGEST = 65535  # bytes of a path, Milvus's limit
CANDIDATES = 64  # entries that a search of the graph keeps
LINKS = {"M": 32, "efConstruction": 40}  # of the graph, as in FAISS


class MilvusIndex(Index):
    """As `Index`, with the entries in Milvus. Its `files` and `ids` are empty, and only `about` needs to be saved."""

    @cached_property
    def client(self) -> Any:
        """Raises UserError where the library is missing or the database cannot be opened."""
        uri, milvus = self.about["uri"], load_milvus(lite="://" not in self.about["uri"])
        with named_errors(uri):
            client = milvus.MilvusClient(uri=uri, timeout=30)
            if not client.has_collection(self.collection):
                self._create(client)
            client.load_collection(self.collection)
        return client

    @property
    def collection(self) -> str:
        """Its name."""
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

    def __len__(self) -> int:
        with named_errors(self.about["uri"]):
            return self.client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def find(
        self, query: torch.Tensor, k: int, exact: bool = False, where: Where = EVERYWHERE
    ) -> list[tuple[float, File]]:
        if exact:
            raise UserError(
                "milvus searches by its own graph; --exact is for the other engines, so index again with one"
            )
        with named_errors(self.about["uri"]):
            options = {"metric_type": "IP", "params": {"ef": max(CANDIDATES, 2 * k)}}
            (hits,) = self.client.search(
                self.collection, data=query.numpy(), limit=k, filter=expression(where), search_params=options,
                output_fields=list(File._fields),
            )  # fmt: skip
        return [(hit["distance"], as_file(hit["entity"])) for hit in hits]

    def entries(self) -> Iterator[File]:
        """All of them."""
        with named_errors(self.about["uri"]):
            rows = self.client.query_iterator(self.collection, batch_size=READ, output_fields=list(File._fields))
            while block := rows.next():
                yield from map(as_file, block)
            rows.close()

    def missing(self, files: Sequence[File]) -> list[File]:
        with named_errors(self.about["uri"]):
            known = set()
            for start in range(0, len(files), BLOCK):
                keys = [key_of(file.path) for file in files[start : start + BLOCK]]
                known |= set(map(as_file, self.client.get(self.collection, keys, output_fields=list(File._fields))))
        return [file for file in files if file not in known]

    def append(self, files: Sequence[File], features: np.ndarray) -> None:
        with named_errors(self.about["uri"]):
            for start in range(0, len(files), BLOCK):
                rows = zip(files[start : start + BLOCK], features[start : start + BLOCK], strict=True)
                data = [{"key": key_of(file.path), **file._asdict(), "vector": row} for file, row in rows]
                self.client.upsert(self.collection, data)

    def finish(self, wanted: Sequence[File] | None = None) -> None:
        if wanted is not None:
            kept = set(wanted)
            self.drop_paths({file.path for file in self.entries() if file not in kept})

    def paths(self) -> list[str]:
        return sorted(file.path for file in self.entries())

    def drop_paths(self, paths: Set[str]) -> None:
        with named_errors(self.about["uri"]):
            keys = [key_of(path) for path in paths]
            for start in range(0, len(keys), BLOCK):
                self.client.delete(self.collection, ids=keys[start : start + BLOCK])


def load_milvus(lite: bool = False) -> Any:
    """The library. lite: with what opens a file. Raises UserError if it is not installed."""
    try:
        import pymilvus

        if lite:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise UserError("--engine milvus needs Milvus: pip install pymilvus milvus-lite (or use exact)") from error
    logging.getLogger("pymilvus").setLevel(logging.ERROR)  # warns of each list of entries
    return pymilvus


def key_of(path: str) -> str:
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]


def as_file(row: dict[str, Any]) -> File:
    return File(*(row[name] for name in File._fields))


def expression(where: Where) -> str:
    """A filter of Milvus."""
    parts = [f"camera == {json.dumps(where.camera, ensure_ascii=False)}"] if where.camera else []
    parts += [f"time >= {where.after!r}"] if where.after > EVERYWHERE.after else []
    parts += [f"time <= {where.before!r}"] if where.before < EVERYWHERE.before else []
    return " and ".join(parts)


@contextmanager
def named_errors(uri: str) -> Iterator[None]:
    """What Milvus raises becomes one sentence that names the database."""
    try:
        yield
    except (load_milvus().MilvusException, OSError, UnicodeError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise UserError(f"Milvus at {uri}: {reason}; is the server up, and no other program using the file?") from error
