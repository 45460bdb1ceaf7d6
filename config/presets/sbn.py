"""reid_baseline with multi-GPU and SyncBN (DTennant/reid_baseline_with_syncbn: README.md, configs/, outputs/*/log*.txt)."""

from typing import Any

from config.config import Config

# Different: there images are normalised with mean and deviation 0.5, and the rate stays the same within an epoch.
# Its warm-up and steps count epochs from 1: 20, 30, ... are 19, 29, ... here, as its logs show.
SBN: dict[str, Any] = {
    "pad": 0,
    "label_smoothing": 0.0,
    "center_weight": 0.0,
    "lr": 1e-4,
    "gamma": 0.6,
    "metric": "euclidean",
    "rerank": True,
}
VEHICLES: dict[str, Any] = {"height": 384, "width": 384, "batch_size": 36, "images_per_id": 6, "eval_every": 5}

PRESETS = {
    # Published, one GPU: 74.50 / 89.55, re-ranked 90.00 / 92.67. Two GPUs with SyncBN, each with a batch like this one
    # and the rate doubled, 16 images an identity: 72.13 / 87.44 and 88.92 / 91.30 (its training log says 75.35 / 89.37).
    # Half precision: 75.88 / 90.44 and 90.22 / 93.14.
    # On Partial-iLIDS: mAP 55.76, Rank-1 45.38, Rank-3 57.14, re-ranked 42.62, 28.57, 48.74. That model saw 384 × 256
    # pixels and half precision, and is of epoch 12, the best on this test of 120 epochs (mAP 47.96 after all).
    "sbn_resnet50": Config(
        **SBN, dataset="market1501", height=224, width=224, images_per_id=8, epochs=30, steps=(19.0, 29.0)
    ),
    # Published on the small test of VERI-Wild: 74.27 / 90.43, re-ranked 77.42 / 89.66. Of epoch 40 of 260 planned.
    "sbn_veri_wild": Config(**SBN, **VEHICLES, dataset="veriwild_small", epochs=40, steps=(19.0, 29.0)),
    # Published on VeRi-776: 77.15 / 95.65, re-ranked 81.74 / 97.20. Of epoch 60 of 260 planned.
    "sbn_veri776": Config(**SBN, **VEHICLES, dataset="veri776", epochs=60, steps=(19.0, 29.0, 44.0, 59.0)),
}
