"""Named recipes. Each gives only what differs from the defaults of `Config`, with its source and its figures."""

from config.config import Config

PRESETS: dict[str, Config] = {
    # The rendered demo set, from scratch, on two CPU cores in a few minutes. The README's first command.
    "demo": Config(
        dataset="demo",
        height=96,
        width=48,
        pad=4,
        backbone="resnet18",
        weights="none",
        erase_prob=0.2,  # a schedule this short has no time for strong augmentation
        center_weight=0.0,
        lr=1e-3,
        epochs=16,
        warmup_epochs=1.0,
        steps=(10.0, 14.0),
        eval_every=5,
        flip=True,
        rerank=True,
    ),
    # Tiny Person ReID Baseline, B1 = softmax + triplet + center (Luo et al. 2019, Bag of Tricks).
    # Published on Market-1501: mAP 85.8 / Rank-1 94.1, flipped 86.3 / 93.9.
    "tiny_b1": Config(dataset="market1501", backbone="resnet50", weights="imagenet"),
    # The same with harder example mining, alpha = 0.2. Published: 86.2 / 94.4, flipped 86.6 / 94.6,
    # flipped and re-ranked 94.1 / 95.6.
    "tiny_b1_hem": Config(dataset="market1501", backbone="resnet50", weights="imagenet", hard_factor=0.2),
}

for _name, _preset in PRESETS.items():
    _preset.preset = _name
