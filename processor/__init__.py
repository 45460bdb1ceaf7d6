from processor.checkpoint import load_model
from processor.evaluate import do_inference
from processor.extract import extract_features, write_features
from processor.extractor import FeatureExtractor
from processor.train import do_train

__all__ = ["FeatureExtractor", "do_inference", "do_train", "extract_features", "load_model", "write_features"]
