"""Deep Person Re-identification (hiennguyen9874/person-reid)."""

from config.config import Config

PRESETS = {
    # "Baseline + CircleSoftmax + BNNeck + GeneralizedMeanPoolingP + NonLocalBlock + AutoAugmentation" in its README.
    # Published: mAP 90.41, mINP 71.04, no Rank-1. The settings are those of configs/fast_reid.yaml on the day of these
    # figures (commit bb277b4, "Update best metric config"): it scores flipped features, and has Adam; today's file has
    # AdamW and does not flip. Its freeze of "5 epochs" ends before the fifth.
    # Different: the triplet loss sees features before the neck here, after it there; the frozen backbone's batch norm
    # statistics rest here; Cutout is black and may reach over the border here, it is gray and all within there;
    # erasing, Cutout and LGT come in this order there, after normalisation.
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
