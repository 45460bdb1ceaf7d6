"""Steps of the architecture search: options, the supernet with its limits, trainings that resume, scores."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from config import Config, load_preset
from config.cli import parse_settings, split_first, typed_command
from config.config import DataSettings, option
from datasets.loaders import TestLoader, TrainLoader
from datasets.make import make_dataset
from model import ReIDModel
from model.backbones.searchable import Spec, multiply_adds, self_contained
from processor.checkpoint import LAST, load_model
from processor.environment import describe_environment, pick_device
from processor.evaluate import extract_features
from processor.resume import FREE_SETTINGS
from processor.train import do_train
from tools.light.evolution import Candidate, Limits, Scores, search_each_size
from tools.light.latency import LatencyTable
from tools.light.space import SPACES, Space, mobilenet_v2
from utils.errors import UserError
from utils.files import write_atomically
from utils.logging import log, setup_logging
from utils.metrics import evaluate

SpaceName = Literal["auto", "mobilenet_v2", "mlr"]
RANGES = {
    "least_share": "[0, 1]", "max_latency": "[0, inf)", "latency_batch": "[1, inf)", "supernet_epochs": "[0, inf)",
    "candidates": "[0, inf)", "at_random": "[0, inf)", "retrain": "[0, inf)", "check_ranking": "[0, inf)",
    "ranking_seeds": "[1, inf)", "check_latency": "[0, inf)",
}  # fmt: skip
# Gradient norm of the supernet. Each step trains another network; without clipping, one SGD step in hundreds was so
# large that everything learned so far was lost.
CLIP_GRAD = 5.0
CALIBRATION = 8  # batches from which a candidate's batch norm statistics are computed


@dataclass
class Options:
    space: SpaceName = "auto"  # networks to choose among (auto: mlr with the presets light_...)
    max_flops: str = ""  # multiply-adds per image, such as 210M: the most, in mlr ± 2 % (empty: MobileNetV2 1.0's)
    least_share: float = 0.0  # smallest share of these multiply-adds that a network has (0: any; mlr: 0.98)
    max_latency: float = 0.0  # largest latency on --device in ms, of a batch of --latency-batch images (0: no limit)
    latency_batch: int = 1  # images per batch of --max-latency
    alone: bool = False  # score each network by training it alone, without a supernet, as in mlr
    supernet_epochs: int = 0  # epochs of the supernet (0: four times those of the preset)
    candidates: int = 0  # number of networks to score, equally many for each image size (0: 200; mlr: 32)
    at_random: int = 0  # number of random networks among these, before the evolution starts (0: 60; mlr: 16)
    finals: bool = True  # choose among the best of each image size by training each alone, not by shared weights
    against_random: bool = False  # also search among random networks only, and retrain their best
    retrain: int = 0  # number of seeds with which the winner and the references are trained and tested
    check_ranking: int = 0  # only check how well the supernet ranks this many random networks, by training each alone
    ranking_seeds: int = 1  # trainings of each network in that check
    check_latency: int = 0  # only check how well sums of blocks rank the latencies of this many random networks
    references: tuple[str, ...] = ("mobilenet_v2",)  # backbones that are retrained next to the winner


def parse_search(about: str, environ: Mapping[str, str]) -> tuple[Config, Options]:
    """`[PRESET] [--setting value ...]` to checked settings and options. Raises UserError."""
    preset, args = split_first(None)
    cfg, options = parse_settings(args, load_preset(preset or "demo"), environ, about, Options, RANGES)
    if found := cfg.model.backbone.startswith("searched:"):  # its image size is the one of the network that was found
        usual = {name: getattr(DataSettings, name) for name in ("height", "width")}
        cfg = cfg.replace(**{name: value for name, value in usual.items() if name not in cfg.typed})
    if options.space == "auto":
        options.space = "mlr" if found else "mobilenet_v2"
    options.candidates = options.candidates or (32 if options.space == "mlr" else 200)
    options.at_random = options.at_random or (16 if options.space == "mlr" else 60)
    if options.max_flops and not parse_flops(options.max_flops) > 0:
        raise UserError(f"--max-flops takes a number such as 210M or 1.2G, not {options.max_flops}")
    if options.at_random > options.candidates:
        raise UserError(f"--at-random {options.at_random} must be at most --candidates {options.candidates}")
    return cfg.replace(holdout_ids=cfg.data.holdout_ids or 20), options


def parse_flops(text: str) -> float:
    """210M to 210e6; 0 if it is not a number."""
    try:
        return float(text.lower().translate({ord("k"): "e3", ord("m"): "e6", ord("g"): "e9"}))
    except ValueError:
        return 0.0


@dataclass
class Search:
    """A space, the scores of its networks, and the limits of their costs."""

    cfg: Config
    directory: Path
    space: Space
    score: Scores
    scored: str  # how: "with shared weights", or "trained alone"
    table: LatencyTable | None
    limits: Limits

    def run(self, count: int, at_random: int) -> list[Candidate]:
        """Score `count` networks, of which `at_random` are random; best first."""
        with tqdm(total=count, unit="network", leave=False, dynamic_ncols=True) as bar:

            def score(spec: Spec) -> float:
                bar.update()
                return self.score(spec)

            return search_each_size(self.space, self.limits, score, self.cfg.run.seed, count, at_random)

    def train_each(self, candidates: Sequence[Candidate], seed: int) -> list[float]:
        """The score of each network when trained alone."""
        scores = []
        for number, c in enumerate(candidates, 1):
            scores.append(train_alone(self.cfg.replace(seed=seed), self.directory, c.spec))
            log.info(
                "%d of %d, %.1f M multiply-adds: mAP %.2f %s, %.2f trained alone",
                number, len(candidates), c.costs[0] / 1e6, c.mAP, self.scored, scores[-1],
            )  # fmt: skip
        return scores


def open_search(cfg: Config, options: Options) -> Search:
    """Return the space and the scores of its networks: by a supernet, which is trained first if it is new, or with
    --alone and in the space mlr, as its authors do, by training each network alone."""
    directory = Path(cfg.run.log_dir) / (cfg.run.name or f"search_{cfg.run.preset}")
    device, size = pick_device(cfg.run.device), (cfg.data.height, cfg.data.width)
    reference = multiply_adds(mobilenet_v2(*size), SPACES[options.space].norms)
    budget = parse_flops(options.max_flops or "0") or reference
    space = Space(*size, budget, options.space)
    space.least = max(space.least, options.least_share * budget)
    limits, table = [(space.cost, space.most)], None
    if options.max_latency:
        hardware = describe_environment(device)["hardware"]
        table = LatencyTable(directory / "latency.json", device, hardware, options.latency_batch)
        limits.append((table.total, options.max_latency / 1e3))
    if options.alone or options.space == "mlr":
        directory.mkdir(parents=True, exist_ok=True)
        setup_logging(directory / "search.log")
        score = Scores(directory / "alone.jsonl", lambda spec: train_alone(cfg, directory, spec))
        return Search(cfg, directory, space, score, "trained alone", table, limits)
    epochs = options.supernet_epochs or 4 * cfg.solver.epochs
    steps = tuple(step * epochs / cfg.solver.epochs for step in cfg.solver.steps)
    supernet = use_heldout_as_test(cfg.replace(flip=False, rerank=False, epochs=epochs, steps=steps), directory)
    changes = {"backbone": f"supernet:{int(space.most)}", "last_stride": 1}
    changes["clip_grad"] = cfg.solver.clip_grad or CLIP_GRAD
    changes["deterministic"] = True  # without cuDNN's autotuning, which would run at each step, as networks differ
    train_network(supernet, directory, "supernet", **changes)
    setup_logging(directory / "search.log")
    model, trained = load_model(directory / "supernet" / LAST, device)
    trained = trained.replace(data_root=cfg.data.data_root, workers=cfg.data.workers)
    score = Scores(directory / "supernet" / "candidates.jsonl", Scorer(trained, model, device))
    return Search(cfg, directory, space, score, "with shared weights", table, limits)


def train_alone(cfg: Config, directory: Path, spec: Spec) -> float:
    """mAP in percent of a network when trained alone, on the identities held out from the training."""
    heldout = use_heldout_as_test(cfg, directory)
    result = train_network(heldout, directory, f"alone-{spec_id(spec)}-s{cfg.run.seed}", spec)
    setup_logging(directory / "search.log")
    return result["scores"]["plain"]["mAP"]


def train_network(cfg: Config, directory: Path, name: str, spec: Spec | None = None, **changes) -> dict:
    """Return the result of training a specification, or a backbone in `changes`, from scratch.

    A finished run of that name is read, a stopped one resumed. Raises UserError if it had other settings.
    """
    if spec:
        backbone = self_contained("searched:" + json.dumps(spec.to_dict()))
        changes |= {"backbone": backbone, "height": spec.height, "width": spec.width, "last_stride": spec.last_stride}
    changes |= {"weights": "none", "log_dir": str(directory), "name": name, "eval_first": False}
    cfg, run = cfg.replace(**changes, eval_every=cfg.solver.epochs).check(), directory / name
    if (run / "config.json").exists():
        before = Config.from_dict(json.loads((run / "config.json").read_text()))
        for changed in (n for n in before.to_dict() if n not in FREE_SETTINGS and before.get(n) != cfg.get(n)):
            raise UserError(
                f"{run} was trained with another {option(changed)} ({before.get(changed)}, not {cfg.get(changed)}); "
                "give another --name, or delete it"
            )
    if not (run / "results" / "train.json").exists():
        do_train(cfg.replace(resume=True), command=typed_command())
    return json.loads((run / "results" / "train.json").read_text())


def spec_id(spec: Spec) -> str:
    """A short name for the files of a network."""
    return hashlib.sha256(repr(spec).encode()).hexdigest()[:8]


def usual_last_stride(backbone: str) -> int:
    """Return the last stride of the backbone's authors; OSNet has only 1."""
    return 1 if backbone.startswith("osnet") else 2


# ---- scores of parts of a supernet, on training identities that it was not trained on; no test image is read


def use_heldout_as_test(cfg: Config, directory: Path) -> Config:
    """The settings with a dataset whose test split is the held-out training identities.

    The dataset is a CSV file in `directory` that lists no image of the real test split, so none can be read with these
    settings. Its name depends on its contents. Raises UserError without --holdout-ids.
    """
    if not cfg.data.holdout_ids:
        raise UserError("networks are scored on identities held out from training; give --holdout-ids 20")
    dataset, text = make_dataset(cfg), io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("path", "pid", "split") + ("camid",) * dataset.cameras)
    for split, samples in (("train", dataset.train), ("test", dataset.heldout)):
        for s in samples:
            rows.writerow((Path(s.path).absolute(), s.pid, split) + (s.camid,) * dataset.cameras)
    content = text.getvalue().encode(errors="surrogateescape")
    file = directory.absolute() / f"people-{hashlib.sha256(content).hexdigest()[:8]}.csv"
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    cfg = cfg.replace(dataset=str(file), test_dataset="", protocol="auto")
    return cfg.replace(holdout_ids=0, train_ids=0, test_ids=0)


class Scorer:
    """mAP in percent of parts of a supernet on the test split of the settings.

    Batch norm statistics are computed for each part, on the same training batches without augmentation.
    """

    def __init__(self, cfg: Config, model: ReIDModel, device: torch.device):
        self.cfg, self.model, self.device = cfg, model, device
        dataset = make_dataset(cfg)
        self.query, self.gallery = TestLoader(cfg, dataset.query, "query"), TestLoader(cfg, dataset.gallery, "gallery")
        plain = cfg.replace(pad=0, **{name: 0.0 for name in cfg.to_dict() if name.endswith("_prob")})
        loader = TrainLoader(plain, dataset.train)
        batches = loader.epoch(0, device)
        self.batches = [images for images, _ in (next(batches) for _ in range(min(CALIBRATION, len(loader))))]
        batches.close()

    def __call__(self, spec: Spec) -> float:
        self.model.backbone.select(spec)
        update_bn(self.batches, self.model)
        query, gallery = (extract_features(self.cfg, self.model, x, self.device)[0] for x in (self.query, self.gallery))
        ids = (self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)
        return 100 * evaluate(query, gallery, *ids, metric=self.cfg.eval.metric).mAP
