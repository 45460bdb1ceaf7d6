"""Cluster loss (Alex et al., Cluster Loss for Person Re-Identification, 2018)."""

import torch

from loss.matrices import euclidean_distances, first_images, means
from loss.pairs import MASKED, check_any, distance, masked_mean, pair_masks
from utils.precision import at_least_float32


def cluster_loss(features: torch.Tensor, labels: torch.Tensor, margin: float = 10.0) -> torch.Tensor:
    """Mean over identities of max(0, margin + radius - distance to the nearest other identity).

    The center of an identity is the mean of its images in the batch; its radius is the distance to the farthest image.
    features (B, D), labels (B,); distances are euclidean, in float32. The default margin comes from reid_baseline with
    SyncBN. Raises ValueError when there is only one identity (with labels on a GPU the loss is then 0).
    """
    positive, negative = pair_masks(labels)
    check_any(negative.any(), "the cluster loss needs a batch with two identities")
    centroids = means(~negative, features)
    to_own = distance(at_least_float32(features), centroids)
    radius = to_own.expand(len(labels), -1).masked_fill(negative, MASKED).amax(1)
    nearest = euclidean_distances(centroids, centroids).masked_fill(~negative, torch.inf).amin(1)
    return masked_mean(torch.relu(margin + radius - nearest), first_images(positive) & negative.any(1))
