from solver.average import make_average, update_average
from solver.optimizer import make_optimizer, restore_optimizer, set_frozen
from solver.schedule import lr_factor, set_lr, settings_without_effect

__all__ = [
    "lr_factor",
    "make_average",
    "make_optimizer",
    "restore_optimizer",
    "set_frozen",
    "set_lr",
    "settings_without_effect",
    "update_average",
]
