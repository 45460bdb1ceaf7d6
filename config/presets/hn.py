"""Deep Person Re-identification (hiennguyen9874/person-reid)."""

PRESETS = {
    # "Baseline + CircleSoftmax + BNNeck + GeneralizedMeanPoolingP + NonLocalBlock + AutoAugmentation" in its README.
    # Published: mAP 90.41, mINP 71.04, no Rank-1. The settings are those of configs/fast_reid.yaml on the day of these
    # figures (commit bb277b4, "Update best metric config"): it scores flipped features, and has Adam; today's file has
    # AdamW and does not flip. Its freeze of "5 epochs" ends before the fifth.
    # Different: the triplet loss sees features before the neck here, after it there; the frozen backbone's batch norm
    # statistics rest here; Cutout is black and may reach over the border here, it is gray and all within there;
    # erasing, Cutout and LGT come in this order there, after normalisation.
    "hn_strong": dict(
        about="hiennguyen9874's ResNet50 with CircleSoftmax, GeM and NonLocal; published mAP 90.41",
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
    # "LightMBN + GlobalContext + GeneralizedMeanPooling" in its README.
    # Published: mAP 91.7, mINP 74.11, no Rank-1. The settings are those of configs/light_mbn.yaml on the day of these
    # figures (commits bb277b4 and a4c7c93): batches of 8 x 8, flipped features scored; today's file has 8 x 6 and does
    # not flip. Its freeze of "5 epochs" ends before the fifth. Losses are summed over branches there and averaged here:
    # 3.5 is 0.5 for each of seven, 1.5 is 0.5 for each of three. OSNet's ImageNet weights are given as --weights FILE.
    # Different: their GeM comes after the reduction, on maps of one position, where it only raises values to 1e-6 (a
    # ReLU, which the first five features lack here); their maps are all averaged, here that of the dropped rows and the
    # parts' whole map give their maximum, as LightMBN's authors have it (--pooling gem: GeM for all seven). There the
    # feature with dropped rows has no identity loss, and branches are not normalised before they are joined. The frozen
    # backbone's batch norm statistics rest here; Cutout is black and may reach over the border here, it is gray and all
    # within there; erasing, Cutout and LGT come in this order there, after normalisation.
    "hn_lightmbn": dict(
        about="hiennguyen9874's LightMBN with GlobalContext and GeM; published mAP 91.7",
        dataset="market1501",
        height=384,
        images_per_id=8,
        pad=0,
        translate_prob=0.5,
        lgt_prob=0.2,
        cutout_prob=0.5,
        cutout_size=64 / 384,
        backbone="osnet_x1_0",
        attention="gc_gate",
        attention_stages=(1, 2),
        branches="lightmbn",
        id_weight=3.5,
        triplet_weight=0.0,
        multi_similarity_weight=1.5,
        ms_beta=40.0,
        ms_base=0.7,
        ms_epsilon=3.0,  # all pairs
        center_weight=0.0,
        lr=6e-4,
        freeze_epochs=4.0,
        epochs=150,
        schedule="cosine",
        delay_epochs=30.0,
        min_lr_factor=0.001,
        flip=True,
    ),
}
