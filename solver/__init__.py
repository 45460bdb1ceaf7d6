from solver.optimizer import make_optimizer, set_frozen
from solver.schedule import lr_factor, set_lr, settings_without_effect
