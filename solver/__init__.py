from solver.optimizer import make_optimizer, restore_optimizer, set_frozen
from solver.schedule import lr_factor, set_lr, settings_without_effect

__all__ = ["lr_factor", "make_optimizer", "restore_optimizer", "set_frozen", "set_lr", "settings_without_effect"]
