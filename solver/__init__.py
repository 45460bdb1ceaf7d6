from solver.optimizer import make_optimizers
from solver.schedule import lr_factor, set_lr

__all__ = ["lr_factor", "make_optimizers", "set_lr"]
