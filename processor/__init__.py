from processor.checkpoint import load_model
from processor.evaluate import do_inference, extract_features
from processor.train import do_train

__all__ = ["do_inference", "do_train", "extract_features", "load_model"]
