from model.backbones import BACKBONES, find_backbone
from model.reid import ReIDModel, make_model

__all__ = ["BACKBONES", "ReIDModel", "find_backbone", "make_model"]
