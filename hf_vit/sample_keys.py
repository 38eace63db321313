"""Names of the views of samples, and seeds made from them."""

from typing import NamedTuple

import numpy as np


class SampleKey(NamedTuple):
    """Names one view of one sample; with the run's seed it decides the view's augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]  # which hides `tuple.index`
    repeat: int


def seed_of(*entropy: int) -> int:
    """A 63-bit seed from several non-negative integers; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
