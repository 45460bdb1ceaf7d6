"""deep-efficient-reid (lannguyen0910/deep-efficient-person-reid). Recipes that end in _code follow its code and
configs/*.yaml, which must have produced the published figures; the others follow its README."""

# The README's recipe: AMSGrad at 3.5e-4 (AdamW in the code), steps 30 and 55, 60 epochs if pretrained and 100 from
# scratch. Batches are P × K, as the triplet loss needs.
README = {
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
# What the code does: batches are random, so the triplet loss mostly finds the anchor itself as its positive. The 500
# steps of the warm-up advance once per epoch, so the learning rate stays below half of lr.
CODE = {
    "dataset": "market1501",
    "sampler": "shuffle",
    "triplet_alone": True,
    "optimizer": "adamw_amsgrad",
    "momentum": 0.937,
    "bias_lr_factor": 2.0,
    "bias_decay_factor": 0.0,
    "warmup_epochs": 500.0,
    "warmup_factor": 0.3,
    "steps": (30.0, 55.0),
    "rate_changes": "epoch_from_1",
    "precision": "float32",  # its autocast is around the losses only
    "rerank": True,
}
CUHK03 = {"dataset": "cuhk03_detected", "batch_size": 32}
# V2-S with last stride 2, whatever its README and files say; timm's network is bit-equal to its own
EFFICIENTNET = {"backbone": "efficientnet_v2_s", "last_stride": 2}
EFFICIENTNET_CODE = {"backbone": "timm/tf_efficientnetv2_s", "last_stride": 2, "bn_momentum": 0.01}
SCRATCH = {"weights": "none", "epochs": 100}
IBN = {"backbone": "resnet50_ibn_a"}

PRESETS = {
    "der_resnet50_scratch": dict(
        about="deep-efficient-reid's ResNet50 from scratch; published 51.8 / 74.0", **README, **SCRATCH
    ),
    "der_efficientnet_v2_scratch": dict(
        about="deep-efficient-reid's EfficientNetV2 from scratch; published 56.5 / 78.5",
        **README, **EFFICIENTNET, **SCRATCH,
    ),
    "der_resnet50_ibn_a": dict(
        about="deep-efficient-reid's ResNet50-IBN-a; published 77.1 / 90.7", **README, **IBN, epochs=60
    ),
    "der_efficientnet_v2": dict(
        about="deep-efficient-reid's EfficientNetV2; published 69.7 / 87.1", **README, **EFFICIENTNET, epochs=60
    ),
    "der_resnet50_scratch_code": dict(
        about="der_resnet50_scratch as the source's code trains it", **CODE, **SCRATCH, stem="no_relu"
    ),
    "der_efficientnet_v2_scratch_code": dict(
        about="der_efficientnet_v2_scratch as the source's code trains it",
        **CODE, **EFFICIENTNET_CODE, **SCRATCH, lr=1e-4,
    ),
    "der_resnet50_ibn_a_code": dict(
        about="der_resnet50_ibn_a as the source's code trains it", **CODE, **IBN, epochs=60
    ),
    "der_efficientnet_v2_code": dict(
        about="der_efficientnet_v2 as the source's code trains it",
        **CODE | {"steps": (30.0,)}, **EFFICIENTNET_CODE, lr=1e-4, epochs=45,
    ),
    "der_efficientnet_v2_scratch_cuhk03_code": dict(
        about="the same on CUHK03, from scratch; published 10.1 / 10.1", **CODE | CUHK03, **EFFICIENTNET_CODE, **SCRATCH
    ),
    "der_resnet50_ibn_a_cuhk03_code": dict(
        about="ResNet50-IBN-a on CUHK03; published 41.2 / 41.8",
        **CODE | CUHK03 | {"steps": (30.0,)}, **IBN, epochs=30,
    ),
    "der_efficientnet_v2_cuhk03_code": dict(
        about="EfficientNetV2 on CUHK03; published 40.6 / 42.9", **CODE | CUHK03, **EFFICIENTNET_CODE, epochs=60
    ),
}  # fmt: skip
