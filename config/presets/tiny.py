"""Tiny Person ReID Baseline (lulujianjie/person-reid-tiny-baseline), which is Luo et al., Bag of Tricks and a Strong
Baseline for Deep Person Re-identification, CVPR workshops 2019."""

# B1 = softmax + triplet + center, with the 120 epochs and two steps of the paper
B1 = {"dataset": "market1501"}
# its code: another stem, a third step, and the weights of one given epoch of 200
CODE = B1 | {
    "stem": "no_relu_pool2",
    "rate_changes": "epoch_from_1",
    "steps": (40.0, 70.0, 130.0),
    "precision": "float32",
}
HEM = {"hard_factor": 0.2}  # harder example mining
SEARCHED = {  # as in its utils/metrics.py
    "rerank": True,
    "k1": 30,
    "k2": 10,
    "lambda_value": 0.2,
    "rerank_note": "k1, k2 and lambda were searched on the test split of market1501",
}

PRESETS = {
    "tiny_b1": dict(about="Bag of Tricks ResNet50 (softmax + triplet + center); published 85.8 / 94.1", **B1),
    "tiny_b1_hem": dict(about="tiny_b1 with harder example mining; published 86.2 / 94.4", **B1, **HEM),
    "tiny_b1_code": dict(about="tiny_b1 as the source's code trains it", **CODE, epochs=175, flip=True),
    "tiny_b1_hem_code": dict(about="tiny_b1_hem as the source's code trains it", **CODE, **HEM, epochs=185, flip=True),
    "tiny_b1_hem_rerank": dict(
        about="the same re-ranked, flips left out; published 94.1 / 95.6", **CODE, **HEM, epochs=185, rerank=True
    ),
    "tiny_b1_hem_searched": dict(
        about="the same with re-ranking searched on the test; published 94.2 / 95.8",
        **CODE,
        **HEM,
        **SEARCHED,
        epochs=185,
    ),
}
