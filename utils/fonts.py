"""Characters that the default font of pictures lacks."""

import contextlib
import functools
import logging
import re
import warnings

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font


@functools.cache
def drawable(character: str) -> str:
    """Return the character, and use another installed font if the default lacks it; its escape if no font has it."""
    family = installed_glyphs().get(ord(character))
    if family is None:
        warnings.warn("some characters in names are in no installed font; they are drawn as \\u0000", stacklevel=2)
        return character.encode("unicode_escape").decode()
    families = rcParams["font.family"]
    if family and family not in families:
        families.append(family)
    return character


@functools.cache
def installed_glyphs() -> dict[int, str]:
    """Characters that can be drawn, with the family of an installed font that has them; "": the default one."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports weights that a font lacks
    found = {}
    for family in ["", *sorted({font.name for font in fontManager.ttflist})]:
        # leave out TeX's fonts, the font of empty boxes, and color fonts, which matplotlib cannot draw
        if not re.match("cm|Last Resort|.*Color", family):
            with contextlib.suppress(OSError, RuntimeError):  # a damaged font
                for code in FT2Font(findfont(FontProperties(family or None))).get_charmap():
                    found.setdefault(code, family)
    return found
