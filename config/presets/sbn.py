"""reid_baseline with multi-GPU and SyncBN (DTennant/reid_baseline_with_syncbn: README.md, configs/, outputs/)."""

SBN = {
    "pad": 0,
    "label_smoothing": 0.0,
    "center_weight": 0.0,
    "lr": 1e-4,
    "steps": (20.0, 30.0, 45.0, 60.0),
    "gamma": 0.6,
    "rate_changes": "epoch_from_1",
    "metric": "euclidean",
    "rerank": True,
}
MARKET = SBN | {
    "dataset": "market1501", "height": 224, "width": 224, "images_per_id": 8, "steps": (20.0, 30.0), "epochs": 30,
}  # fmt: skip
VEHICLES = SBN | {
    "height": 384, "width": 384, "batch_size": 36, "images_per_id": 6, "precision": "fp16", "eval_every": 5,
}  # fmt: skip

PRESETS = {
    "sbn_resnet50": dict(
        about="reid_baseline_with_syncbn's ResNet50; published 74.50 / 89.55", **MARKET, precision="float32"
    ),
    "sbn_resnet50_fp16": dict(about="the same in half precision; published 75.88 / 90.44", **MARKET, precision="fp16"),
    # Batch, K and learning rate (not of biases) are doubled. Batch norm is synchronized, so one GPU computes the same.
    "sbn_resnet50_2gpu": dict(
        about="the same on two GPUs (torchrun --nproc-per-node 2); published 72.13 / 87.44",
        **MARKET | {"batch_size": 128, "images_per_id": 16, "lr": 2e-4, "bias_lr_factor": 0.5, "precision": "float32"},
    ),
    # epoch 12 of 120, the best on this same test split
    "sbn_partial_ilids": dict(
        about="the same at 384 x 256, tested on Partial-iLIDS; published 55.76 / 45.38",
        **MARKET | {"height": 384, "width": 256, "precision": "fp16", "steps": (), "epochs": 12},
        test_dataset="partial_ilids",
    ),
    # epochs 40 and 60 of 260
    "sbn_veri_wild": dict(
        about="the same on VERI-Wild (small test); published 74.27 / 90.43",
        **VEHICLES | {"dataset": "veriwild_small", "steps": (20.0, 30.0), "epochs": 40},
    ),
    "sbn_veri776": dict(
        about="the same on VeRi-776; published 77.15 / 95.65", **VEHICLES, dataset="veri776", epochs=60
    ),
}
