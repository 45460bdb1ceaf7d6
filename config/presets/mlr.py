"""Matrix Light ReID (matrixorigin/matrix-light-reid: README.md, configs/reid/resnet50_market1501.py)."""

from typing import Any

from config.config import Config

# MobileNetV2 from scratch, which is its baseline for searched networks. Only the README's table is published: feature
# width 256, optimizer, weight decay and "50,120,150", of which 150 must be the number of epochs, as 350 is of its longer
# schedule (commented out in the ResNet's file). Momentum and SGD's rates are those in the same comments. Warm-up is
# named for the long schedule alone. The last stride is the one whose multiply-adds, counted with batch norm and ReLU as
# that program does, are the published 210 M (208; 365 with stride 1).
# Different: there a 1×1 convolution to 256 comes after the triplet loss's feature and before the neck, without batch
# norm and ReLU of its own.
MOBILENET: dict[str, Any] = {
    "dataset": "market1501",
    "backbone": "mobilenet_v2",
    "weights": "none",
    "last_stride": 2,
    "embedding_dim": 256,
    "center_weight": 0.0,
    "warmup_epochs": 0.0,
    "steps": (50.0, 120.0),
    "epochs": 150,
}

PRESETS = {
    # Published: 85.53 / 93.91. Different: there padding is gray (120) and the flip comes after the crop, a classifier
    # with twice the identities (half of it only takes a share of the label smoothing) starts with std 0.01, and the
    # weights are OpenMMLab's.
    "mlr_resnet50": Config(dataset="market1501", center_weight=0.0, warmup_iters=2000, steps=(40.0, 90.0)),
    # Published: 46.96 / 71.17. "The same optimizer from ResNet50 baseline".
    "mlr_mobilenet_v2_adam": Config(**MOBILENET),
    # Published: 47.70 / 71.61.
    "mlr_mobilenet_v2_sgd_wd1e4": Config(**MOBILENET, optimizer="sgd", lr=0.1, weight_decay=1e-4),
    # Published: 61.62 / 81.32.
    "mlr_mobilenet_v2_sgd": Config(**MOBILENET, optimizer="sgd", lr=0.065),
}
