from loss.criterion import Criterion, make_criterion

__all__ = ["Criterion", "make_criterion"]
