"""Recipes for the rendered demo set."""

SMALL = {
    "dataset": "demo",
    "height": 96,
    "width": 48,
    "pad": 4,
    "weights": "none",
    "erase_prob": 0.2,  # schedules this short have no time for strong augmentation
    "center_weight": 0.0,
    "warmup_epochs": 1.0,
}

PRESETS = {
    # From scratch, on two CPU cores in a few minutes. The README's first command.
    "demo": dict(
        about="rendered pedestrians, ResNet18 from scratch; a few minutes on two CPU cores",
        **SMALL,
        backbone="resnet18",
        lr=1e-3,
        epochs=16,
        steps=(10.0, 14.0),
        precision="float32",  # `auto` is bf16 on some CPUs, and the scores differ
        eval_every=5,
        flip=True,
        rerank=True,
    ),
    # For the search of light networks, within half an hour. Batches are small, as these networks need many steps from
    # scratch. With SGD, MobileNetV2 needs half as many steps as with Adam (as in mlr_mobilenet_v2_sgd). Without
    # gradient clipping, some networks lose in one step what they learned in a hundred.
    "demo_light": dict(
        about="rendered pedestrians, MobileNetV2 from scratch with SGD; for the search of light models",
        **SMALL,
        backbone="mobilenet_v2",
        last_stride=2,
        batch_size=32,
        optimizer="sgd",
        lr=0.05,
        clip_grad=5.0,
        epochs=24,
        steps=(16.0, 21.0),
        eval_every=8,
    ),
}
