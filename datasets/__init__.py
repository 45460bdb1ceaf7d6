import os
import sys

# What decoders of all kinds refuse to unpack. cv2 reads this once, when it is imported: too late where that is done.
if "cv2" not in sys.modules:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

from datasets.base import ReIDDataset, Sample
from datasets.loaders import Loaders, make_loaders
from datasets.make import DATASETS, make_dataset
from datasets.sampler import PKSampler
