"""Range loss (Zhang et al., Range Loss for Deep Face Recognition with Long-Tailed Training Data, ICCV 2017)."""

import torch

from loss.matrices import euclidean_distances, first_images, means
from loss.pairs import MASKED, pair_masks


def range_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    margin: float = 0.1,
    intra: float = 0.5,
    inter: float = 0.5,
    k: int = 2,
) -> torch.Tensor:
    """intra·(sum over identities of their range) + inter·max(0, margin - distance of the two nearest identities).

    An identity's range is the harmonic mean of the k largest distances between its images, or of all if there are
    fewer; an identity with one image has no range. The distance of two identities is that of their means in the batch.
    features (B, D), labels (B,); distances are euclidean, in float32, and not squared. Defaults and distances follow
    reid_baseline with SyncBN. Raises ValueError for fewer than two images.
    """
    if len(labels) < 2:
        raise ValueError("the range loss needs a batch with two images")
    positive, negative = pair_masks(labels)
    ranges = largest_distances(features, positive, k)
    exists = ranges > 0
    harmonic = exists.sum(1) / torch.where(exists, 1 / ranges, 0.0).sum(1).clamp(min=1e-30)
    within = torch.where(first_images(positive), harmonic, 0.0).sum()
    centroids = means(~negative, features)
    nearest = euclidean_distances(centroids, centroids).masked_fill(~negative, torch.inf).amin()
    return intra * within + inter * torch.relu(margin - nearest)


def largest_distances(features: torch.Tensor, positive: torch.Tensor, k: int) -> torch.Tensor:
    """(B, <=k) largest distances between images of each image's identity; MASKED where there are no more pairs."""
    images = len(features)
    once = positive.triu()  # each pair counts once
    of_rows = euclidean_distances(features, features).masked_fill(~once, MASKED).topk(min(k, images), 1).values
    same = positive | torch.eye(images, dtype=torch.bool, device=features.device)
    candidates = same.repeat_interleave(of_rows.shape[1], 1)  # an identity's k largest are among its rows' k
    of_identity = of_rows.flatten().expand(images, -1).masked_fill(~candidates, MASKED)
    return of_identity.topk(min(k, of_identity.shape[1]), 1).values
