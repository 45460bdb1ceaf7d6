"""Recipes by name, one file per source. Each gives only what differs from the defaults of `Config`.

docs/recipes.md gives for each recipe the lines of its source that it follows, and where it differs.
results/published.json has the published figures. A recipe whose name ends in _code follows the code of its source; the
recipe with the same name without _code follows its README or paper.
"""

from config.config import Config
from utils.errors import UserError, did_you_mean
from utils.lookup import load

SOURCES = {  # first word of a preset's name: its file
    "demo": "demo", "tiny": "tiny", "mlr": "mlr", "light": "mlr", "der": "der", "hn": "hn", "sbn": "sbn",
    "sbs": "beyond", "agw": "beyond",
}  # fmt: skip


def load_preset(name: str) -> Config:
    """The settings of a preset. Raises UserError for an unknown name."""
    recipes = _recipes(source) if (source := SOURCES.get(name.split("_")[0])) else {}
    if name not in recipes:
        known = describe_presets()
        hint = did_you_mean(name, known, cutoff=0.4) or f"there are: {', '.join(known)}"
        raise UserError(f"no preset is called {name}; {hint}")
    return Config(preset=name, **{k: v for k, v in recipes[name].items() if k != "about"})


def describe_presets() -> dict[str, str]:
    """Return one line about each preset, by name."""
    sources = dict.fromkeys(SOURCES.values())
    return {name: recipe["about"] for source in sources for name, recipe in _recipes(source).items()}


def _recipes(source: str) -> dict[str, dict]:
    return load(f"config.presets.{source}:PRESETS")
