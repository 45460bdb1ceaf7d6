"""The pictures of a folder that are nearest to a query, by an exported model and without PyTorch:

python tools/export_onnx.py --preprocessing --output model.onnx
python examples/onnx_search.py model.onnx FOLDER QUERY.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

model, folder, query = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
if session.get_inputs()[0].type != "tensor(uint8)":
    sys.exit(f"{model} does not take pictures; export it with --preprocessing")


def embed(path):
    """The picture's embedding (D,) of length 1; nothing where the file is no picture."""
    picture = cv2.imread(str(path))
    if picture is not None:
        (embedding,) = session.run(None, {"images": picture[None, ..., ::-1]})[0]  # BGR, as cv2 has it, to RGB
        return embedding / np.linalg.norm(embedding)


wanted, files = embed(query), sorted(path for path in Path(folder).rglob("*") if path.is_file())
rows = {path: row for path in files if (row := embed(path)) is not None}
if wanted is None or not rows:
    sys.exit(f"{query} is no picture, or there is none in {folder}")
for path in sorted(rows, key=lambda path: -rows[path] @ wanted)[:10]:
    print(f"{rows[path] @ wanted:.4f}  {path}")
