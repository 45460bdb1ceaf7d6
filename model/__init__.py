from model.backbones import BACKBONES
from model.reid import ReIDModel, make_model

__all__ = ["BACKBONES", "ReIDModel", "make_model"]
