from utils.lookup import load

# Imported on first use: training needs no FeatureExtractor, and a program that only loads a model needs no training.
_EXPORTS = {
    "FeatureExtractor": "processor.extractor",
    "do_inference": "processor.evaluate",
    "do_test": "processor.test",
    "do_train": "processor.train",
    "extract_features": "processor.evaluate",
    "load_model": "processor.checkpoint",
}


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return load(f"{_EXPORTS[name]}:{name}")
