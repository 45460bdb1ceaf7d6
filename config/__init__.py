from config.config import Config
from config.presets import PRESETS, load_preset
