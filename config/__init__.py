from config.config import Config
from config.presets import PRESETS

__all__ = ["PRESETS", "Config"]
