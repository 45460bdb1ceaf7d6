"""All settings of PlainReID, in sections: `cfg.data.height`, `cfg.loss.triplet_weight`.

Each setting is one line: its name, type, default, and what it means; `--help` prints these lines. Names are unique over
all sections, so they are flat on the command line (`--triplet-weight 0.5`), in presets and in checkpoints.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from utils.errors import UserError
from utils.lookup import load

Sampler = Literal["pk", "pk_cameras", "weighted", "shuffle"]
Folders = Literal["auto", "identity_camera", "camera_identity", "site_identity"]
Attention = Literal["none", "se", "cbam", "gc", "gc_gate", "nonlocal", "nonlocal_softmax", "plr", "fpb"]
Branches = Literal["one", "pcb", "mgn", "bdb", "lightmbn"]
Pooling = Literal["avg", "max", "avg_max", "gem", "gem_fixed"]
Head = Literal["linear", "cosine", "cosine_learned", "cosface", "arcface", "subcenter_arcface", "circle"]
TrainPrecision = Literal["auto", "float32", "bf16", "fp16"]
Precision = Literal["float32", "bf16", "fp16"]
Protocol = Literal["auto", "standard", "multi_query", "single_shot", "vehicle_id"]
Optimizer = Literal["adam", "amsgrad", "adamw", "adamw_amsgrad", "sgd"]
Fill = Literal["mean", "zero", "random"]
Neck = Literal["bnneck", "none"]
Stem = Literal["torchvision", "no_relu", "no_relu_pool2", "ceil"]
MetricFeature = Literal["pooled", "before", "after"]
Schedule = Literal["steps", "cosine", "linear"]
IdLoss = Literal["cross_entropy", "focal"]
Backend = Literal["auto", "nccl", "gloo"]
Warmup = Literal["linear", "constant"]
RateChanges = Literal["step", "epoch", "epoch_from_1"]
Colour = Literal["auto", "rgb", "bgr"]
Jitter = tuple[float, float, float, float]


@dataclass
class RunSettings:
    preset: str = ""  # recipe that the settings started from: the first word of the command
    preset_note: str = ""  # own pictures without a preset: what the settings were chosen for
    name: str = ""  # name of the run; its files go to LOG_DIR/NAME (empty: the preset's name)
    log_dir: str = "log"  # directory of all runs
    seed: int = 0  # random seed of weights, batches and augmentation; the same seed, settings and device repeat a run
    device: str = "auto"  # cpu, cuda, cuda:1, ... (auto: cuda if available, else cpu)
    resume: bool = False  # resume the latest run with this name from its last checkpoint


@dataclass
class DataSettings:
    dataset: str = "demo"  # dataset name, a+b to train on both, or a folder or .csv file of your own pictures
    test_dataset: str = ""  # dataset to test on (empty: the training dataset, the first one of several)
    data_root: str = "data"  # directory of the datasets (default: the environment variable REID_DATA, else data)
    test_share: float = 0.5  # share of the identities used for the test, for own pictures without a split
    split_seed: int = 0  # seed of the random split of own pictures; CUHK03's old protocol: number of the split
    camera_pattern: str = r"_c(\d+)"  # own pictures: regular expression of the camera in a file name; none: no cameras
    folders: Folders = "auto"  # own pictures: meaning of nested folders, the outer folder first
    train_ids: int = 0  # train on the first n identities only (0: all)
    holdout_ids: int = 0  # leave the last n identities out of training, to choose settings on them (0: none)
    test_ids: int = 0  # test on the first n identities only, without distractors (0: all)
    height: int = 256  # input height in pixels
    width: int = 128  # input width in pixels
    start_sizes: tuple[str, ...] = ()  # train on smaller images first: HEIGHTxWIDTH:EPOCHS, such as 128x64:16 192x96:6
    shrink: Literal["area", "bilinear"] = "area"  # how larger images are reduced; most trackers do it bilinearly
    pixel_range: tuple[float, float] = (0.0, 0.0)  # values mapped to black and white in 16-bit images (0 0: automatic)
    disk_gb: float = 40.0  # size limit in GB of the disk cache of decoded images (0: no disk cache)
    cache_dir: str = ""  # directory of the disk cache (empty: DATA_ROOT/.cache)
    cache_gb: float = 6.0  # RAM in GB for decoded images that are not in the disk cache
    on_bad_image: Literal["refuse", "skip"] = "refuse"  # stop at images that cannot be decoded, or skip them
    workers: int = 4  # number of threads that read and decode images
    sampler: Sampler = "pk"  # pk: P identities x K images; pk_cameras: K from many cameras; weighted: all ids equally
    batch_size: int = 64  # training images per batch, over all processes (with pk: P x K)
    images_per_id: int = 4  # images per identity in a batch (K)
    test_batch_size: int = 256  # images per batch in tests
    file_colour: Colour = "auto"  # input color order of an .onnx or .xml model (auto: rgb for .onnx, bgr for .xml)
    file_scale: float = 0.0  # input value of white of an .onnx or .xml model (0: 1 for .onnx, 255 for .xml)
    file_mean: tuple[float, ...] = ()  # mean to subtract after scaling (empty: ImageNet's for scale 1, else 0)
    file_std: tuple[float, ...] = ()  # standard deviation to divide by (empty: ImageNet's for scale 1, else 1)
    file_output: str = ""  # name of the output of an .onnx or .xml model to use as embedding (empty: the first)


@dataclass
class AugmentSettings:
    flip_prob: float = 0.5  # probability per image of a horizontal flip (this and all below: 0 = off)
    pad: int = 10  # pad this many black pixels on each side, then crop at random (0: off)
    erase_prob: float = 0.5  # probability of random erasing
    erase_fill: Fill = "mean"  # fill of erased rectangles: ImageNet mean color, black, noise
    cutout_prob: float = 0.0  # probability of Cutout: a black square that may reach over the border
    cutout_size: float = 0.25  # side of the Cutout square as a share of the image height
    translate_prob: float = 0.0  # probability of Random2DTranslation: enlarge by 1/8, then crop at random
    rotate_prob: float = 0.0  # probability of a rotation about the center
    rotate_degrees: float = 10.0  # largest angle of the rotation, in degrees
    affine_prob: float = 0.0  # probability of an affine transform: up to 10 degrees, scale 0.9 to 1.1, small shear
    jitter_prob: float = 0.0  # probability of color jitter
    jitter: Jitter = (0.15, 0.15, 0.1, 0.1)  # strength of brightness, contrast, saturation, hue
    gray_prob: float = 0.0  # probability of turning the image gray
    lgt_prob: float = 0.0  # probability of the local grayscale transformation: a rectangle turned gray
    autoaugment_prob: float = 0.0  # probability of one of AutoAugment's ImageNet policies


@dataclass
class ModelSettings:
    backbone: str = "resnet50"  # name (see docs/parts.md), timm/NAME for a timm model, searched:FILE for a searched one
    width_multiplier: float = 1.0  # mobilenet_v2: factor of the channel numbers
    weights: str = "imagenet"  # initial backbone weights: imagenet (download), none, or a file
    allow_missing: bool = False  # let the parts of the backbone that a weights file lacks stay random
    stem: Stem = "torchvision"  # ResNets: type of the first layers; no_relu: Bag of Tricks; ceil: fast-reid's pooling
    bn_momentum: float = 0.0  # backbone: momentum of batch norm (0: the backbone's own, mostly 0.1)
    last_stride: Literal[1, 2] = 1  # stride of the last stage; 1 keeps a larger feature map
    stride_in_1x1: bool = False  # ResNets: stride on the first 1x1 convolution of a bottleneck, as in Caffe's weights
    attention: Attention = "none"  # attention module
    attention_stages: tuple[int, ...] = (2, 3)  # backbone stages followed by the attention module, counted from 1
    attention_ratio: float = 0.0625  # attention: inner channels as a share of the stage's (0: one channel, as in AGW)
    branches: Branches = "one"  # one global feature, or a multi-branch model
    pooling: Pooling = "avg"  # global pooling; gem learns p, gem_fixed uses p = 3
    embedding_dim: int = 0  # width of the embedding layer after the pooling (0: none)
    embedding: Literal["full", "linear"] = "full"  # layers of the embedding: Linear + BN + ReLU, or Linear only
    neck: Neck = "bnneck"  # bnneck: batch norm between the metric losses' feature and the classifier
    head: Head = "linear"  # classifier
    head_scale: float = 64.0  # scale of the cosine logits (cosine_learned: initial value; linear: unused)
    head_margin: float = 0.35  # margin: cosine (cosface, circle) or angle in radians (arcface, subcenter_arcface)
    sub_centers: int = 3  # subcenter_arcface: centers per identity
    test_feature: Literal["after", "before"] = "after"  # embedding used in tests: after or before the neck
    metric_feature: MetricFeature = "before"  # feature for metric losses: pooled, before the neck, or after it


@dataclass
class LossSettings:
    label_smoothing: float = 0.1  # label smoothing of the cross entropy
    id_weight: float = 1.0  # weight of the identity loss
    id_loss: IdLoss = "cross_entropy"  # identity loss
    focal_gamma: float = 2.0  # focal loss: exponent of (1 - probability)
    triplet_weight: float = 1.0  # weight of the triplet loss (0: off)
    triplet: Literal["hard", "weighted"] = "hard"  # hardest pair per anchor, or AGW's weighted sum without a margin
    triplet_margin: float = 0.3  # margin of the triplet loss
    triplet_alone: bool = False  # triplet loss: an anchor without a positive is its own positive, so any sampler works
    soft_margin: bool = False  # triplet and centroid losses: softplus instead of the margin
    hard_factor: float = 0.0  # harder example mining: scale positive distances by 1 + a and negative ones by 1 - a
    contrastive_weight: float = 0.0  # weight of the contrastive loss (0: off)
    contrastive_margin: float = 1.0  # contrastive loss: distance beyond which negatives cost nothing
    circle_weight: float = 0.0  # weight of the pairwise circle loss (0: off)
    circle_margin: float = 0.25  # circle loss: relaxation m, in cosine
    circle_gamma: float = 128.0  # circle loss: scale
    cosface_weight: float = 0.0  # weight of the pairwise CosFace loss (0: off)
    cosface_margin: float = 0.25  # pairwise CosFace: margin, in cosine
    cosface_gamma: float = 128.0  # pairwise CosFace: scale
    multi_similarity_weight: float = 0.0  # weight of the multi-similarity loss (0: off)
    ms_alpha: float = 2.0  # multi-similarity: scale of positive pairs
    ms_beta: float = 50.0  # multi-similarity: scale of negative pairs
    ms_base: float = 0.5  # multi-similarity: offset lambda, in cosine
    ms_epsilon: float = 0.1  # multi-similarity: mining margin (above 2: no mining)
    centroid_weight: float = 0.0  # weight of the centroid triplet loss (0: off)
    centroid_margin: float = 0.3  # margin of the centroid triplet loss
    range_weight: float = 0.0  # weight of the range loss (0: off)
    range_margin: float = 0.1  # range loss: distance beyond which the two nearest identities cost nothing
    cluster_weight: float = 0.0  # weight of the cluster loss (0: off)
    cluster_margin: float = 10.0  # cluster loss: margin between the distance of identities and their spread
    center_weight: float = 5e-4  # weight of the center loss (0: off)
    center_lr: float = 0.5  # learning rate of the centers
    teacher: str = ""  # .npy file of a teacher's features of the training images, to distill from (empty: none)
    teacher_weight: float = 10.0  # weight of the teacher loss


@dataclass
class SolverSettings:
    optimizer: Optimizer = "adam"  # optimizer of the model
    lr: float = 3.5e-4  # base learning rate
    backbone_lr_factor: float = 1.0  # learning rate of the backbone, as a factor of lr
    bias_lr_factor: float = 1.0  # learning rate of biases, as a factor of the weights' rate
    weight_decay: float = 5e-4  # weight decay (adamw: decoupled; others: L2 penalty)
    bias_decay_factor: float = 1.0  # weight decay of biases, as a factor of the weights'
    no_decay_norm_bias: bool = False  # no weight decay on normalization layers and biases
    momentum: float = 0.9  # momentum of SGD, beta1 of Adam
    nesterov: bool = False  # Nesterov momentum for SGD
    clip_grad: float = 0.0  # clip the gradient norm to this value (0: off)
    ema_decay: float = 0.0  # test an exponential moving average of the weights with this decay, e.g. 0.999 (0: off)
    freeze_epochs: float = 0.0  # freeze the backbone for the first n epochs (fractions allowed)
    epochs: int = 120  # number of epochs
    warmup_epochs: float = 10.0  # length of the warm-up in epochs
    warmup_iters: int = 0  # length of the warm-up in steps, instead of warmup_epochs (0: use warmup_epochs)
    warmup_factor: float = 0.01  # learning rate at the start of the warm-up, as a factor of lr
    warmup_method: Warmup = "linear"  # warm-up: linear rises to lr, constant stays at its start
    schedule: Schedule = "steps"  # learning rate schedule after the warm-up
    steps: tuple[float, ...] = (40.0, 70.0)  # steps: epochs after which the learning rate is multiplied by gamma
    gamma: float = 0.1  # steps: factor of each step
    rate_changes: RateChanges = "step"  # when the learning rate changes; epoch_from_1: the first epoch counts as 1
    delay_epochs: float = 0.0  # cosine, linear: epoch from which the rate falls (0: from the end of the warm-up)
    min_lr_factor: float = 0.0  # cosine, linear: final learning rate, as a factor of lr


@dataclass
class LoopSettings:
    precision: TrainPrecision = "auto"  # training precision (auto: bf16 on GPUs, fp16 on old ones; CPUs: measured)
    test_precision: Precision = "float32"  # test precision
    tf32: bool = True  # allow TF32 convolutions on GPUs (distances always use float32)
    channels_last: bool = True  # memory format NHWC: faster convolutions
    compile: bool = False  # compile the model with torch.compile for training
    cuda_graph: bool = True  # one GPU, accumulate 1: run forward and backward pass as one CUDA graph
    fused: bool = True  # use fused optimizers
    deterministic: bool = False  # GPUs: use deterministic kernels only (a CPU is always deterministic)
    accumulate: int = 1  # batches per optimizer step; metric losses mine within each batch
    sync_bn: bool = True  # several GPUs: batch norm over the whole batch (off: over each GPU's part)
    gather: bool = True  # several processes: losses over the whole batch (off: metric losses over each process's part)
    backend: Backend = "auto"  # several processes: communication backend
    eval_first: bool = True  # evaluate before the first epoch
    eval_every: int = 10  # evaluate every n epochs, and after the last
    log_every: int = 50  # log the losses every n steps
    ranked_lists: int = 4  # number of ranked lists drawn at each evaluation (0: none)
    bad_steps: int = 20  # stop after this many consecutive steps with NaN or inf (such steps are skipped)
    keep: int = 2  # number of checkpoints to keep: last.pth, last.1.pth (the one before), ...
    save_minutes: float = 10.0  # save a checkpoint within an epoch every n minutes, besides one after each epoch
    wandb: str = ""  # project at Weights & Biases to log to (empty: none)


@dataclass
class EvalSettings:
    metric: Literal["cosine", "euclidean"] = "cosine"  # distance between embeddings
    flip: bool = False  # also score the mean of the features of each image and its mirror image
    rerank: bool = False  # also score after k-reciprocal re-ranking (Zhong et al. 2017)
    k1: int = 20  # re-ranking: number of neighbors
    k2: int = 6  # re-ranking: number of neighbors in the local query expansion
    lambda_value: float = 0.3  # re-ranking: share of the original distance
    rerank_note: str = ""  # re-ranking: a note printed with the scores, e.g. how k1, k2 and lambda_value were chosen
    max_rank: int = 50  # length of the CMC curve
    query_expansion: int = 0  # also score queries averaged with their n nearest gallery images (alpha-QE; 0: off)
    augmentation_k: int = 0  # also average gallery images with their n nearest first (database augmentation; 0: off)
    expansion_alpha: float = 3.0  # query expansion: exponent of the cosine that weights a neighbor
    protocol: Protocol = "auto"  # test protocol (auto: the dataset's own)
    trials: int = 10  # single_shot, vehicle_id: number of random galleries
    roc: bool = False  # also give the true positive rate at false positive rates of 1e-4, 1e-3 and 1e-2 (by cosine)
    by_camera: bool = False  # also give the scores for each pair of query and gallery cameras


SECTIONS: dict[str, type] = {
    "run": RunSettings, "data": DataSettings, "augment": AugmentSettings, "model": ModelSettings,
    "loss": LossSettings, "solver": SolverSettings, "loop": LoopSettings, "eval": EvalSettings,
}  # fmt: skip
SECTION_OF = {f.name: section for section, kind in SECTIONS.items() for f in fields(kind)}
SETTINGS = {f.name: f for kind in SECTIONS.values() for f in fields(kind)}

# Ranges of numbers; a number that is not listed may have any finite value.
RANGES = {
    "[0, 1]": "flip_prob erase_prob cutout_prob translate_prob rotate_prob affine_prob jitter_prob gray_prob lgt_prob "
    "autoaugment_prob cutout_size test_share lambda_value label_smoothing attention_ratio warmup_factor gamma "
    "min_lr_factor bn_momentum",
    "[0, 1)": "momentum ema_decay hard_factor",
    "[0, inf)": "train_ids test_ids holdout_ids split_seed seed disk_gb cache_gb pad rotate_degrees id_weight "
    "triplet_weight contrastive_weight circle_weight cosface_weight multi_similarity_weight centroid_weight "
    "range_weight cluster_weight center_weight center_lr teacher_weight triplet_margin focal_gamma head_margin "
    "weight_decay clip_grad freeze_epochs warmup_epochs warmup_iters delay_epochs ranked_lists save_minutes "
    "query_expansion augmentation_k expansion_alpha bias_decay_factor file_scale",
    "(0, inf)": "width_multiplier head_scale lr backbone_lr_factor bias_lr_factor circle_gamma "
    "cosface_gamma ms_alpha ms_beta",
    "[1, inf)": "test_batch_size epochs eval_every log_every max_rank k1 k2 trials accumulate bad_steps "
    "keep sub_centers",
    "[1, 1024]": "workers images_per_id",
    "[2, 65536]": "batch_size",
    "[16, 8192]": "height width",
    "[0, 65536]": "embedding_dim",
}
RANGE_OF = {name: interval for interval, names in RANGES.items() for name in names.split()}
# all losses with a weight, except losses that need no pairs of images
METRIC_LOSSES = tuple(
    f.name.removesuffix("_weight")
    for f in fields(LossSettings)
    if f.name.endswith("_weight") and f.name not in ("id_weight", "center_weight", "teacher_weight")
)
BOTTLENECKS = (
    "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


class Config:
    """All settings. The constructor takes them by their flat names: `Config(height=384, triplet_weight=0)`."""

    run: RunSettings
    data: DataSettings
    augment: AugmentSettings
    model: ModelSettings
    loss: LossSettings
    solver: SolverSettings
    loop: LoopSettings
    eval: EvalSettings
    typed: frozenset[str] = frozenset()  # names of the settings given on the command line

    def __init__(self, **settings: Any):
        for section, kind in SECTIONS.items():
            setattr(self, section, kind())
        for name, value in settings.items():
            self.set(name, value)

    def get(self, name: str) -> Any:
        """Return a setting by its flat name."""
        return getattr(getattr(self, SECTION_OF[name]), name)

    def set(self, name: str, value: Any) -> None:
        """Change a setting by its flat name. Raises TypeError for an unknown name."""
        if name not in SECTION_OF:
            raise TypeError(f"there is no setting {name}")
        setattr(getattr(self, SECTION_OF[name]), name, value)

    def replace(self, **changes: Any) -> "Config":
        """Return a copy with some settings changed."""
        other = copy.deepcopy(self)
        for name, value in changes.items():
            other.set(name, value)
        return other

    def at_epoch(self, epoch: int) -> "Config":
        """Return the settings with the image size of this training epoch, and padding in proportion to it."""
        return load("config.sizes:at_epoch")(self, epoch) if self.data.start_sizes else self

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by their flat names, as plain values for checkpoints and JSON."""
        return {name: self.get(name) for name in SECTION_OF}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_dict`. Unknown settings are ignored, missing ones get their default.

        Raises UserError for a value of the wrong type.
        """
        known = {name: value for name, value in values.items() if name in SETTINGS}
        return cls(**{name: check_type(name, value, SETTINGS[name].type) for name, value in known.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        default = Config().to_dict()
        return f"Config({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items() if v != default[k])})"

    def check(self) -> "Config":
        """Return self. Raises UserError for values and combinations that cannot work."""
        for name, value in self.to_dict().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{option(name)} must be a finite number, not {value}")
            if name in RANGE_OF:
                check_range(name, value, RANGE_OF[name])
        for problem in self._bad_combinations():
            raise UserError(problem)
        return self

    def _bad_combinations(self) -> Iterator[str]:
        data, model, loss, solver = self.data, self.model, self.loss, self.solver
        if not data.dataset:
            yield "--dataset is empty; give a name, such as market1501"
        if "/" in self.run.name or self.run.name in (".", ".."):
            yield f"--name {self.run.name} must be a plain name, not a path; choose the directory with --log-dir"
        if not all(0 <= value <= most for value, most in zip(self.augment.jitter, (1, 1, 1, 0.5), strict=True)):
            yield f"--jitter is brightness, contrast, saturation (0 to 1) and hue (0 to 0.5), not {self.augment.jitter}"
        if not {len(data.file_mean), len(data.file_std)} <= {0, 3} or 0 in data.file_std:
            yield "--file-mean and --file-std are three numbers each, and --file-std is not 0"
        if any(data.pixel_range) and data.pixel_range[0] >= data.pixel_range[1]:
            yield f"--pixel-range must be the values of black and white, lower first, or 0 0, not {data.pixel_range}"
        if self.data.start_sizes:
            load("config.sizes:stages")(self)
        if self.augment.pad > max(data.height, data.width):
            yield f"--pad {self.augment.pad} is more than the size of the image; 10 is usual for 256 x 128"

        pk, batch, k = data.sampler in ("pk", "pk_cameras"), data.batch_size, data.images_per_id
        if pk and batch % k:
            fit = batch // k * k or k
            yield f"--batch-size {batch} is not a multiple of --images-per-id {k}; try --batch-size {fit}"
        if pk and batch < 2 * k:
            yield f"--batch-size {batch} holds one identity of {k} images; PK needs two, try --batch-size {4 * k}"
        metric = [name for name in METRIC_LOSSES if self.get(f"{name}_weight") > 0]
        alone = {"triplet"} if loss.triplet_alone and loss.triplet == "hard" else set()
        for name in sorted(set(metric) - alone) if not pk or k < 2 else ():
            yield (
                f"the {name} loss needs several images per identity, which --sampler {data.sampler} with "
                f"--images-per-id {k} does not give; use --sampler pk and 2 or more, or {option(name)}-weight 0"
            )
        if not metric and loss.id_weight == loss.center_weight == 0 and not (loss.teacher and loss.teacher_weight):
            yield "all loss weights are 0, so nothing would be learned; set --id-weight or --triplet-weight above 0"

        if solver.nesterov and (solver.optimizer != "sgd" or solver.momentum == 0):
            yield "--nesterov works with SGD only; give --optimizer sgd and --momentum above 0"
        if solver.freeze_epochs > 0 and loss.id_weight == 0:
            yield "with --freeze-epochs only the classifier is trained at first; set --id-weight above 0"
        if list(solver.steps) != sorted(solver.steps):
            yield f"--steps must rise, as in --steps 40 70, not {' '.join(map(str, solver.steps))}"
        if (solver.delay_epochs or solver.min_lr_factor) and solver.schedule == "steps":
            yield "--delay-epochs and --min-lr-factor are for --schedule cosine or linear; with steps, set both to 0"
        if solver.delay_epochs >= solver.epochs:
            yield f"--delay-epochs {solver.delay_epochs} must be below --epochs {solver.epochs}"

        if model.head in ("arcface", "subcenter_arcface") and model.head_margin > math.pi / 2:
            yield f"--head-margin of {model.head} is an angle from 0 to 1.57 (90 degrees), not {model.head_margin}"
        if len(set(model.attention_stages)) < len(model.attention_stages):
            yield f"--attention-stages {' '.join(map(str, model.attention_stages))} names a stage twice"
        if model.stride_in_1x1 and model.backbone not in BOTTLENECKS:
            yield f"--stride-in-1x1 is for {', '.join(BOTTLENECKS)}; leave it out with {model.backbone}"
        if model.stem != "torchvision" and not model.backbone.startswith(("resnet", "resnext", "wide_resnet")):
            yield f"--stem {model.stem} is for ResNets; leave it out with {model.backbone}"
        if model.width_multiplier != 1 and model.backbone != "mobilenet_v2":
            yield f"--width-multiplier is for mobilenet_v2; leave it out with {model.backbone}"
        if model.width_multiplier != 1 and model.weights == "imagenet":
            yield "--weights imagenet exists for --width-multiplier 1 only; give --weights none, or a file"


def option(name: str) -> str:
    """Return the command-line option of a setting: triplet_weight -> --triplet-weight."""
    return "--" + name.replace("_", "-")


def check_range(name: str, value: float, interval: str) -> None:
    """Raises UserError where the value lies outside an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
    first = f"at least {low:g}" if interval[0] == "[" else f"above {low:g}"
    last = "" if high == math.inf else f" and {'at most' if interval[-1] == ']' else 'below'} {high:g}"
    if not inside:
        raise UserError(f"{option(name)} must be {first}{last}, not {value}")


def check_type(name: str, value: Any, kind: Any) -> Any:
    """Return a plain value from a file as the declared type: int, float, bool, str, Literal or a tuple of these.

    Raises UserError for a value of another type.
    """
    inner, words = get_args(kind), {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    if get_origin(kind) is Literal:
        words[kind] = f"one of {', '.join(map(str, inner))}"
        if any(value == choice and type(value) is type(choice) for choice in inner):
            return value
    elif get_origin(kind) is tuple:
        words[kind] = "a list of numbers"
        if isinstance(value, (list, tuple)) and (inner[-1] is Ellipsis or len(value) == len(inner)):
            return tuple(check_type(name, element, inner[0]) for element in value)
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise UserError(f"the setting {name} is {value!r:.100}, but it must be {words[kind]}")
