from model.backbones import BACKBONES, find_backbone
from model.branches import BRANCHES
from model.make import build_model, make_model
from model.reid import ReIDModel

__all__ = ["BACKBONES", "BRANCHES", "ReIDModel", "build_model", "find_backbone", "make_model"]
