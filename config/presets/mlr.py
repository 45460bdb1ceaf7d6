"""Matrix Light ReID (matrixorigin/matrix-light-reid: README.md, configs/reid/resnet50_market1501.py)."""

# MobileNetV2 from scratch, its baseline for searched networks. Only a row of the README's table is published: feature
# width 256, optimizer, weight decay, and "50,120,150". There 150 must be the number of epochs, as 350 is in the longer
# schedule that is commented out in the ResNet's file. SGD's learning rates and momentum come from these comments too.
# Warm-up is mentioned for the longer schedule only. Last stride 2 fits the published 210 M multiply-adds: counted with
# batch norm and ReLU, as that program does, it has 208 M, and stride 1 has 365 M.
MOBILENET = {
    "dataset": "market1501",
    "backbone": "mobilenet_v2",
    "weights": "none",
    "last_stride": 2,
    "embedding_dim": 256,
    "embedding": "linear",
    "metric_feature": "pooled",
    "center_weight": 0.0,
    "warmup_epochs": 0.0,
    "steps": (50.0, 120.0),
    "epochs": 150,
}
SGD = {"optimizer": "sgd", "lr": 0.065}

# One of our own searched networks, as theirs are not published. Ours were found on the rendered demo set, not on
# Market-1501; the files say how. Height, width and last stride come from its specification.
LIGHT = MOBILENET | SGD | {
    "backbone": "searched:model/backbones/specs/light_210m.json", "height": 240, "width": 120, "last_stride": 1,
}  # fmt: skip
LONG = {"warmup_iters": 2000, "steps": (150.0, 250.0, 320.0), "epochs": 350}
# a network from their own search space, with the multiply-adds of MLR-210M-A
LIGHT_A = MOBILENET | SGD | {"backbone": "searched:model/backbones/specs/light_212m.json"}

PRESETS = {
    "mlr_resnet50": dict(
        about="Matrix Light ReID's ResNet50; published 85.53 / 93.91",
        dataset="market1501",
        center_weight=0.0,
        warmup_iters=2000,
        steps=(40.0, 90.0),
    ),
    # "The same optimizer from ResNet50 baseline"
    "mlr_mobilenet_v2_adam": dict(
        about="Matrix Light ReID's MobileNetV2 from scratch, Adam; published 46.96 / 71.17", **MOBILENET
    ),
    "mlr_mobilenet_v2_sgd_wd1e4": dict(
        about="the same with SGD and weight decay 1e-4; published 47.70 / 71.61",
        **MOBILENET,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
    ),
    "mlr_mobilenet_v2_sgd": dict(
        about="the same with SGD and weight decay 5e-4; published 61.62 / 81.32", **MOBILENET, **SGD
    ),
    "light_212m": dict(
        about="a network of 212 M multiply-adds in their search space; published (MLR-210M-A) 64.57 / 84.56", **LIGHT_A
    ),
    "light_212m_long": dict(
        about="the same with warm-up and 350 epochs; published (MLR-210M-A+) 69.18 / 86.13", **LIGHT_A | LONG
    ),
    "light_210m": dict(
        about="a searched network of 194 M multiply-adds from scratch; published (MLR-210M-B) 65.23 / 83.88", **LIGHT
    ),
    "light_210m_long": dict(
        about="the same with warm-up and 350 epochs; published (MLR-210M-B+) 71.20 / 87.77", **LIGHT | LONG
    ),
    "light_210m_512": dict(
        about="the same with 512 features; published (MLR-210M-B++) 71.19 / 87.35",
        **LIGHT | LONG | {"embedding_dim": 512},
    ),
}
