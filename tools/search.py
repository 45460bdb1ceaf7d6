"""Find similar pictures: `python tools/search.py index FOLDER`, then `python tools/search.py ask PICTURE...`.

`index` writes the features of a folder's pictures to an index, `add` and `remove` change it, and `ask` prints and draws
the pictures most similar to a given one. `threshold` uses pictures of known people to find which similarity means the
same person, and how often that is wrong; then `compare A B` says whether two pictures show the same person. A folder
instead of a picture is a tracklet: pictures of one person. Without a command, the program indexes the gallery of the
latest run and runs `ask` with its first query.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.config import Folders
from config.options import parse_command
from datasets.base import ReIDDataset
from datasets.folder import list_pictures
from datasets.make import make_test_set, place, train_names
from datasets.own import refuse_another_split
from processor import FeatureExtractor
from processor.checkpoint import find_checkpoint, results_directory
from tools.gallery.answer import MAX_HITS, Hit, draw_answer, hit_table
from tools.gallery.index import (
    EVERYWHERE,
    Index,
    Where,
    add,
    changing,
    extractor_of,
    make_index,
    place_of,
    read_index,
    remove,
    seconds,
)
from tools.gallery.threshold import Thresholds, find_thresholds, pool_tracklets, threshold_table
from utils.errors import UserError, run
from utils.logging import log, setup_logging


@dataclass
class RunOptions:
    checkpoint: str = ""  # a file, a run's directory or name (empty: the one that made the index, or the latest run)
    log_dir: str = "log"  # directory of all runs

    def folder(self, name: str) -> Path:
        """Return the index of that name; else the index of the run of --checkpoint; else the latest of all runs."""
        if name or self.checkpoint:
            return Path(name or self.gallery(find_checkpoint(self.checkpoint, self.log_dir)))
        found = sorted(Path(self.log_dir).glob("*/*/index.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"there is no index in {self.log_dir}; make one: python tools/search.py index FOLDER")
        *others, latest = (str(path.parent) for path in found)
        log.info("index %s%s", latest, f", the latest; others, for --index: {', '.join(others)}" if others else "")
        return Path(latest)

    def gallery(self, checkpoint: Path) -> Path:
        """Return the usual folder of an index made by a model."""
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
    """Write the features of all pictures in a folder and its subfolders to an index.

    If the index has the same folder and model, features of unchanged pictures are kept. A CSV has a
    column path, and may have pid, camid, time, and track: pictures of one pid, camid and track are one tracklet.
    """

    folder: str = ""  # folder of pictures, or a CSV (empty: the gallery of the dataset that the model is tested on)
    output: str = ""  # folder of the index (empty: gallery in the run's directory)
    tracklets: bool = False  # the pictures of each folder are one tracklet, an entry with their mean feature
    engine: Literal["exact", "hnsw", "milvus"] = "exact"  # exact search, a graph of neighbors, or a database
    uri: str = ""  # milvus: a file, or a server like http://host:19530 (empty: a file next to the index)
    half: bool = False  # compute in float16 on a GPU, in bfloat16 on a CPU
    flip: bool = False  # use the mean of the features of each picture and its mirror image

    def run(self) -> None:
        extractor = FeatureExtractor(self.checkpoint, **self.how(), half=self.half, flip=self.flip)
        places = [self.folder]
        if not self.folder:
            places = [sample.path for sample in test_split(extractor.cfg, "", self.data_root).gallery]
        output = Path(self.output or self.gallery(extractor.checkpoint))
        uri = self.uri or str(output.with_suffix(".db"))
        make_index(
            extractor, places, output, self.engine, uri if "://" in uri else os.path.abspath(uri), self.tracklets
        )


@dataclass
class AddCommand(Options):
    """Add pictures, or all pictures of folders, to an index; changed pictures replace the old ones."""

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

    Similarity is the cosine of two features, 1 for the same picture. With a threshold, the answer is the person of the
    first hit, or unknown.
    """

    pictures: tuple[str, ...] = ()  # pictures of one person, or folders of them (none: the test split's first query)
    index: str = ""  # folder of the index (empty: the latest one)
    top: int = 10  # number of most similar pictures shown
    camera: str = ""  # search pictures of this camera only: its name in a CSV, or the number after _c in a file name
    after: str = ""  # search pictures from this time on (2026-01-31T12:00): of the CSV, else of the file
    before: str = ""  # search pictures up to this time
    threshold: float = math.nan  # similarity from which on it is the same person (nan: those stored in the index)
    exact: bool = False  # search exactly, whatever engine the index has
    output: str = ""  # file of the drawing (empty: answer_PICTURE.png next to the index)

    def run(self) -> None:
        if self.top < 1:
            raise UserError(f"--top must be at least 1, not {self.top}")
        after = seconds(self.after, "--after") if self.after else -math.inf
        before = seconds(self.before, "--before") if self.before else math.inf
        folder = self.folder(self.index)
        index = read_index(folder)
        if not len(index):
            raise UserError(f"{folder} is empty; add pictures with python tools/search.py add FOLDER --index {folder}")
        extractor = extractor_of(index, self.checkpoint, **self.how())
        asked = self.pictures or [test_split(extractor.cfg, "", self.data_root).query[0].path]
        pictures = [str(path) for place in asked for path in list_pictures(place)]
        query = F.normalize(extractor(pictures).mean(0, keepdim=True))
        known = thresholds_of(index, self.threshold)
        hits, title = find(index, query, self.top, known, self.exact, Where(self.camera, after, before))
        log.info("%s: %s", asked[0] if len(pictures) == 1 else f"{len(pictures)} pictures, averaged", title)
        log.info(hit_table(hits))
        if known:
            answer = "same" if hits[0].answer == "same" else "unknown"
            person = f"the person of {hits[0].name}" if answer == "same" else "unknown"
            log.info("answer: %s; similarity %.3f, %s", person, hits[0].similarity, known.reason(answer, search=True))
            if 0 < known.gallery < len(index):
                log.info(
                    "that holds for a gallery of %d; in one of %d, more strangers are named", known.gallery, len(index)
                )
        output = Path(self.output) if self.output else folder.with_name(f"answer_{Path(asked[0]).stem}.png")
        draw_answer(output, pictures, hits, title)
        log.info("picture%s: %s", f" of the first {MAX_HITS}" if len(hits) > MAX_HITS else "", output)


