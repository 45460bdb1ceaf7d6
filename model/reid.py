"""Structure of all models: a backbone and one or more branches, each of them pooled feature → reduction → neck →
classifier (Luo et al., Bag of Tricks, CVPR workshops 2019). `OneBranch` is the plain model, `branches/` has others."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from model.backbones import find_backbone
from model.heads import make_head
from model.pooling import make_pooling
from utils.errors import UserError
from utils.lookup import load
from utils.precision import at_least_float32

# --branches: a class of (Config, number of identities). A new model is one file, and one line here.
BRANCHES = {
    "one": "model.reid:OneBranch",
    "pcb": "model.branches.pcb:PCB",
    "mgn": "model.branches.mgn:MGN",
    "bdb": "model.branches.bdb:BDB",
    "lightmbn": "model.branches.lightmbn:LightMBN",
}


def build_model(cfg: Config, num_classes: int) -> "ReIDModel":
    """Build the model of the settings with random weights. Raises UserError for settings that do not fit together."""
    return load(BRANCHES[cfg.model.branches])(cfg, num_classes)


def make_model(cfg: Config, num_classes: int) -> "ReIDModel":
    """Build the model of the settings with its initial weights. Raises UserError if these cannot be loaded or used."""
    model = build_model(cfg, num_classes)
    if cfg.model.weights != "none":
        model.loaded = load("model.weights:load_initial_weights")(cfg, model)
    return model


class Branch(nn.Module):
    """The layers after the pooling: `fc` reduces the feature (B, C) to (B, width); neck and classifier follow.

    The identity loss uses the classifier's logits. Metric losses use the feature that --metric-feature names, or none
    if `metric` is False.
    """

    def __init__(self, cfg: Config, width: int, num_classes: int, fc: nn.Module | None = None, metric: bool = True):
        super().__init__()
        self.width, self.metric = width, metric
        self.fc = fc or nn.Identity()
        reduction = next((layer for layer in self.fc.modules() if isinstance(layer, nn.Linear)), None)
        pooled = cfg.model.metric_feature == "pooled" and reduction
        self.metric_width = reduction.in_features if pooled else width
        self.neck = bnneck(width) if cfg.model.neck == "bnneck" else nn.Identity()
        self.classifier = make_head(cfg, width, num_classes)


class ReIDModel(nn.Module):
    """Maps normalized images (B, 3, H, W) to logits and features (training) or embeddings (evaluation).

    Training: two lists, the logits (B, C) of every branch, and the features (B, D) of every branch with metric losses:
    pooled, before the neck, or after the neck. Evaluation: the embeddings (B, D) of all branches, concatenated; each is
    L2-normalized so that all weigh the same, unless there is only one branch.
    """

    branches: nn.ModuleList

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.loaded = None  # model.weights.LoadReport: what the initial weights filled
        self.test_after_neck, self.metric_feature = cfg.model.test_feature == "after", cfg.model.metric_feature
        self.backbone = make_backbone(cfg)

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """The pooled feature (B, C) of each branch, in order."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor):
        pooled = self.pooled(images)
        features = [b.fc(x) for b, x in zip(self.branches, pooled, strict=True)]
        after = [b.neck(x) for b, x in zip(self.branches, features, strict=True)]
        if self.training:
            logits = [b.classifier(x) for b, x in zip(self.branches, after, strict=True)]
            seen = {"pooled": pooled, "before": features, "after": after}[self.metric_feature]
            return logits, [x for b, x in zip(self.branches, seen, strict=True) if b.metric]
        embeddings = after if self.test_after_neck else features
        if len(embeddings) == 1:
            return embeddings[0]
        return torch.cat([F.normalize(at_least_float32(x)) for x in embeddings], 1)

    @property
    def heads(self) -> list[nn.Module]:
        """The classifiers, in the order of the logits."""
        return [b.classifier for b in self.branches]

    @property
    def feature_dims(self) -> list[int]:
        """Widths of the features that metric losses use."""
        return [b.metric_width for b in self.branches if b.metric]

    @property
    def embedding_dim(self) -> int:
        return sum(b.width for b in self.branches)


class OneBranch(ReIDModel):
    """One feature of the whole image: the Bag of Tricks baseline (Luo et al., CVPR workshops 2019)."""

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.pool = make_pooling(cfg.model.pooling)
        width, fc = self.backbone.out_channels, None
        if cfg.model.embedding_dim:
            width, fc = cfg.model.embedding_dim, embedding(width, cfg.model.embedding_dim)
            fc = fc[0] if cfg.model.embedding == "linear" else fc
        self.branches = nn.ModuleList([Branch(cfg, width, num_classes, fc)])

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.pool(self.backbone(images))]


def make_backbone(cfg: Config) -> nn.Module:
    """Build the backbone of the settings with its attention. Raises UserError if it does not support attention."""
    backbone = find_backbone(cfg.model.backbone)(cfg)
    for layer in backbone.modules() if cfg.model.bn_momentum else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = cfg.model.bn_momentum
    if cfg.model.attention != "none":
        if not hasattr(backbone, "attention"):
            raise UserError(f"--backbone {cfg.model.backbone} does not support attention; leave --attention out")
        options = (cfg.model.attention_stages, backbone.stage_channels, cfg.model.attention_ratio)
        backbone.attention.update(load("model.attention:make_attention")(cfg.model.attention, *options))
    return backbone


def embedding(inputs: int, width: int) -> nn.Sequential:
    """Embedding layer, pooled features (B, inputs) to (B, width): Linear, batch norm, ReLU.

    PCB, MGN and BDB use it as reduction. OSNet's authors test with its output, with width 512, average pooling and no
    neck; their files call it `fc`.
    """
    linear = nn.Linear(inputs, width)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True))


def bnneck(width: int) -> nn.BatchNorm1d:
    """Batch norm whose bias stays 0, so that the classifier's hyperplanes pass through the origin."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck
