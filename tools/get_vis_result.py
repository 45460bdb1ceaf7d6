"""The same program as get_vis_result.py in the main directory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from get_vis_result import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
