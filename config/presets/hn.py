"""Deep Person Re-identification (hiennguyen9874/person-reid)."""

from config.config import Config

PRESETS = {
    # "Baseline + CircleSoftmax + BNNeck + GeneralizedMeanPoolingP + NonLocalBlock(ratio=0.0625) + AutoAugmentation(p=0.1)".
    # Published: mAP 90.41, mINP 71.04, no Rank-1. Settings are those of configs/fast_reid.yaml in the commit of the same
    # day (bb277b4, "Update best metric config"), which also scores flipped features; later ones have AdamW and do not flip.
    # Different: the triplet loss sees features before the neck here, after it there; Cutout is black here and may reach
    # over the border, gray and all within there; LGT, Cutout and erasing come in another order, on normalised images.
    # Its freeze of "5 epochs" ends before the fifth, and batch norm statistics move meanwhile from the second on.
    "hn_strong": Config(
        dataset="market1501",
        height=384,
        images_per_id=16,
        pad=0,
        translate_prob=0.5,
        lgt_prob=0.2,
        cutout_prob=0.5,
        cutout_size=64 / 384,
        autoaugment_prob=0.1,
        attention="nonlocal",
        pooling="gem",
        head="circle",
        soft_margin=True,
        center_weight=0.0,
        freeze_epochs=4.0,
        epochs=150,
        schedule="cosine",
        delay_epochs=30.0,
        min_lr_factor=0.002,
        flip=True,
    ),
}
