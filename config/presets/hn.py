"""Deep Person Re-identification (hiennguyen9874/person-reid), as its files were on the day of the published figures
(commits bb277b4 and a4c7c93): they score flipped features and use Adam; today's files do neither."""

HN = {
    "dataset": "market1501",
    "height": 384,
    "pad": 0,
    "translate_prob": 0.5,
    "lgt_prob": 0.2,
    "cutout_prob": 0.5,
    "cutout_size": 64 / 384,
    "center_weight": 0.0,
    "freeze_epochs": 4.0,  # "5 epochs", which end before the fifth
    "epochs": 150,
    "schedule": "cosine",
    "delay_epochs": 30.0,
    "rate_changes": "epoch",
    "flip": True,
}

PRESETS = {
    # "Baseline + CircleSoftmax + BNNeck + GeneralizedMeanPoolingP + NonLocalBlock + AutoAugmentation"; no Rank-1
    "hn_strong": dict(
        about="hiennguyen9874's ResNet50 with CircleSoftmax, GeM and NonLocal; published mAP 90.41",
        **HN,
        images_per_id=16,
        autoaugment_prob=0.1,
        stem="ceil",
        attention="nonlocal",
        pooling="gem",
        head="circle",
        metric_feature="after",
        soft_margin=True,
        min_lr_factor=0.002,
    ),
    # "LightMBN + GlobalContext + GeneralizedMeanPooling"; no Rank-1. Losses are summed over branches there and averaged
    # here: 3.5 is 0.5 for each of seven, 1.5 is 0.5 for each of three. OSNet's weights are given as --weights FILE.
    "hn_lightmbn": dict(
        about="hiennguyen9874's LightMBN with GlobalContext and GeM; published mAP 91.7",
        **HN,
        images_per_id=8,
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
        lr=6e-4,
        min_lr_factor=0.001,
    ),
}
