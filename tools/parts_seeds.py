"""Which part is in which seed: knowledge that the code does not hold, read in the seeds' own code.

Parts stand on one line, with ` + ` between them, where the same seeds have them. A seed counts where it has the same
thing, if not every detail of it. `others` are the field beyond the seeds: the papers' own code, torchreid, timm, ...
"""

LEGEND = {
    "Tiny": "Tiny Person ReID Baseline",
    "MLR": "Matrix Light ReID, with the parts of mmclassification that it is made of",
    "DER": "deep-efficient-reid",
    "HN": "Deep Person Re-identification, by hiennguyen9874",
    "SBN": "reid_baseline with multi-GPU and SyncBN",
    "fast-reid": "JDAI-CV's FastReID",
    "others": "the field beyond them",
}
EACH = "Tiny, MLR, DER, HN, SBN, fast-reid"  # all seeds

SEEDS = {
    "Backbones": {
        "resnet50": EACH,
        "resnet18 + resnet34 + resnet101": "MLR, DER, HN, fast-reid",
        "resnet152": "MLR, DER",
        "resnext50_32x4d + resnext101_32x8d": "MLR, HN, fast-reid",
        "wide_resnet50_2 + wide_resnet101_2": "others",
        "resnet50_ibn_a + resnet101_ibn_a": "DER, HN, fast-reid",
        "resnet18_ibn_b + resnet50_ibn_b": "others",
        "osnet_x1_0 + osnet_x0_75 + osnet_x0_5 + osnet_x0_25 + osnet_ibn_x1_0": "HN, fast-reid",
        "osnet_ain_x1_0 + osnet_ain_x0_75 + osnet_ain_x0_5 + osnet_ain_x0_25": "HN",
        "mobilenet_v2 + mobilenet_v3_small": "MLR, fast-reid",
        "mobilenet_v3_large": "MLR, HN, fast-reid",
        "shufflenet_v2_x0_5 + shufflenet_v2_x1_0 + shufflenet_v2_x1_5 + shufflenet_v2_x2_0": "MLR, fast-reid",
        "efficientnet_b0 + efficientnet_b1 + efficientnet_b2 + efficientnet_b3 + efficientnet_b4": "HN, fast-reid",
        "efficientnet_v2_s": "DER",
        "efficientnet_v2_m": "others",
        "regnet_y_400mf + regnet_y_800mf + regnet_y_1_6gf + regnet_y_3_2gf": "fast-reid",
        "regnet_x_400mf + regnet_x_800mf + regnet_x_1_6gf + regnet_x_3_2gf": "MLR, fast-reid",
        "convnext_tiny + convnext_small + convnext_base + swin_t + swin_v2_t": "others",
        "vit_b_16": "fast-reid",
        "timm/NAME": "others",
        "searched:FILE.json + supernet": "MLR",
    },
    "Attention": {
        "se + nonlocal": "HN, fast-reid",
        "cbam + gc_gate + plr + fpb": "HN",
        "gc": "fast-reid",
        "nonlocal_softmax": "others",
    },
    "Pooling": {
        "avg": EACH,
        "max + gem + gem_fixed": "HN, fast-reid",
        "avg_max": "fast-reid",
    },
    "Heads": {
        "linear": EACH,
        "cosine": "HN",
        "cosface + circle": "HN, fast-reid",
        "arcface": "Tiny, DER, HN, fast-reid",
        "subcenter_arcface": "HN",
        "cosine_learned": "others",
    },
    "Models of branches": {
        "one": EACH,
        "mgn": "fast-reid",
        "lightmbn": "HN",
        "pcb + bdb": "others",
    },
    "Identity losses": {
        "cross_entropy": EACH,
        "focal": "HN, fast-reid",
    },
    "Metric losses": {
        "triplet, hard": EACH,
        "triplet, weighted": "MLR, HN, fast-reid",
        "circle + cosface": "HN, fast-reid",
        "multi_similarity": "HN",
        "contrastive + centroid": "others",
        "range + cluster": "SBN",
        "center": "Tiny, DER, HN, SBN",
    },
    "Optimizers": {
        "adam": "Tiny, MLR, HN, SBN, fast-reid",
        "amsgrad": "HN",
        "adamw": "DER, HN, fast-reid",
        "adamw_amsgrad": "DER",
        "sgd": EACH,
    },
    "Schedules": {
        "steps": EACH,
        "cosine": "HN, fast-reid",
        "linear": "others",
    },
    "Samplers": {
        "pk": EACH,
        "pk_cameras + weighted": "fast-reid",
        "shuffle": "Tiny, MLR, DER, SBN, fast-reid",
    },
    "Augmentations": {
        "flip + pad and crop + random erasing, mean": EACH,
        "2D translation + grayscale + local grayscale (LGT) + Cutout": "HN",
        "affine + colour jitter": "fast-reid",
        "AutoAugment": "MLR, HN, fast-reid",
        "rotation + random erasing, zero + random erasing, random": "others",
    },
    "Tricks": {
        "BNNeck + last stride 1 + label smoothing + warm-up": EACH,
        "harder example mining": "Tiny",
        "averaged weights": "DER, HN, fast-reid",
        "frozen start": "HN, fast-reid",
        "embedding layer": "MLR, fast-reid, others",
    },
    "Evaluation": {
        "standard": EACH,
        "mINP": "HN, fast-reid",
        "flipped features": "Tiny, DER, fast-reid",
        "re-ranking": "Tiny, DER, SBN, fast-reid",
        "query expansion + gallery augmentation + ROC": "fast-reid",
        "single_shot": "HN, others",
        "multi_query + vehicle_id + scores by camera": "others",
    },
}
