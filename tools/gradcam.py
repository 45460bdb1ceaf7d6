"""Where a model looks: activation maps, and Grad-CAM of the similarity of a pair and of an identity's score.

Images are normalized, (B, 3, H, W); models are in evaluation mode. Maps are float32, one per branch.
"""

import contextlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from model import ReIDModel
from utils.precision import at_least_float32


def activation_maps(model: ReIDModel, images: torch.Tensor) -> torch.Tensor:
    """(B, n, h, w): for each of the backbone's n maps (one, or several if the backbone is split into branches), the
    sum of squares over the channels, as vectors of length 1.

    Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, as torchreid draws it. Maps of several sizes
    are resized to the largest.
    """
    with record_maps(model) as maps:
        model.backbone(images)
    squares = resize_to_largest([at_least_float32(m.detach()).square().sum(1) for m in maps])
    return F.normalize(squares.flatten(2), dim=2).view_as(squares)


def similarity_maps(
    model: ReIDModel, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What makes each image of `first` similar to that of `second`, and the other way round: two times (B, n, h, w),
    where the mean over the n branches is the map of the whole model; and the cosines (B, n).

    A position's value is its part of the branch's cosine, see `contributions`; negative values make the two less
    similar (Grad-CAM's pictures leave them out). The lengths of the embeddings count as constants: the gradient of the
    cosine itself is 0 for equal images, whose cosine can grow no further, and otherwise adds up to 0. It would show how
    to become more similar, not what is similar (cf. Zhu et al., Visual Explanation for Deep Metric Learning, 2021).
    """
    with record_maps(model) as maps:
        pairs = zip(model.branches, model.pooled(torch.cat([first, second])), strict=True)
        embeddings = [b.neck(b.fc(x)) if model.test_after_neck else b.fc(x) for b, x in pairs]
        units = [x / x.detach().norm(dim=1, keepdim=True).clamp(min=1e-12) for x in map(at_least_float32, embeddings)]
        cosines = [(x * x.detach().roll(len(first), 0)).sum(1) for x in units]
        of_first, of_second = contributions(maps, cosines).chunk(2)
    return of_first, of_second, torch.stack(cosines, 1)[: len(first)].detach()


def class_maps(
    model: ReIDModel, images: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes images look like the training identities of class labels (B,), by default those with the highest
    scores: (B, n, h, w), one map per branch; and the logits (B, C), the mean over the branches.

    A position's value is its part of the branch's logit, see `contributions`.
    """
    with record_maps(model) as maps:
        pairs = zip(model.branches, model.pooled(images), strict=True)
        logits = [at_least_float32(b.classifier(b.neck(b.fc(x)))) for b, x in pairs]
        mean = torch.stack(logits).mean(0).detach()
        labels = mean.argmax(1) if labels is None else labels.to(mean.device)
        return contributions(maps, [x.gather(1, labels[:, None])[:, 0] for x in logits]), mean


def contributions(maps: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """What each position of the maps (B, C, h, w) adds to n scores (B,): (B, n, h, w), each of which adds up to its
    score.

    It is gradient times activation, summed over the channels: where all positions have the same gradient, as with
    average pooling, this is Grad-CAM (Selvaraju et al., ICCV 2017) before its ReLU. Otherwise, Grad-CAM would give
    every position the mean gradient, and so show a stripe's branch outside its stripe (Draelos and Carin, HiResCAM,
    2020). The rest of the score, mostly the mean that a BNNeck subtracts, is shared evenly among the positions that the
    score depends on: it is often larger than the score, and without it a map may be negative everywhere.
    """
    rows = []
    for score in scores:
        gradients = torch.autograd.grad(score.sum(), maps, retain_graph=True, materialize_grads=True)
        pairs = zip(maps, gradients, strict=True)
        parts = [(at_least_float32(m.detach()) * at_least_float32(g)).sum(1) for m, g in pairs]
        used = [(g != 0).any(1) for g in gradients]
        rest = at_least_float32(score.detach()) - sum(part.sum((1, 2)) for part in parts)
        rest = rest / sum(u.sum((1, 2)) for u in used).clamp(min=1)
        parts = [part + rest[:, None, None] * u for part, u in zip(parts, used, strict=True)]
        rows.append(resize_to_largest(parts, keep_sum=True).sum(1))
    return torch.stack(rows, 1)


@contextlib.contextmanager
def record_maps(model: ReIDModel) -> Iterator[list[torch.Tensor]]:
    """Yield a list that the next forward pass fills with the backbone's maps; gradients are recorded from there on.

    Recording them in the backbone would take the memory of a training step. No weight gets a gradient.
    """
    maps: list[torch.Tensor] = []

    def cut(_backbone, _inputs, out):
        torch.set_grad_enabled(True)  # until the `no_grad` below ends
        several = not isinstance(out, torch.Tensor)
        maps[:] = [m.detach().requires_grad_() for m in (out if several else [out])]
        return list(maps) if several else maps[0]

    hook = model.backbone.register_forward_hook(cut)
    try:
        with torch.no_grad():
            yield maps
    finally:
        hook.remove()


def resize_to_largest(maps: Sequence[torch.Tensor], keep_sum: bool = False) -> torch.Tensor:
    """Resize maps (B, h, w) of several sizes bilinearly to (B, n, H, W). keep_sum: the sum of each map is kept."""
    size = max((m.shape[1:] for m in maps), key=lambda shape: shape.numel())
    resized = []
    for m in maps:
        share = m.shape[1:].numel() / size.numel() if keep_sum else 1.0
        resized.append(F.interpolate(m[:, None], tuple(size), mode="bilinear")[:, 0] * share)
    return torch.stack(resized, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend an image and a map (h, w), in colors from 0 (and less) to its maximum: (H, W, 3) uint8 RGB."""
    height, width = image.shape[:2]
    heat = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=cv2.INTER_LINEAR).clip(0)
    levels = (255 * heat / max(heat.max(), 1e-12)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.5, colours, 0.5, 0)
