import os
import sys

# cv2 refuses images with more pixels. It reads this limit once, on import, so setting it later has no effect.
if "cv2" not in sys.modules:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

from datasets.base import ReIDDataset, Sample
from datasets.loaders import Loaders, make_loaders
from datasets.make import DATASETS, make_dataset
from datasets.sampler import PKSampler
