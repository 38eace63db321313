"""Which sample comes when: a permutation of (seed, epoch) alone, the same for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """Names one view of one sample; with the run's seed it decides the view's augmentation."""

    epoch: int
    index: int
    repeat: int


def seed_of(*entropy: int) -> int:
    """A 63-bit seed from several non-negative integers; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of `SampleKey`s for all processes, in the order in which Accelerate deals them out.

    An epoch visits each sample `num_repeats` times (repeated augmentation, Hoffer et al., arXiv 1901.09335) and is
    padded by wrap-around to whole optimizer steps, so no sample is dropped and every batch is full. The repeats of a
    sample fall into the same optimizer step wherever they fit, never side by side, so that mixing a batch with itself
    rolled by one does not mix two views of one image.

    Args:
        num_samples: samples in the dataset, >= 1.
        batch_size: samples of one process in one forward pass.
        batches_per_step: processes times accumulated batches: the batches of one optimizer step.
        num_repeats: views of each sample in an epoch.
        seed: with the epoch's number it fixes the permutation.
    """

    # Accelerate's sharding reads it: every batch is full, there is nothing to drop.
    drop_last = False

    def __init__(self, num_samples: int, batch_size: int, batches_per_step: int, *, num_repeats: int = 1, seed: int):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples * self.num_repeats // (self.batch_size * self.batches_per_step))

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batches_per_step

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        permutation = np.random.default_rng(seed_of(self.seed, self.epoch)).permutation(self.num_samples)
        # Blocks of as many distinct samples as one step holds, each block repeated as a whole.
        block = max(self.batch_size * self.batches_per_step // self.num_repeats, 1)
        blocks = [permutation[start : start + block] for start in range(0, self.num_samples, block)]
        index = np.concatenate([np.tile(block, self.num_repeats) for block in blocks])
        repeat = np.concatenate([np.repeat(np.arange(self.num_repeats), len(block)) for block in blocks])
        total = len(self) * self.batch_size
        return np.resize(index, total), np.resize(repeat, total)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        index, repeat = self._order()
        for start in range(0, len(index), self.batch_size):
            stop = start + self.batch_size
            yield [SampleKey(self.epoch, int(i), int(r)) for i, r in zip(index[start:stop], repeat[start:stop])]
