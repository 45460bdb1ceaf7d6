from solver.average import make_average, update_average
from solver.optimizer import make_optimizer, restore_optimizer, set_frozen
from solver.schedule import beyond_the_end, lr_factor, set_lr

__all__ = [
    "beyond_the_end",
    "lr_factor",
    "make_average",
    "make_optimizer",
    "restore_optimizer",
    "set_frozen",
    "set_lr",
    "update_average",
]
