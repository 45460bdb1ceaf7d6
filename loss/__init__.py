from loss.center import CenterLoss
from loss.criterion import Criterion, make_criterion
from loss.triplet import batch_hard_triplet

__all__ = ["CenterLoss", "Criterion", "batch_hard_triplet", "make_criterion"]
