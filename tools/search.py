"""Search pictures by pictures: `python tools/search.py index FOLDER`, then `python tools/search.py ask PICTURE...`.

`index` writes the features of a folder's pictures to a file, `add` and `remove` change it, `ask` prints and draws what
is most similar to a picture. `threshold` finds out, on pictures of known people, from which similarity on two pictures
are likely to show the same. Without a word, the newest run's gallery is indexed and its first query asked.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.base import ReIDDataset
from datasets.folder import place_of
from datasets.make import make_test_set, place, refuse_another_split, train_names
from processor import FeatureExtractor
from processor.checkpoint import find_checkpoint
from processor.gallery import Gallery, check_model, extractor_of, read_gallery, write_gallery, writing
from processor.indexing import add, index, remove
from tools.search_answer import MOST_DRAWN, Hit, draw_answer, hit_table, threshold_table
from utils.errors import UserError, run
from utils.logging import log, setup_logging
from utils.threshold import count_pairs

FPR = 1e-3
DATA_ROOT = os.environ.get("REID_DATA") or "data"


@dataclass
class Options:
    checkpoint: str = ""  # a file, a run's directory or name; empty: what made the index, or else the newest run
    log_dir: str = "log"  # directory that holds all runs
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda where there is one, else cpu
    batch_size: int = 64  # pictures at a time
    workers: int = 4  # threads that read and decode pictures

    def how(self) -> dict:
        return {name: getattr(self, name) for name in ("device", "batch_size", "workers", "log_dir")}

    def file(self, name: str) -> Path:
        """The index of that name, or gallery.idx in the run's directory."""
        return Path(name) if name else find_checkpoint(self.checkpoint, self.log_dir).parent / "gallery.idx"


@dataclass
class Index(Options):
    """Write the features of all pictures of a folder, and of the folders in it, to a file.

    What an older file of the same folder and model has of unchanged pictures is kept.
    """

    folder: tyro.conf.Positional[str] = ""  # empty: the gallery of the dataset that the model is tested on
    output: str = ""  # file of the index; empty: gallery.idx in the run's directory
    engine: Literal["exact", "flat", "ivf", "hnsw"] = "exact"  # what searches: this program, or FAISS for millions
    half: bool = False  # compute in float16 on a GPU, in bfloat16 on a CPU
    flip: bool = False  # the mean of each picture's and its mirror image's feature
    data_root: str = DATA_ROOT  # directory that holds the datasets

    def run(self) -> None:
        extractor = FeatureExtractor(self.checkpoint, **self.how(), half=self.half, flip=self.flip)
        places = [self.folder]
        if not self.folder:
            places = [s.path for s in test_split(extractor.cfg, "", self.data_root).gallery]
        index(extractor, places, self.output or extractor.checkpoint.parent / "gallery.idx", self.engine)


@dataclass
class Add(Options):
    """Add pictures, or all pictures of folders, to an index; those that changed since are replaced."""

    places: tyro.conf.Positional[tuple[str, ...]] = tyro.MISSING  # pictures or folders
    index: str = ""  # file of the index; empty: gallery.idx in the run's directory

    def run(self) -> None:
        file = self.file(self.index)
        gallery = read_gallery(file)
        add(extractor_of(file, gallery, self.checkpoint, **self.how(), half=gallery.about["half"]), self.places, file)


@dataclass
class Remove:
    """Take pictures out of an index. The pictures themselves stay where they are."""

    names: tyro.conf.Positional[tuple[str, ...]]  # pictures or folders, as in the index or on the disk
    index: str = ""  # file of the index; empty: gallery.idx in the directory of the newest run
    log_dir: str = "log"  # directory that holds all runs

    def run(self) -> None:
        remove(self.names, Options(log_dir=self.log_dir).file(self.index))


@dataclass
class Ask(Options):
    """Print and draw what is most similar to a picture.

    Several pictures are taken to be of one person: the mean of their features, made a feature of length 1 again, is the
    query. Similarity is the cosine of two features, 1 for the same picture.
    """

    pictures: tyro.conf.Positional[tuple[str, ...]] = ()  # of one person; none: the first query of the test split
    index: str = ""  # file of the index; empty: gallery.idx in the run's directory
    top: int = 10  # how many of the most similar are shown
    threshold: float | None = None  # similarity from which on two pictures count as of one person; none: the index's
    exact: bool = False  # search exactly, whatever engine the index was made with
    output: str = ""  # file of the picture; empty: answer_PICTURE.png beside the index
    data_root: str = DATA_ROOT  # directory that holds the datasets

    def run(self) -> None:
        if self.top < 1:
            raise UserError(f"--top must be at least 1, not {self.top}")
        file = self.file(self.index)
        gallery = read_gallery(file, engine=not self.exact)
        if not len(gallery):
            raise UserError(f"{file} is empty; add pictures with python tools/search.py add FOLDER --index {file}")
        extractor = extractor_of(file, gallery, self.checkpoint, **self.how())
        pictures = self.pictures or [test_split(extractor.cfg, "", self.data_root).query[0].path]
        query = F.normalize(extractor(list(pictures)).mean(0, keepdim=True))
        try:
            hits, words = find(gallery, query, self.top, self.threshold)
        except ValueError as error:
            raise UserError(f"{file} cannot be searched: {error}") from error
        asked = pictures[0] if len(pictures) == 1 else f"{len(pictures)} pictures, averaged"
        log.info("%s: %s\n%s", asked, words, hit_table(hits))
        output = Path(self.output) if self.output else file.with_name(f"answer_{Path(pictures[0]).stem}.png")
        draw_answer(output, pictures, hits, words)
        log.info("picture%s: %s", f" of the first {MOST_DRAWN}" if len(hits) > MOST_DRAWN else "", output)


