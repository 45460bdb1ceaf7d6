from utils.lookup import load

# Imported on first use: training needs no FeatureExtractor, and a program that only loads a model needs no training.
EXPORTS = {
    "FeatureExtractor": "extractor", "load_model": "checkpoint", "do_train": "train", "do_test": "test",
    "do_inference": "evaluate", "extract_features": "evaluate",
}  # fmt: skip


def __getattr__(name: str):
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return load(f"processor.{EXPORTS[name]}:{name}")
