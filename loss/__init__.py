from loss.criterion import Criterion, make_criterion
