"""Strong systems of other projects: fast-reid's SBS (He et al., FastReID, arXiv:2006.02631, 2020;
JDAI-CV/fast-reid: configs/Base-SBS.yml, MODEL_ZOO.md) and AGW (Ye et al., Deep Learning for Person Re-identification: A
Survey and Outlook, TPAMI 2021; mangye16/ReID-Survey: configs/AGW_baseline.yml, README.md)."""

SBS = {
    "dataset": "market1501",
    "height": 384,
    "images_per_id": 16,
    "autoaugment_prob": 0.1,
    "stem": "ceil",
    "attention": "nonlocal",
    "attention_ratio": 0.0,  # a single channel, whatever fast-reid's ratio setting says
    "pooling": "gem",
    "head": "circle",
    "metric_feature": "after",
    "soft_margin": True,
    "center_weight": 0.0,
    "freeze_epochs": 1000 / 211,  # 1,000 steps; an epoch has 211 steps here and 202 in fast-reid
    "epochs": 60,
    "warmup_iters": 2000,
    "warmup_factor": 0.1,
    "schedule": "cosine",
    "delay_epochs": 30.0,
    "min_lr_factor": 0.002,
}

PRESETS = {
    "sbs_resnet50": dict(about="fast-reid's SBS ResNet50; published 88.2 / 95.4", **SBS),
    "sbs_resnet50_ibn_a": dict(
        about="fast-reid's SBS ResNet50-IBN-a; published 89.3 / 95.7", **SBS, backbone="resnet50_ibn_a"
    ),
    "agw_resnet50": dict(
        about="AGW ResNet50; published 87.8 / 95.1",
        dataset="market1501",
        stem="no_relu",
        attention="nonlocal",
        attention_ratio=0.0,
        pooling="gem",
        triplet="weighted",
        rate_changes="epoch_from_1",
    ),
}