@dataclass
class CompareCommand(Options):
    """Say whether two pictures, or two folders of pictures, show the same person: same, different or unknown.

    It uses the model and the thresholds of an index.
    """

    pictures: tuple[str, ...] = ()  # two pictures, or two folders with pictures of one person each
    index: str = ""  # folder of the index (empty: the latest one)
    threshold: float = math.nan  # similarity from which on it is the same person (nan: those stored in the index)

    def run(self) -> None:
        if len(self.pictures) != 2:
            raise UserError(f"compare takes two pictures, or two folders of pictures, not {len(self.pictures)}")
        index = read_index(self.folder(self.index))
        extractor = extractor_of(index, self.checkpoint, **self.how())
        sides = [list_pictures(place) for place in self.pictures]
        first, second = (F.normalize(extractor(side).mean(0), dim=0) for side in sides)
        tracklets = all(os.path.isdir(place) for place in self.pictures)
        similarity, known = float(first @ second), thresholds_of(index, self.threshold, tracklets)
        if known is None:
            log.info("similarity %.3f; %s", similarity, UNKNOWN)
        else:
            answer = known.answer(similarity)
            log.info("%s: similarity %.3f, %s", answer, similarity, known.reason(answer))


@dataclass
class ThresholdCommand(Options):
    """Find which similarity means the same person, and how often that is wrong, and store it in the index.

    It uses all pairs of a query and a gallery picture of a test split, except pairs of one person under one camera.
    From `same` on, few pairs of different people are accepted (FMR, false match rate); below `different`, few
    pairs of one person are refused; between the two the answer is unknown. A search compares with a whole gallery, so
    it names a person from a higher similarity on, at which few people who are not in the gallery are named (FPIR). All
    of this holds for similar pictures. If tracklets are known (a CSV with a column track, folders of cameras), their
    rates are shown next to those of pictures.
    """

    dataset: str = ""  # a name, or a folder with one folder per identity (empty: the model's own dataset)
    folders: Folders = "auto"  # own pictures: meaning of nested folders, the outer folder first
    index: str = ""  # folder of the index (empty: the latest one)
    store: Literal["fpr", "eer"] = "fpr"  # thresholds by the rates below, or one at the equal error rate
    fmr: float = 0  # share of pairs of different people accepted (0: 0.001, or the least that the pairs can show)
    fnmr: float = 0  # share of pairs of one person called different (0: 0.01, or the least that the pairs can show)
    fpir: float = 0  # share of unknown people whom a search names (0: 0.05, or the least that the queries can show)

    def run(self) -> None:
        with changing(self.folder(self.index)) as index:
            extractor = extractor_of(index, self.checkpoint, **self.how())
            split = test_split(extractor.cfg, self.dataset, self.data_root, self.folders)
            sides = (split.query, split.gallery)
            features = [extractor([s.path for s in side]) for side in sides]
            ids = [[getattr(s, name) for s in side] for name in ("pid", "camid") for side in sides]
            kinds = {"pictures": (*features, *ids)}
            if split.tracks:
                kinds["tracklets"] = pool_tracklets(features, sides, split)
            rates = {"fmr": self.fmr, "fnmr": self.fnmr, "fpir": self.fpir, "equal": self.store == "eer"}
            found = {}
            for kind, data in kinds.items():
                try:
                    found[kind] = find_thresholds(*data, source=f"{kind} of {split.name}", **rates)
                except ValueError as error:
                    if not found:
                        raise UserError(
                            f"{split.name}: {error}, so no threshold can be found; use another dataset"
                        ) from error
                    log.warning("warning: no threshold for tracklets, because among them %s", error)
            log.info("%s", split.name)
            log.info(threshold_table(found, split.camera_of))
            index.about["threshold"] = {kind: asdict(thresholds) for kind, thresholds in found.items()}
            index.save()
        log.info("stored in %s", index.directory)


