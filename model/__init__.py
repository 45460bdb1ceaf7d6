from model.backbones import BACKBONES, find_backbone
from model.reid import BRANCHES, ReIDModel, build_model, make_model
