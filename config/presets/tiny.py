"""Tiny Person ReID Baseline (lulujianjie/person-reid-tiny-baseline), which is Luo et al., Bag of Tricks and a Strong
Baseline for Deep Person Re-identification, CVPR workshops 2019."""

PRESETS = {
    # B1 = softmax + triplet + center. Published: 85.8 / 94.1, flipped 86.3 / 93.9. These are of epoch 175, with a third
    # step at 130; here are the 120 epochs and two steps of the Bag of Tricks.
    "tiny_b1": dict(
        about="Bag of Tricks ResNet50 (softmax + triplet + center); published 85.8 / 94.1",
        dataset="market1501",
        backbone="resnet50",
        weights="imagenet",
    ),
    # The same with harder example mining, alpha = 0.2. Published, of epoch 185: 86.2 / 94.4, flipped 86.6 / 94.6,
    # re-ranked (not flipped, say its table and its configs.py) 94.1 / 95.6, and 94.2 / 95.8 re-ranked with parameters
    # searched on the test.
    "tiny_b1_hem": dict(
        about="tiny_b1 with harder example mining; published 86.2 / 94.4",
        dataset="market1501",
        backbone="resnet50",
        weights="imagenet",
        hard_factor=0.2,
    ),
}