KINDS = (IndexCommand, AddCommand, RemoveCommand, AskCommand, CompareCommand, ThresholdCommand)
COMMANDS = {kind.__name__.removesuffix("Command").lower(): kind for kind in KINDS}
POSITIONAL = {"index": "folder", "add": "places", "remove": "names", "ask": "pictures", "compare": "pictures"}
POSITIONAL |= {"threshold": "dataset"}
UNKNOWN = "python tools/search.py threshold finds which similarity means the same person"


def test_split(trained: Config, name: str, data_root: str, folders: Folders = "auto") -> ReIDDataset:
    """Return query and gallery of a dataset on which the model was not trained; without a name, of its own."""
    cfg = trained.replace(test_dataset=name or trained.data.test_dataset, data_root=data_root, test_ids=0)
    if name:
        cfg = cfg.replace(folders=folders)
    if name and place(name) not in map(place, train_names(trained)):
        cfg = cfg.replace(test_share=1.0)  # the model has seen none of these people, so all may be used
    split = make_test_set(cfg)
    refuse_another_split(cfg, trained, split)
    return split


def find(
    index: Index, query: torch.Tensor, top: int, known: Thresholds | None, exact: bool, where: Where = EVERYWHERE
) -> tuple[list[Hit], str]:
    """Return the hits of a query (1, D), and a title that says how they were found."""
    found = index.find(query, top, exact, where)
    kind = index.about.get("engine", {}).get("kind", "exact")
    if not found and where != EVERYWHERE:
        raise UserError(f"{index.directory} has no picture that matches --camera, --after and --before")
    if not found:
        raise UserError(f"{kind} found nothing in {index.directory}; ask with --exact")
    title = f"{len(found):,} of {len(index):,} pictures, the most similar first"
    if len(found) < min(top, len(index)) and where == EVERYWHERE:
        title += f" ({kind} found no more; ask with --exact)"
    if not index.about["complete"]:
        title += "; the index is not complete, run python tools/search.py index again"
    title += f"; same person from {known.search:.3f} on ({known.source})" if known else f"; {UNKNOWN}"
    root, hits = index.about["root"], []
    for cosine, file in found:
        answer = known.answer(cosine, search=True) if known else ""
        hits.append(Hit(place_of(root, file.picture or file.path), file.path, cosine, answer))
    return hits, title


def thresholds_of(index: Index, given: float, tracklets: bool | None = None) -> Thresholds | None:
    """Return the given threshold, or those in the index for tracklets or pictures (None: whichever it holds)."""
    if not math.isnan(given):
        return Thresholds(given, given, given, "as given")
    stored = index.about.get("threshold")
    if not stored:
        return None
    if "value" in stored:  # from an older version, which had one threshold
        return Thresholds(*[stored["value"]] * 3, f"{stored['rule']} on {stored['dataset']}")
    tracklets = index.about.get("tracklets", False) if tracklets is None else tracklets
    return Thresholds(**stored.get("tracklets" if tracklets else "pictures", stored["pictures"]))


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
