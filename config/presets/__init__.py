"""Named recipes, one file a source. Each gives only what differs from the defaults of `Config`.

The comment above a recipe says where it comes from, what was published, as mAP / Rank-1 in per cent on Market-1501 unless
it names another set, and in what it knowingly differs from the source. What differs in most of them is said here once:

* The sources train in half precision but for Tiny, MLR, AGW and SBN on Market-1501; a recipe here says nothing of precision.
* An epoch of Market-1501 has 202 batches in MLR and fast-reid; here 185 of 16 × 4 images, 211 of 4 × 16.
* Rectangles that are erased get ImageNet's mean colour here, in fast-reid and in MLR. DER, HN and AGW fill with about 0.48
  after normalisation instead, SBN with 0.5: light gray.
* DER, HN, SBN and AGW count epochs from 1, so that a step falls an epoch before the number in their files. Only SBN's are
  corrected, where a run has 30 epochs.
* HN, AGW and fast-reid have a non-local block after each of the last two blocks of the ResNet's second stage and the last
  three of its third; here there is one after each of these stages.
"""

from config.config import Config
from config.presets import beyond, demo, der, hn, mlr, sbn, tiny

PRESETS: dict[str, Config] = {}
for _source in (demo, tiny, mlr, der, hn, sbn, beyond):
    PRESETS |= _source.PRESETS
for _name, _preset in PRESETS.items():
    _preset.preset = _name
