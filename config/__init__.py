from config.config import Config
from config.presets import load_preset
