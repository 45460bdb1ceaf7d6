"""Where a model looks: activation maps, and Grad-CAM of a pair's similarity and of an identity's score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from model import ReIDModel
from utils.precision import wide


def activation_maps(model: ReIDModel, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), normalised, to (B, n, h, w) float32: the sum of squares over the channels of each of the
    backbone's n maps (one, or several behind one another where the backbone is split in branches), as vectors of
    length 1 (Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, as torchreid draws it).

    Maps of several sizes are brought to the largest's.
    """
    with evaluation(model), torch.no_grad():
        maps = as_list(model.backbone(images))
    squares = [wide(m).square().sum(1) for m in maps]
    return F.normalize(at_one_size(squares).flatten(2), dim=2).unflatten(2, largest(squares))


def similarity_maps(
    model: ReIDModel, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What makes each image of `first` (B, 3, H, W) similar to that of `second` (B, 3, H, W), and the other way round:
    two times (B, n, h, w) float32, a map a branch, whose mean over n is the whole model's; and the cosines (B, n).

    A position's value is its part of the branch's cosine, see `contributions`; below 0 it makes the two less similar,
    which Grad-CAM's pictures leave out. The lengths of the embeddings count as constants. The gradient of the cosine
    itself is 0 everywhere where both images are equal, as it can grow no further, and sums up to 0 otherwise: it would
    tell how to become more similar, not what is (cf. Zhu et al., Visual Explanation for Deep Metric Learning, 2021).
    """
    with recorded(model) as maps:
        both = embeddings(model, torch.cat([first, second]))
        units = [x / x.detach().norm(dim=1, keepdim=True).clamp(min=1e-12) for x in both]
        cosines = [(x * x.detach().roll(len(first), 0)).sum(1) for x in units]
        of_first, of_second = contributions(maps, cosines).chunk(2)
    return of_first, of_second, torch.stack(cosines, 1)[: len(first)].detach()


def class_maps(
    model: ReIDModel, images: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes images (B, 3, H, W) look like the training identities of class labels (B,), those with the highest
    scores unless they are given: (B, n, h, w) float32, a map a branch with a classifier, whose mean over n is the whole
    model's; and the logits (B, C), the mean over these branches.

    A position's value is its part of the branch's logit, see `contributions`.
    """
    with recorded(model) as maps:
        logits = [wide(head(x)) for head, x in classified(model, images)]
        total = torch.stack(logits).mean(0).detach()
        chosen = total.argmax(1) if labels is None else labels.to(total.device)
        return contributions(maps, [x.gather(1, chosen[:, None])[:, 0] for x in logits]), total


def contributions(maps: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """What each position adds to n scores (B,) of the maps (B, C, h, w): (B, n, h, w), each of which sums up to its
    score.

    It is gradient times activation, summed over the channels: where all positions have the same gradient, as under
    average pooling, that is Grad-CAM (Selvaraju et al., ICCV 2017) before its ReLU. Elsewhere Grad-CAM would give the
    mean gradient to every position, and so show a stripe's branch outside of its stripe (Draelos and Carin, HiResCAM,
    2020). What is then missing to the score, mostly the mean that a BNNeck takes away, is shared out evenly among the
    positions that the score depends on: it is often larger than the score, and without it a map may be below 0
    everywhere.
    """
    rows = []
    for score in scores:
        gradients = torch.autograd.grad(score.sum(), maps, retain_graph=True, materialize_grads=True)
        parts = [(wide(m.detach()) * wide(g)).sum(1) for m, g in zip(maps, gradients, strict=True)]
        seen = [(g != 0).any(1) for g in gradients]
        rest = wide(score.detach()) - sum(part.sum((1, 2)) for part in parts)
        rest = rest / sum(s.sum((1, 2)) for s in seen).clamp(min=1)
        parts = [part + rest[:, None, None] * s for part, s in zip(parts, seen, strict=True)]
        rows.append(at_one_size(parts, keep_sum=True).sum(1))
    return torch.stack(rows, 1)


def embeddings(model: ReIDModel, images: torch.Tensor) -> list[torch.Tensor]:
    """The embedding (B, D) of each branch, of any length, in float32."""
    features = [branch.fc(x) for branch, x in zip(model.branches, model.pooled(images), strict=True)]
    if model.test_after_neck:
        features = [branch.neck(x) for branch, x in zip(model.branches, features, strict=True)]
    return [wide(x) for x in features]


def classified(model: ReIDModel, images: torch.Tensor) -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """The branches' classifiers, and the feature (B, D) that each of them gets."""
    pairs = zip(model.branches, model.pooled(images), strict=True)
    return [(branch.classifier, branch.neck(branch.fc(x))) for branch, x in pairs if branch.classifier is not None]


@contextlib.contextmanager
def evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def recorded(model: ReIDModel) -> Iterator[list[torch.Tensor]]:
    """Inside, the model runs in evaluation mode; the list has what its backbone gave, to take gradients by.

    What comes before these maps is not recorded, which would take the memory of a training step. No weight gets a
    gradient, and the model is left as it was.
    """
    maps: list[torch.Tensor] = []

    def keep(_backbone, _inputs, out):
        torch.set_grad_enabled(True)  # from here on; the `no_grad` below ends that too
        maps[:] = [m.detach().requires_grad_() for m in as_list(out)]
        return maps[0] if isinstance(out, torch.Tensor) else list(maps)

    hook = model.backbone.register_forward_hook(keep)
    try:
        with evaluation(model), torch.no_grad():
            yield maps
    finally:
        hook.remove()


def as_list(maps: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a backbone gives, one map or several, as a list."""
    return [maps] if isinstance(maps, torch.Tensor) else list(maps)


def largest(maps: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Height and width of the largest of maps (B, h, w)."""
    return max((tuple(m.shape[1:]) for m in maps), key=lambda size: size[0] * size[1])


def at_one_size(maps: Sequence[torch.Tensor], keep_sum: bool = False) -> torch.Tensor:
    """Maps (B, h, w) of several sizes to (B, n, H, W), bilinearly; keep_sum: so that positions add up to the same."""
    height, width = largest(maps)
    resized = []
    for m in maps:
        share = m[0].numel() / (height * width) if keep_sum else 1.0
        if m.shape[1:] != (height, width):
            m = F.interpolate(m[:, None], (height, width), mode="bilinear")[:, 0] * share
        resized.append(m)
    return torch.stack(resized, 1)
