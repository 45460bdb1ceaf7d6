"""All parts that docs/parts.md lists, group by group. Where the code has a dict of them, it is that dict."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from config import Config
from config.config import METRIC_LOSSES
from datasets import sampler
from datasets.augment import boxes, colour, geometry, recipe
from loss import CenterLoss, Criterion, batch_hard_triplet, criterion
from model import attention, backbones, branches, heads, pooling, reid
from model.backbones import stages
from processor import evaluate
from solver import average, optimizer, schedule
from utils import expansion, metrics, protocols, rerank, roc


class Inside(NamedTuple):
    """One of several parts in a function or class: its reference, if any, is behind this word in the same sentence."""

    home: Any
    word: str


class Group(NamedTuple):
    setting: str  # the one that chooses a part; empty where there is none
    home: ModuleType  # the module that lists the parts
    parts: dict[str, Any]  # name to function, class, partial of one, or Inside


OTHER_BACKBONES = {
    "timm/NAME": backbones.timm_backbone,
    "searched:FILE.json": backbones.searched,
    "supernet": backbones.supernet,
}
TRICKS = {
    "BNNeck": reid.bnneck,
    "last stride 1": Inside(stages.Backbone, "last_stride 1"),
    "embedding layer": Inside(reid.embedding, "Pooled features"),
    "label smoothing": Inside(Criterion, "Label smoothing"),
    "harder example mining": Inside(batch_hard_triplet, "hard_factor:"),
    "warm-up": Inside(schedule.lr_factor, "Warm-up"),
    "frozen start": optimizer.set_frozen,
    "averaged weights": average.update_average,
}
IDENTITY_LOSSES = {name: criterion.id_loss(Config(id_loss=name)) for name in ("cross_entropy", "focal")}
SCHEDULES = {name: Inside(schedule.lr_factor, f"`{name}`") for name in ("steps", "cosine", "linear")}
SAMPLERS = {
    "pk": sampler.PKSampler,
    "pk_cameras": Inside(sampler.PKSampler, "camids:"),
    "weighted": sampler.WeightedSampler,
    "shuffle": sampler.ShuffleSampler,
}
AUGMENTATIONS = {
    "flip": geometry.random_flip,
    "pad and crop": geometry.pad_crop,
    "2D translation": geometry.random_translation,
    "rotation": geometry.random_rotation,
    "affine": geometry.random_affine,
    "colour jitter": colour.colour_jitter,
    "grayscale": colour.random_grayscale,
    "local grayscale (LGT)": boxes.local_grayscale,
    "AutoAugment": colour.autoaugment,
    "Cutout": boxes.cutout,
    **{f"random erasing, {fill}": boxes.random_erasing for fill in ("mean", "zero", "random")},
}
EVALUATION = {
    "standard": Inside(metrics.evaluate, "Protocol"),
    "multi_query": protocols.pool_queries,
    "single_shot": protocols.evaluate_single_shot,
    "vehicle_id": protocols.evaluate_vehicle_id,
    "mINP": Inside(metrics.evaluate, "INP"),
    "ROC": roc.Roc,
    "scores by camera": protocols.evaluate_by_camera,
    "flipped features": evaluate.feature_batches,
    "re-ranking": rerank.k_reciprocal,
    "query expansion": expansion.expand_queries,
    "gallery augmentation": expansion.augment_gallery,
}


def metric_losses() -> dict[str, Any]:
    """Those of the criterion, all switched on; of the triplet loss both kinds."""
    on = {f"{name}_weight": 1.0 for name in METRIC_LOSSES}
    losses = {name: loss for name, (_, loss) in criterion.metric_losses(Config(**on)).items()}
    weighted = criterion.metric_losses(Config(triplet="weighted"))["triplet"][1]
    triplet = {"triplet, hard": losses.pop("triplet"), "triplet, weighted": weighted}
    return {**triplet, **losses, "center": CenterLoss}


def groups() -> dict[str, Group]:
    """All parts, by the titles of SEEDS."""
    return {
        "Backbones": Group("--backbone", backbones, backbones.BACKBONES | OTHER_BACKBONES),
        "Attention": Group("--attention", attention, attention.ATTENTION),
        "Pooling": Group("--pooling", pooling, pooling.POOLING),
        "Heads": Group("--head", heads, heads.HEADS),
        "Models of branches": Group("--branches", branches, branches.BRANCHES),
        "Identity losses": Group("--id-loss", criterion, IDENTITY_LOSSES),
        "Metric losses": Group("", criterion, metric_losses()),
        "Optimizers": Group("--optimizer", optimizer, optimizer.OPTIMIZERS),
        "Schedules": Group("--schedule", schedule, SCHEDULES),
        "Samplers": Group("--sampler", sampler, SAMPLERS),
        "Augmentations": Group("", recipe, AUGMENTATIONS),
        "Tricks": Group("", reid, TRICKS),
        "Evaluation": Group("", evaluate, EVALUATION),
    }
