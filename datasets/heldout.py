"""A test split from training identities."""

from datasets.base import Sample, identities, keep_ids
from utils.errors import UserError


def last_identities(samples: list[Sample], count: int) -> list[Sample]:
    """The images of the `count` identities that `label_map` puts last; of all if there are no more."""
    pids = identities(samples)
    return keep_ids(samples, pids[max(len(pids) - count, 0) :])


def heldout_split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Training images to query and gallery as in Market-1501: one query per identity and camera, the rest gallery.

    The query is the first image by path. A camera's only image of an identity stays in the gallery, for the queries of
    the other cameras, so that every query has a match. Identities seen by one camera only are distractors. Raises
    UserError if there is no query.
    """
    samples = sorted(samples)
    cameras: dict[int, set[int]] = {}
    images: dict[tuple[int, int], list[Sample]] = {}
    for s in samples:
        cameras.setdefault(s.pid, set()).add(s.camid)
        images.setdefault((s.pid, s.camid), []).append(s)
    query = {group[0] for (pid, _), group in images.items() if len(group) > 1 and len(cameras[pid]) > 1}
    if not query:
        raise UserError(
            f"none of {len(cameras)} training identities has two images under one camera and another under a second, "
            "so they give no query; use more identities"
        )
    return [s for s in samples if s in query], [s for s in samples if s not in query]
