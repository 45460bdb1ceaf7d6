"""deep-efficient-reid (lannguyen0910/deep-efficient-person-reid: README.md, dertorch/configs/*_market.yaml)."""

from typing import Any

# Its files are of other runs (300 epochs), so the README holds where it speaks: AMSGrad at 3.5e-4, which the code makes
# an AdamW, steps 30 and 55, and 60 epochs pretrained or 100 from scratch.
# Different: there a batch is random images, not P × K, so that the triplet loss finds mostly the anchor itself as its
# positive (the 2 images an identity below stand unused in the files); the centers have an AdamW; normalisation weights
# decay, biases alone do not; warm-up's 500 steps are taken once an epoch, so that the rate stays under half of 3.5e-4.
DER: dict[str, Any] = {
    "dataset": "market1501",
    "images_per_id": 2,
    "optimizer": "adamw_amsgrad",
    "momentum": 0.937,
    "bias_lr_factor": 2.0,
    "no_decay_norm_bias": True,
    "warmup_iters": 500,
    "warmup_factor": 0.3,
    "steps": (30.0, 55.0),
    "rerank": True,
}

# Its EfficientNetV2 is V2-S, with last stride 2 in the code, whatever the README and the files say. Different: there it
# has no stochastic depth, TensorFlow's paddings and ImageNet weights of another hand.
EFFICIENTNET: dict[str, Any] = {"backbone": "efficientnet_v2_s", "last_stride": 2}

PRESETS = {
    # Published: mAP / Rank-1 / Rank-5 / Rank-10 of 51.8 / 74.0 / 88.2 / 93.0.
    "der_resnet50_scratch": dict(
        about="deep-efficient-reid's ResNet50 from scratch; published 51.8 / 74.0", **DER, weights="none", epochs=100
    ),
    # Published: 56.5 / 78.5 / 91.1 / 94.4.
    # On CUHK03 (detected, new protocol; batches of 32): 10.1 / 10.1 / 21.1 / 29.5.
    "der_efficientnet_v2_scratch": dict(
        about="deep-efficient-reid's EfficientNetV2 from scratch; published 56.5 / 78.5",
        **DER,
        **EFFICIENTNET,
        weights="none",
        epochs=100,
    ),
    # Published: 77.1 / 90.7 / 97.0 / 98.4, re-ranked 89.8 / 92.1 / 96.5 / 97.7.
    # On CUHK03: 41.2 / 41.8 / 63.1 / 71.2, re-ranked 55.6 / 51.2 / 64.0 / 72.0.
    "der_resnet50_ibn_a": dict(
        about="deep-efficient-reid's ResNet50-IBN-a; published 77.1 / 90.7", **DER, backbone="resnet50_ibn_a", epochs=60
    ),
    # Published: 69.7 / 87.1 / 95.3 / 97.2, re-ranked 85.6 / 89.9 / 94.7 / 96.2.
    # On CUHK03: 40.6 / 42.9 / 63.1 / 72.5, re-ranked 56.0 / 51.4 / 64.7 / 73.4.
    "der_efficientnet_v2": dict(
        about="deep-efficient-reid's EfficientNetV2; published 69.7 / 87.1", **DER, **EFFICIENTNET, epochs=60
    ),
}
