"""Search pictures by pictures: `python tools/search.py index FOLDER`, then `python tools/search.py ask PICTURE...`.

`index` writes the features of a folder's pictures to an index, `add` and `remove` change it, `ask` prints and draws the
pictures most similar to one. `threshold` finds, on pictures of known people, the similarity from which on two pictures
probably show the same person. Without a command, the gallery of the latest run is indexed and its first query asked.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.config import Folders
from config.options import parse_command
from datasets.base import ReIDDataset
from datasets.make import make_test_set, place, train_names
from datasets.own import refuse_another_split
from processor import FeatureExtractor
from processor.checkpoint import find_checkpoint, results_directory
from tools.gallery.answer import MAX_HITS, Hit, draw_answer, find_thresholds, hit_table, threshold_table
from tools.gallery.index import Index, add, changing, extractor_of, make_index, place_of, read_index, remove
from utils.errors import UserError, run
from utils.logging import log, setup_logging
from utils.roc import count_pairs


@dataclass
class RunOptions:
    checkpoint: str = ""  # a file, a run's directory or name (empty: the one that made the index, or the latest run)
    log_dir: str = "log"  # directory of all runs

    def folder(self, name: str) -> Path:
        """The index of that name; else the one of the run that --checkpoint names; else the latest of all runs."""
        if name or self.checkpoint:
            return Path(name or self.gallery(find_checkpoint(self.checkpoint, self.log_dir)))
        found = sorted(Path(self.log_dir).glob("*/*/index.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"there is no index in {self.log_dir}; make one: python tools/search.py index FOLDER")
        *others, latest = (str(path.parent) for path in found)
        log.info("index %s%s", latest, f", the latest; --index takes the others: {', '.join(others)}" if others else "")
        return Path(latest)

    def gallery(self, checkpoint: Path) -> Path:
        """The usual place of an index made by a model."""
        return results_directory(checkpoint, self.log_dir) / "gallery"


@dataclass
class Options(RunOptions):
    device: str = "auto"  # cpu, cuda, cuda:1, ... (auto: cuda if available, else cpu)
    batch_size: int = 64  # pictures per batch
    workers: int = 4  # number of threads that read and decode pictures
    data_root: str = ""  # directory of the datasets (default: the environment variable REID_DATA, else data)

    def how(self) -> dict[str, Any]:
        """Arguments of FeatureExtractor."""
        return {name: getattr(self, name) for name in ("device", "batch_size", "workers", "log_dir")}


@dataclass
class IndexCommand(Options):
    """Write the features of all pictures of a folder, and of the folders in it, to an index.

    The features of unchanged pictures that an index of the same folder and model has already are kept.
    """

    folder: str = ""  # folder of pictures (empty: the gallery of the dataset that the model is tested on)
    output: str = ""  # folder of the index (empty: gallery in the run's directory)
    engine: Literal["exact", "hnsw"] = "exact"  # exact search, or a graph of neighbours for millions of pictures
    half: bool = False  # compute in float16 on a GPU, in bfloat16 on a CPU
    flip: bool = False  # use the mean of the features of each picture and its mirror image

    def run(self) -> None:
        extractor = FeatureExtractor(self.checkpoint, **self.how(), half=self.half, flip=self.flip)
        places = [self.folder]
        if not self.folder:
            places = [sample.path for sample in test_split(extractor.cfg, "", self.data_root).gallery]
        make_index(extractor, places, self.output or self.gallery(extractor.checkpoint), self.engine)


@dataclass
class AddCommand(Options):
    """Add pictures, or all pictures of folders, to an index; those that changed since replace the old ones."""

    places: tuple[str, ...] = ()  # pictures or folders
    index: str = ""  # folder of the index (empty: the latest one)

    def run(self) -> None:
        with changing(self.folder(self.index)) as index:
            half = index.about["half"]
            add(index, extractor_of(index, self.checkpoint, half=half, **self.how()), self.places)


@dataclass
class RemoveCommand(RunOptions):
    """Remove pictures from an index. The pictures themselves stay where they are."""

    names: tuple[str, ...] = ()  # pictures or folders, as in the index or on the disk
    index: str = ""  # folder of the index (empty: the latest one)

    def run(self) -> None:
        with changing(self.folder(self.index)) as index:
            remove(index, self.names)


@dataclass
class AskCommand(Options):
    """Print and draw the pictures most similar to a picture, or to the mean of several pictures of one person.

    Similarity is the cosine of two features, 1 for the same picture.
    """

    pictures: tuple[str, ...] = ()  # pictures of one person (none: the first query of the test split)
    index: str = ""  # folder of the index (empty: the latest one)
    top: int = 10  # number of most similar pictures shown
    threshold: float = math.nan  # similarity from which on it is the same person (nan: the one stored in the index)
    exact: bool = False  # search exactly, whatever engine the index has
    output: str = ""  # file of the drawing (empty: answer_PICTURE.png next to the index)

    def run(self) -> None:
        if self.top < 1:
            raise UserError(f"--top must be at least 1, not {self.top}")
        folder = self.folder(self.index)
        index = read_index(folder)
        if not len(index):
            raise UserError(f"{folder} is empty; add pictures with python tools/search.py add FOLDER --index {folder}")
        extractor = extractor_of(index, self.checkpoint, **self.how())
        pictures = self.pictures or [test_split(extractor.cfg, "", self.data_root).query[0].path]
        query = F.normalize(extractor(list(pictures)).mean(0, keepdim=True))
        hits, title = find(index, query, self.top, self.threshold, self.exact)
        asked = pictures[0] if len(pictures) == 1 else f"{len(pictures)} pictures, averaged"
        log.info("%s: %s", asked, title)
        log.info(hit_table(hits))
        output = Path(self.output) if self.output else folder.with_name(f"answer_{Path(pictures[0]).stem}.png")
        draw_answer(output, pictures, hits, title)
        log.info("picture%s: %s", f" of the first {MAX_HITS}" if len(hits) > MAX_HITS else "", output)


@dataclass
class ThresholdCommand(Options):
    """Suggest the similarity from which on two pictures show the same person, and store it in the index.

    It is found from the pairs of a query and a gallery picture of a test split, without those of one person under one
    camera: at the equal error rate, as many pairs of one person are refused as pairs of different people are accepted,
    at FPR 1e-3 one pair of different people in a thousand is accepted. It holds for pictures of that kind.
    """

    dataset: str = ""  # a name, or a folder with one folder per identity (empty: the model's own dataset)
    folders: Folders = "auto"  # own pictures: what folders in folders are, the outer one first
    index: str = ""  # folder of the index (empty: the latest one)
    store: Literal["fpr", "eer"] = "fpr"  # the threshold that the index keeps

    def run(self) -> None:
        with changing(self.folder(self.index)) as index:
            extractor = extractor_of(index, self.checkpoint, **self.how())
            split = test_split(extractor.cfg, self.dataset, self.data_root, self.folders)
            sides = (split.query, split.gallery)
            features = [extractor([s.path for s in side]) for side in sides]
            ids = ([getattr(s, name) for s in side] for name in ("pid", "camid") for side in sides)
            try:
                counter = count_pairs(*features, *ids)
                found = find_thresholds(counter)
            except ValueError as error:
                raise UserError(f"{split.name}: {error}, so no threshold can be found; use another set") from error
            log.info("%s", split.name)
            log.info(threshold_table(counter))
            rule, (value, tpr, _) = list(found.items())[self.store == "fpr"]
            stored = {"value": value, "rule": rule, "dataset": split.name, "refused": 1 - tpr}
            index.about["threshold"] = stored
            index.save()
        log.info("%.3f (%s) is stored in %s", value, in_words(stored), index.directory)


KINDS = (IndexCommand, AddCommand, RemoveCommand, AskCommand, ThresholdCommand)
COMMANDS = {kind.__name__.removesuffix("Command").lower(): kind for kind in KINDS}
POSITIONAL = {"index": "folder", "add": "places", "remove": "names", "ask": "pictures", "threshold": "dataset"}


def test_split(trained: Config, name: str, data_root: str, folders: Folders = "auto") -> ReIDDataset:
    """Query and gallery of a dataset that a model of these settings was not trained on; empty: of its own."""
    cfg = trained.replace(test_dataset=name or trained.data.test_dataset, data_root=data_root, test_ids=0)
    if name:
        cfg = cfg.replace(folders=folders)
    if name and place(name) not in map(place, train_names(trained)):
        cfg = cfg.replace(test_share=1.0)  # the model has seen none of these people, so all may be used
    split = make_test_set(cfg)
    refuse_another_split(cfg, trained, split)
    return split


def find(index: Index, query: torch.Tensor, top: int, threshold: float, exact: bool) -> tuple[list[Hit], str]:
    """The hits of a query (1, D), and a title that says how they were found."""
    similarity, rows = (x[0].tolist() for x in index.search(query, top, exact))
    found = [(index.files[row].path, s) for row, s in zip(rows, similarity, strict=True) if row >= 0]
    if not found:
        raise UserError(f"{index.about['engine']['kind']} found nothing in {index.directory}; ask with --exact")
    title = f"{len(found):,} of {len(index):,} pictures, the most similar first"
    if len(found) < min(top, len(index)):
        title += f" ({index.about['engine']['kind']} found no more; ask with --exact)"
    if not index.about["complete"]:
        title += "; the index is not complete, run python tools/search.py index again"
    stored, source = index.about.get("threshold"), "as given"
    if math.isnan(threshold) and stored:
        threshold, source = stored["value"], in_words(stored)
    known, root = not math.isnan(threshold), index.about["root"]
    unknown = "python tools/search.py threshold finds from where on it is the same person"
    title += f"; same person from {threshold:.3f} on ({source})" if known else f"; {unknown}"
    return [Hit(place_of(root, path), path, s, s >= threshold if known else None) for path, s in found], title


def in_words(threshold: dict[str, Any]) -> str:
    """What a stored threshold was found by, and what it costs (indexes of older versions do not know it)."""
    costs = f", refuses {threshold['refused']:.0%} of same-person pairs" if "refused" in threshold else ""
    return f"{threshold['rule']} on {threshold['dataset']}{costs}"


def main(args: Sequence[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    setup_logging()
    for words in [args] if args else [["index"], ["ask"]]:
        options = parse_command(words, COMMANDS, __doc__, POSITIONAL)
        if getattr(options, "data_root", None) == "":
            options.data_root = os.environ.get("REID_DATA") or "data"
        options.run()


if __name__ == "__main__":
    run(main)
