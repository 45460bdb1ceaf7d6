"""All settings of PlainReID: one dataclass, one line a setting with its meaning (which is also its `--help`)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import tyro

from utils.errors import UserError

Sampler = Literal["pk", "pk_cameras", "weighted", "shuffle"]
Protocol = Literal["auto", "standard", "multi_query", "single_shot", "vehicle_id"]
Precision = Literal["float32", "bf16", "fp16"]
Optimizer = Literal["adam", "amsgrad", "adamw", "adamw_amsgrad", "sgd"]

Attention = Literal["none", "se", "cbam", "gc", "gc_gate", "nonlocal", "nonlocal_softmax", "plr", "fpb"]
Branches = Literal["one", "pcb", "mgn", "bdb", "lightmbn"]
Pooling = Literal["avg", "max", "avg_max", "gem", "gem_fixed"]
Head = Literal["linear", "cosine", "cosine_learned", "cosface", "arcface", "subcenter_arcface", "circle"]

FRACTIONS = ("cutout_size", "test_share", "lambda_value", "label_smoothing", "attention_ratio")
FRACTIONS += ("warmup_factor", "gamma", "min_lr_factor")
BOTTLENECKS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2")
BOTTLENECKS += ("wide_resnet101_2",)  # ResNets of torchvision's bottleneck blocks
POSITIVE = (
    "width_multiplier",
    "head_scale",
    "lr",
    "backbone_lr_factor",
    "bias_lr_factor",
    "circle_gamma",
    "cosface_gamma",
)
POSITIVE += ("ms_alpha", "ms_beta")


@dataclass
class Config:
    # ---- what to run
    preset: tyro.conf.Suppress[str] = ""  # recipe that these settings started from: the first word of the command
    name: str = ""  # name of the run, its files go to LOG_DIR/NAME; empty: the preset's name
    log_dir: str = "log"  # directory that holds all runs
    seed: int = 0  # seeds initial weights, batches and augmentation; same seed, settings and device give the same run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda where there is one, else cpu
    resume: bool = False  # go on with the newest run of this name from its last checkpoint

    # ---- data
    dataset: str = "demo"  # a name (see README), a+b to train on both, or a folder or .csv file of your own pictures
    test_dataset: str = ""  # test on this one instead; empty: the dataset that is trained on, of several the first
    data_root: str = "data"  # directory that holds the datasets; default: the variable REID_DATA, else data
    test_share: float = 0.5  # own pictures without a split: share of the identities that are kept for the test
    split_seed: int = 0  # which random split, of own pictures without one and of CUHK03's classic protocol (0 to 19)
    camera_pattern: str = r"_c(\d+)"  # own pictures: what finds the camera's number in a file name
    train_ids: int = 0  # train on the first n identities only, for a quick look; 0: all
    holdout_ids: int = 0  # keep the last n identities out of training, so that settings can be chosen on them; 0: none
    test_ids: int = 0  # test on the first n identities only, without distractors (scores then say so); 0: all
    height: int = 256  # pixels that every image is resized to
    width: int = 128  # pixels that every image is resized to
    disk_gb: float = 40.0  # decoded images are kept in files of this many GB at most, for later runs too; 0: no files
    cache_dir: str = ""  # directory of these files; empty: DATA_ROOT/.cache
    cache_gb: float = 6.0  # memory for a split that has no file, in GB; what does not fit is decoded at every use
    on_bad_image: Literal["refuse", "skip"] = "refuse"  # files that cannot be decoded: list them and stop, or go on
    workers: int = 4  # threads that read and decode images

    # ---- batches
    sampler: Sampler = "pk"  # pk: P identities x K images; pk_cameras: K of many cameras; weighted: all ids alike
    batch_size: int = 64  # images a training batch (P x K), over all processes together
    images_per_id: int = 4  # K; batch_size must be a multiple of it
    test_batch_size: int = 256  # images a batch when features are extracted; does not change the features

    # ---- augmentation; a probability is an image's, and 0 switches it off
    flip_prob: float = 0.5  # horizontal flip
    pad: int = 10  # pixels of black added on each side before a random crop back to the input size; 0: no crop
    erase_prob: float = 0.5  # random erasing of a rectangle
    erase_fill: Literal["mean", "zero", "random"] = "mean"  # ImageNet's mean colour (0 once normalised), black, noise
    cutout_prob: float = 0.0  # Cutout: a black square that may reach over the border
    cutout_size: float = 0.25  # its side as a share of the height
    translate_prob: float = 0.0  # Random2DTranslation: enlarge by an eighth, crop back at a random place
    rotate_prob: float = 0.0  # rotation about the centre
    rotate_degrees: float = 10.0  # by up to so much, either way
    affine_prob: float = 0.0  # rotation by up to 10 degrees, scale 0.9 to 1.1, hardly any shear (see its docstring)
    jitter_prob: float = 0.0  # colour jitter
    jitter: tuple[float, float, float, float] = (0.15, 0.15, 0.1, 0.1)  # brightness, contrast, saturation, hue
    gray_prob: float = 0.0  # the whole image turned gray
    lgt_prob: float = 0.0  # local grayscale transformation, also called grayscale patch: a rectangle turned gray
    autoaugment_prob: float = 0.0  # one of AutoAugment's policies for ImageNet

    # ---- model
    backbone: str = "resnet50"  # network before the pooling: a name (see README), or timm/NAME for one of timm's
    width_multiplier: float = 1.0  # mobilenet_v2: factor of its layers' channels, which stay multiples of 8
    weights: str = "imagenet"  # start of the backbone: imagenet (downloaded, OSNet's by hand), none, or a file
    last_stride: Literal[1, 2] = 1  # stride of the last down-sampling stage; 1 keeps a finer map and is ReID's habit
    stride_in_1x1: bool = False  # ResNets: stride on a bottleneck's first 1x1 convolution, as caffe's weights want
    attention: Attention = "none"  # module after the stages below; nonlocal as in AGW, gc_gate as HN's LightMBN has it
    attention_stages: tuple[int, ...] = (2, 3)  # stages of the backbone, counted from 1, that it comes after
    attention_ratio: float = 0.0625  # share of the channels that it keeps inside; 0: one channel, as AGW and fast-reid
    branches: Branches = "one"  # one global feature, or a model of several branches (README: Models and losses)
    pooling: Pooling = "avg"  # global pooling of the last feature map; gem learns its power, gem_fixed keeps it at 3
    embedding_dim: int = 0  # width of a Linear + BN + ReLU after the pooling, 512 in OSNet's files; 0: as in papers
    neck: Literal["bnneck", "none"] = "bnneck"  # bnneck: batch norm between metric-loss feature and classifier
    head: Head = "linear"  # classifier; all but linear compare directions: cosines times head_scale
    head_scale: float = 64.0  # factor of the cosines (cosine_learned: at the start); not for linear
    head_margin: float = 0.35  # cosface, circle: of the cosine; arcface, subcenter_arcface: of the angle, in radians
    sub_centers: int = 3  # subcenter_arcface: centres an identity
    test_feature: Literal["after", "before"] = "after"  # embedding used in tests: after or before the neck

    # ---- losses
    label_smoothing: float = 0.1  # epsilon of the smoothed cross entropy
    id_weight: float = 1.0  # weight of the identity loss
    id_loss: Literal["cross_entropy", "focal"] = "cross_entropy"  # identity loss; focal: images already sure count less
    focal_gamma: float = 2.0  # focal loss: power of (1 - probability) that weighs an image; 0 is the cross entropy
    triplet_weight: float = 1.0  # weight of the triplet loss; 0: off
    triplet: Literal["hard", "weighted"] = "hard"  # hardest pair of each anchor, or AGW's weighted sum without a margin
    triplet_margin: float = 0.3  # margin of the triplet loss
    soft_margin: bool = False  # triplet and centroid losses: softplus in place of the margin
    hard_factor: float = 0.0  # harder example mining: positives count (1 + a) times as far, negatives (1 - a) times
    contrastive_weight: float = 0.0  # weight of the contrastive loss on all pairs; 0: off
    contrastive_margin: float = 1.0  # distance beyond which images of two identities are left alone
    circle_weight: float = 0.0  # weight of the circle loss on pairs; 0: off
    circle_margin: float = 0.25  # relaxation m of the circle loss, in cosine
    circle_gamma: float = 128.0  # scale of the circle loss
    cosface_weight: float = 0.0  # weight of CosFace on pairs; 0: off
    cosface_margin: float = 0.25  # margin of CosFace on pairs, in cosine
    cosface_gamma: float = 128.0  # scale of CosFace on pairs
    multi_similarity_weight: float = 0.0  # weight of the multi-similarity loss; 0: off
    ms_alpha: float = 2.0  # multi-similarity: scale of positive pairs
    ms_beta: float = 50.0  # multi-similarity: scale of negative pairs
    ms_base: float = 0.5  # multi-similarity: cosine about which pairs are weighed (lambda)
    ms_epsilon: float = 0.1  # multi-similarity: pairs are hard within this of the hardest other pair; above 2: all are
    centroid_weight: float = 0.0  # weight of the centroid triplet loss; 0: off
    centroid_margin: float = 0.3  # margin of the centroid triplet loss
    range_weight: float = 0.0  # weight of the range loss; 0: off
    range_margin: float = 0.1  # range loss: distance beyond which the nearest two identities are left alone
    cluster_weight: float = 0.0  # weight of the cluster loss; 0: off
    cluster_margin: float = 10.0  # cluster loss: by how much identities must be farther apart than they are wide
    center_weight: float = 5e-4  # weight of the center loss; 0: off
    center_lr: float = 0.5  # learning rate of the centers' own SGD

    # ---- solver
    optimizer: Optimizer = "adam"  # optimizer of the model; amsgrad is Adam's variant, adamw decouples weight decay
    lr: float = 3.5e-4  # base learning rate
    backbone_lr_factor: float = 1.0  # rate of the backbone's weights as a factor of lr
    bias_lr_factor: float = 1.0  # rate of biases as a factor of the other weights' rate
    weight_decay: float = 5e-4  # L2 penalty on all weights (adamw: decay instead of a penalty)
    no_decay_norm_bias: bool = False  # no weight decay on normalisation layers and biases
    momentum: float = 0.9  # momentum of SGD, first beta of Adam
    nesterov: bool = False  # Nesterov's momentum in SGD
    clip_grad: float = 0.0  # longest gradient: above this norm, all weights' together is scaled down to it; 0: off
    ema_decay: float = 0.0  # tests use weights averaged over about 1 / (1 - ema_decay) steps, such as 0.999; 0: off
    freeze_epochs: float = 0.0  # at first the backbone stays as it is, its batch norm too, for these epochs (0.5: half)
    epochs: int = 120  # passes over the training batches
    warmup_epochs: float = 10.0  # epochs at the start with a lower rate
    warmup_iters: int = 0  # warm-up in steps, in place of warmup_epochs; 0: warmup_epochs holds
    warmup_factor: float = 0.01  # fraction of the base rate that warm-up starts at
    warmup_method: Literal["linear", "constant"] = "linear"  # warm-up rises to the base rate, or stays at its start
    schedule: Literal["steps", "cosine", "linear"] = "steps"  # how the rate falls after warm-up
    steps: tuple[float, ...] = (40.0, 70.0)  # schedule steps: epochs after which the rate is multiplied by gamma
    gamma: float = 0.1  # factor of each step
    delay_epochs: float = 0.0  # schedules cosine and linear: the rate falls from this epoch on, or from warm-up's end
    min_lr_factor: float = 0.0  # schedules cosine and linear: fraction of the base rate at the end of the last epoch

    # ---- loop
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # of training; auto: bf16 on GPUs (fp16 on old ones)
    test_precision: Precision = "float32"  # of tests; bf16 is faster where the device computes in it, features follow
    tf32: bool = True  # GPUs: convolutions of float32 numbers in TF32, with 10 bits behind the point; distances never
    channels_last: bool = True  # memory layout NHWC: faster convolutions on CPUs and on tensor cores
    compile: bool = False  # torch.compile the training step's model: a minute or more at first, then faster on GPUs
    fused: bool = True  # optimizers that move all weights at once
    deterministic: bool = False  # GPUs: only kernels that always add up in the same order; a CPU has no others here
    accumulate: int = 1  # batches whose mean gradient makes a step; metric losses mine within each batch
    sync_bn: bool = True  # several GPUs: batch norm over all images of a batch; off: over each GPU's share
    gather: bool = True  # several processes: losses see the whole batch; off: metric losses mine in each one's share
    backend: Literal["auto", "nccl", "gloo"] = "auto"  # several processes: nccl where each has a GPU, else gloo
    eval_first: bool = True  # test before the first epoch: the score to beat, and bad test images show at once
    eval_every: int = 10  # test every n epochs (and always after the last)
    log_every: int = 50  # steps between looks at the losses
    ranked_lists: int = 4  # queries whose ranked lists are drawn at each test, for TensorBoard too; 0: none
    bad_steps: int = 20  # losses or gradients that are not finite move no weight; stop after so many in a row
    keep: int = 2  # newest checkpoints that are kept: last.pth, last.1.pth (the one before), ...
    save_minutes: float = 10.0  # a checkpoint is written after each epoch, and within one after so many minutes
    wandb: str = ""  # project at Weights & Biases that the run is logged to (pip install wandb); empty: none

    # ---- evaluation
    metric: Literal["cosine", "euclidean"] = "cosine"  # distance between embeddings
    flip: bool = False  # also score the mean of the features of each image and its mirror image
    rerank: bool = False  # also score after k-reciprocal re-ranking (Zhong et al. 2017)
    k1: int = 20  # re-ranking: neighbours considered
    k2: int = 6  # re-ranking: neighbours averaged in the local query expansion
    lambda_value: float = 0.3  # re-ranking: share of the original distance
    rerank_note: str = ""  # re-ranking: what must be known of k1, k2 and lambda; test.py says it beside the scores
    max_rank: int = 50  # length of the CMC curve
    query_expansion: int = 0  # also score queries averaged with their n nearest gallery images (alpha-QE); 0: off
    augmentation_k: int = 0  # with it, gallery images are averaged with their n nearest first; 0: off
    expansion_alpha: float = 3.0  # power of the cosine that a neighbour weighs in both; 0: all weigh the same
    protocol: Protocol = "auto"  # how queries are scored; auto: as the dataset's authors do
    trials: int = 10  # random galleries of the protocols single_shot and vehicle_id
    roc: bool = False  # also give the share of matching pairs accepted at false positive rates of 1e-4, 1e-3, 1e-2
    by_camera: bool = False  # also give the scores of each camera's queries in each other camera's gallery

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as a checkpoint and JSON hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Rebuild from `to_dict`; settings that this version does not know are ignored, new ones get defaults."""
        known = {f.name for f in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**values)

    def check(self) -> Config:
        """Refuse values and combinations that cannot work. Raises UserError; returns self."""
        for problem in (*self._bad_ranges(), *self._bad_combinations()):
            raise UserError(problem)
        return self

    def _bad_ranges(self):
        at_least = {"batch_size": 2, "images_per_id": 1, "test_batch_size": 1, "epochs": 1, "eval_every": 1}
        at_least |= {"log_every": 1, "height": 16, "width": 16, "max_rank": 1, "k1": 1, "k2": 1, "workers": 1}
        at_least |= {"pad": 0, "train_ids": 0, "test_ids": 0, "seed": 0, "warmup_epochs": 0}
        at_least |= {"cache_gb": 0, "disk_gb": 0, "split_seed": 0, "rotate_degrees": 0}
        at_least |= {"holdout_ids": 0, "query_expansion": 0, "augmentation_k": 0, "expansion_alpha": 0, "trials": 1}
        at_least |= {"id_weight": 0, "center_weight": 0, "triplet_margin": 0, "weight_decay": 0, "focal_gamma": 0}
        at_least |= {f"{loss}_weight": 0 for loss in METRIC_LOSSES}
        at_least |= {"head_margin": 0, "sub_centers": 1, "embedding_dim": 0}
        at_least |= {"ranked_lists": 0, "accumulate": 1, "bad_steps": 1, "keep": 1, "save_minutes": 0}
        at_least |= {"warmup_iters": 0, "clip_grad": 0, "freeze_epochs": 0, "delay_epochs": 0}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                yield f"--{dashed(name)} must be at least {least}, not {getattr(self, name)}"
        shares = [name for name in vars(self) if name.endswith("_prob")]
        for name in (*shares, *FRACTIONS):
            if not 0 <= getattr(self, name) <= 1:
                yield f"--{dashed(name)} must lie between 0 and 1, not {getattr(self, name)}"
        if not all(0 <= value <= most for value, most in zip(self.jitter, (1, 1, 1, 0.5), strict=True)):
            yield f"--jitter takes brightness, contrast and saturation from 0 to 1 and hue to 0.5, not {self.jitter}"
        if self.pad > max(self.height, self.width):
            yield f"--pad {self.pad} is more than the image itself has; 10 is usual for 256 x 128"
        if not 0 <= self.hard_factor < 1:
            yield f"--hard-factor must be at least 0 and below 1, not {self.hard_factor}"
        if self.head in ("arcface", "subcenter_arcface") and self.head_margin > math.pi / 2:
            yield f"--head-margin of {self.head} is an angle from 0 to 1.57, a right angle, not {self.head_margin}"
        if len(set(self.attention_stages)) < len(self.attention_stages):
            yield f"--attention-stages {' '.join(map(str, self.attention_stages))} names a stage twice"
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                yield f"--{dashed(name)} must be above 0, not {getattr(self, name)}"
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                yield f"--{dashed(name)} must be at least 0 and below 1, not {getattr(self, name)}"
        if list(self.steps) != sorted(self.steps):
            yield f"--steps must rise, as in --steps 40 70, not {' '.join(map(str, self.steps))}"

    def _bad_combinations(self):
        pk = self.sampler in ("pk", "pk_cameras")
        if pk and self.batch_size % self.images_per_id:
            below = max(self.batch_size // self.images_per_id, 1) * self.images_per_id
            yield (
                f"--batch-size {self.batch_size} cannot be divided by --images-per-id {self.images_per_id} "
                f"(P identities x K images); try --batch-size {below}"
            )
        if pk and self.batch_size < 2 * self.images_per_id:
            yield (
                f"--batch-size {self.batch_size} holds only one identity of {self.images_per_id} images; "
                f"PK sampling needs two or more, try --batch-size {4 * self.images_per_id}"
            )
        metric = [loss for loss in METRIC_LOSSES if getattr(self, f"{loss}_weight") > 0]
        for loss in metric:
            off = f"switch the loss off with --{dashed(loss)}-weight 0"
            if not pk:
                yield (
                    f"the {loss} loss needs several images of one identity in a batch, which --sampler {self.sampler} "
                    f"does not promise; use --sampler pk, or {off}"
                )
            if self.images_per_id < 2:
                yield (
                    f"the {loss} loss needs a positive for each anchor, and --images-per-id 1 gives none; use 2 or "
                    f"more, or {off}"
                )
        if not metric and self.id_weight == self.center_weight == 0:
            yield "all loss weights are 0, nothing would be learned; set --id-weight or --triplet-weight above 0"
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            yield "--nesterov is momentum of a kind that only SGD has; give --optimizer sgd and --momentum above 0"
        if self.freeze_epochs > 0 and self.id_weight == 0:
            yield "with --freeze-epochs only the identity loss has weights to train; set --id-weight above 0"
        if (self.delay_epochs or self.min_lr_factor) and self.schedule == "steps":
            yield "--delay-epochs and --min-lr-factor are for --schedule cosine or linear; with steps, set both to 0"
        if self.delay_epochs >= self.epochs:
            yield f"--delay-epochs {self.delay_epochs} must be below --epochs {self.epochs}, or the rate never falls"
        if self.stride_in_1x1 and self.backbone not in BOTTLENECKS:
            yield f"--stride-in-1x1 is for {', '.join(BOTTLENECKS)}; leave it out with {self.backbone}"
        if self.width_multiplier != 1 and self.backbone != "mobilenet_v2":
            yield f"--width-multiplier is for mobilenet_v2; leave it out with {self.backbone}"
        if self.width_multiplier != 1 and self.weights == "imagenet":
            yield "--weights imagenet is there for --width-multiplier 1 only; give --weights none, or a file"
        if not self.dataset:
            yield "--dataset is empty; name one, such as --dataset market1501"
        for name in undefined(self):
            yield f"--{dashed(name)} is not defined for --protocol {self.protocol}; leave one of them out"
        if "/" in self.name or self.name in (".", ".."):
            yield f"--name {self.name} must be a plain name, not a path; choose the place with --log-dir"


# Whatever has a weight, but for the losses that need neither pairs nor a place in `loss.criterion.metric_losses`.
METRIC_LOSSES = tuple(
    f.name.removesuffix("_weight")
    for f in fields(Config)
    if f.name.endswith("_weight") and f.name not in ("id_weight", "center_weight")
)


def undefined(cfg: Config) -> list[str]:
    """The settings that are on and that the protocol does not define."""
    more = ("rerank", "query_expansion", "augmentation_k", "roc", "by_camera")
    return [name for name in more if getattr(cfg, name)] if cfg.protocol in ("single_shot", "vehicle_id") else []


def dashed(name: str) -> str:
    """The command-line spelling of a setting."""
    return name.replace("_", "-")
