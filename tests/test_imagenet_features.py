"""ImageNet's weights, untrained on any person, distinguish the rendered people of the demo set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import ROOT

from config import Config
from datasets.demo.render import render_demo
from datasets.loaders import TestLoader, make_test_loaders
from datasets.make import make_test_set
from model import make_model
from processor.evaluate import extract_features
from utils.distance import pairwise_distance
from utils.metrics import Scores, evaluate

WEIGHTS = Path(os.environ.get("REID_WEIGHTS") or ROOT.parent / "shared" / "weights")
FILES = {
    "mobilenet_v2": ("mobilenet_v2_imagenet.pth", False),
    "resnet50": ("resnet50_caffe_imagenet.pth", True),  # stride on the first 1x1 convolution
}


class People(NamedTuple):
    """The demo set's query and gallery, as the model sees them."""

    data_root: Path
    query: TestLoader
    gallery: TestLoader


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> People:
    """Twelve people under three to six cameras each: some 50 queries and 130 gallery images."""
    data_root = tmp_path_factory.mktemp("rendered")
    render_demo(data_root / "demo", train_ids=1, test_ids=12, distractors=0, junk=0)
    cfg = settings(data_root, "mobilenet_v2")
    _, query, gallery = make_test_loaders(cfg, make_test_set(cfg))
    return People(data_root, query, gallery)


def settings(data_root: Path, backbone: str, **changes) -> Config:
    common = {"dataset": "demo", "height": 128, "width": 64, "device": "cpu", "disk_gb": 0.0, "weights": "none"}
    return Config(**common | changes, data_root=str(data_root), backbone=backbone)


def published(people: People, backbone: str) -> Config:
    """Settings with the published weights. Skips the test where the file is absent."""
    name, caffe = FILES[backbone]
    if not (WEIGHTS / name).is_file():
        pytest.skip(f"{WEIGHTS / name} is absent; name the directory that holds it with REID_WEIGHTS")
    return settings(people.data_root, backbone, weights=str(WEIGHTS / name), stride_in_1x1=caffe)


def scored(people: People, cfg: Config) -> tuple[Scores, float]:
    """The model's scores, and the share of pairs (one of a person, one of two) of which the former is the nearer."""
    torch.manual_seed(0)
    model = make_model(cfg, num_classes=2)
    query, gallery = (extract_features(cfg, model, x, torch.device("cpu"))[0] for x in (people.query, people.gallery))
    (q, qc), (g, gc) = ((x.pids, x.camids) for x in (people.query, people.gallery))
    other_camera = qc[:, None] != gc
    distance, same = pairwise_distance(query, gallery).numpy(), q[:, None] == g
    of_one, of_two = np.sort(distance[same & other_camera]), distance[~same]
    return evaluate(query, gallery, q, g, qc, gc), float(np.searchsorted(of_one, of_two).mean() / len(of_one))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FILES)
def test_two_crops_of_a_person_are_nearer_than_of_two_people_and_far_more_so_than_with_random_weights(people, backbone):
    cfg = published(people, backbone)
    known, nearer = scored(people, cfg)
    random, nearer_at_random = scored(people, settings(people.data_root, backbone))
    assert nearer > 0.75 and nearer > nearer_at_random + 0.1, (nearer, nearer_at_random)  # 0.5 is chance
    assert known.mAP > 0.35 and known.mAP > 1.7 * random.mAP, (known.mAP, random.mAP)  # chance is about 0.1
    assert known.rank(1) > 0.5, known.rank(1)
