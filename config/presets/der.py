"""deep-efficient-reid (lannguyen0910/deep-efficient-person-reid: README.md, dertorch/configs/*_market.yaml)."""

from typing import Any

from config.config import Config

# Its files date from after the published runs (they go on from a checkpoint), so the README rules where it speaks:
# AMSGrad of rate 3.5e-4, which in the code is AdamW, steps 30 and 55, 60 epochs pretrained or 100 from scratch.
# Different: there batches are random images and not P × K, so that the triplet loss's only positive is mostly the anchor
# itself (the 2 images an identity below stand unused in its files); the center loss has an AdamW; normalisation weights
# have a weight decay, only biases have none; warm-up's 500 steps are taken one an epoch, by which the rate stayed below
# 0.5 times the one that is named; autocast covers nothing but the losses.
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

# Its EfficientNetV2 is V2-S. The last stride is 2 in its code, whatever its README and files say. Different: there is no
# stochastic depth, paddings are TensorFlow's, and the pretrained weights are of another hand.
EFFICIENTNET: dict[str, Any] = {"backbone": "efficientnet_v2_s", "last_stride": 2}

PRESETS = {
    # Published: mAP / Rank-1 / Rank-5 / Rank-10 of 51.8 / 74.0 / 88.2 / 93.0.
    "der_resnet50_scratch": Config(**DER, weights="none", epochs=100),
    # Published: 56.5 / 78.5 / 91.1 / 94.4. On CUHK03 (detected, new protocol, batches of 32): 10.1 / 10.1 / 21.1 / 29.5.
    "der_efficientnet_v2_scratch": Config(**DER, **EFFICIENTNET, weights="none", epochs=100),
    # Published: 77.1 / 90.7 / 97.0 / 98.4, re-ranked 89.8 / 92.1 / 96.5 / 97.7.
    # On CUHK03: 41.2 / 41.8 / 63.1 / 71.2, re-ranked 55.6 / 51.2 / 64.0 / 72.0.
    "der_resnet50_ibn_a": Config(**DER, backbone="resnet50_ibn_a", epochs=60),
    # Published: 69.7 / 87.1 / 95.3 / 97.2, re-ranked 85.6 / 89.9 / 94.7 / 96.2.
    # On CUHK03: 40.6 / 42.9 / 63.1 / 72.5, re-ranked 56.0 / 51.4 / 64.7 / 73.4.
    "der_efficientnet_v2": Config(**DER, **EFFICIENTNET, epochs=60),
}
