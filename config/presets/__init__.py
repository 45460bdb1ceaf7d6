"""Named recipes, one file a source. Each gives only what differs from the defaults of `Config`.

The comment above a recipe says where it comes from, what was published (mAP / Rank-1 in per cent on Market-1501, unless
it names another set), and in what it knowingly differs from the source. What differs in several is said here once:

* HN, fast-reid, and SBN but for its first figures, train in half precision; recipes say nothing of precision.
* The rate moves with every step here, once an epoch in Tiny, AGW, DER, HN and SBN. All of these but HN count epochs
  from 1, so that a step falls an epoch before the number in their files; SBN's, whose runs are short, are corrected.
* An epoch of Market-1501 has 202 batches in MLR and fast-reid, 185 (K = 4) or 211 (K = 16) here.
* Erased rectangles get ImageNet's mean colour here, in MLR and in fast-reid; Tiny, AGW, DER and HN fill with about 0.48
  after normalisation, SBN with 0.5: a lighter gray.
* AGW, HN and fast-reid put a non-local block after each of the last two blocks of the ResNet's second stage and the
  last three of its third, here there is one after each of these stages. The last two do not pad the first max pooling.
"""

from config.config import Config
from config.presets import beyond, demo, der, hn, mlr, sbn, tiny

PRESETS: dict[str, Config] = {}
for _source in (demo, tiny, mlr, der, hn, sbn, beyond):
    PRESETS |= _source.PRESETS
for _name, _preset in PRESETS.items():
    _preset.preset = _name