def find(gallery: Gallery, query, top: int, threshold: float | None) -> tuple[list[Hit], str]:
    """The hits of a query (1, D), and what is to be known of them."""
    similarity, rows = (x[0].tolist() for x in gallery.search(query, top))
    stored = gallery.about.get("threshold")
    words = f"{min(top, len(gallery)):,} of {len(gallery):,} pictures, the most similar first"
    if threshold is not None:
        words += f"; same person from {threshold:.3f} on, as asked for"
    elif stored:
        threshold = stored["value"]
        words += f"; same person from {threshold:.3f} on ({stored['rule']} on {stored['dataset']})"
    else:
        words += "; python tools/search.py threshold tells from where on it is the same person"
    root = gallery.about["root"]
    found = [(str(gallery.paths[row]), s) for row, s in zip(rows, similarity, strict=True) if row >= 0]
    if not found:
        raise UserError(f"{gallery.about['engine']['kind']} found nothing; ask with --exact")
    if len(found) < min(top, len(gallery)):
        words += f"; {gallery.about['engine']['kind']} found only {len(found)}"
    return [
        Hit(place_of(root, path), path, s, None if threshold is None else s >= threshold) for path, s in found
    ], words


@dataclass
class Threshold(Options):
    """Suggest from which similarity on two pictures show the same person, and store it in the index.

    Counted are the pairs of a query and a gallery picture of a test split, those of one person under one camera left
    out: at the equal error rate as many pairs of one person are refused as pairs of different people are accepted, at
    FPR 1e-3 one pair of different people in a thousand is accepted. It holds for pictures of that kind.
    """

    dataset: tyro.conf.Positional[str] = ""  # a name, or a folder with one an identity; empty: the model's own
    index: str = ""  # file of the index; empty: gallery.idx in the run's directory
    store: Literal["fpr", "eer"] = "fpr"  # which of the two the index keeps
    data_root: str = DATA_ROOT  # directory that holds the datasets

    def run(self) -> None:
        file = self.file(self.index)
        extractor = extractor_of(file, read_gallery(file), self.checkpoint, **self.how())
        split = test_split(extractor.cfg, self.dataset, self.data_root)
        sides = (split.query, split.gallery)
        features = [extractor([s.path for s in side]) for side in sides]
        ids = ([getattr(s, name) for s in side] for name in ("pid", "camid") for side in sides)
        try:
            counts = count_pairs(*features, *ids)
        except ValueError as error:
            raise UserError(f"{split.name}: {error}, so no threshold can be found; take another set") from error
        found = {"equal error rate": counts.equal_error(), f"FPR {FPR:g}": counts.at_fpr(FPR)}
        log.info("%s\n%s", split.name, threshold_table(counts, found))
        rule = list(found)[self.store == "fpr"]
        with writing(file):
            gallery = read_gallery(file)  # again: another program may have written it meanwhile
            check_model(file, gallery, extractor)
            gallery.about["threshold"] = {"value": found[rule].threshold, "rule": rule, "dataset": split.name}
            write_gallery(file, gallery)
        log.info("%.3f (%s) is stored in %s", found[rule].threshold, rule, file)


def test_split(trained: Config, name: str, data_root: str) -> ReIDDataset:
    """Query and gallery of a dataset that a model of these settings was not trained on; empty: of its own."""
    cfg = trained.replace(test_dataset=name or trained.data.test_dataset, data_root=data_root, test_ids=0)
    if name and place(name) not in map(place, train_names(trained)):
        cfg = cfg.replace(test_share=1.0)  # of people whom the model has not seen, all may be used
    split = make_test_set(cfg)
    refuse_another_split(cfg, trained, split)
    return split


def main() -> None:
    commands = {"index": Index, "add": Add, "remove": Remove, "ask": Ask, "threshold": Threshold}
    setup_logging()
    if len(sys.argv) > 1:
        return tyro.extras.subcommand_cli_from_dict(commands, description=__doc__).run()
    Index().run()
    Ask().run()


if __name__ == "__main__":
    run(main)
