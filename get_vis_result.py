"""Draw ranked lists; the same program as tools/get_vis_result.py, where the project's users expect it."""

from tools.get_vis_result import main
from utils.errors import run

if __name__ == "__main__":
    run(main)
