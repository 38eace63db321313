"""Which sample comes when: a permutation of (seed, epoch) alone, the same for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from hf_vit.sample_keys import SampleKey, seed_of


class _StepSampler(Sampler[list[SampleKey]]):
    """Batches of `SampleKey`s for all processes, in the order in which Accelerate deals them out, in whole steps."""

    # Accelerate's sharding reads it: there are whole steps only, nothing to drop.
    drop_last = False
    steps_per_epoch: int
    samples_per_batch: float  # mean over an epoch

    def __init__(self, num_samples: int, batches_per_step: int, seed: int):
        self.num_samples = num_samples
        self.batches_per_step = batches_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batches_per_step

    @property
    def samples_per_step(self) -> float:
        """Samples of all processes in one optimizer step, the mean over an epoch."""
        return self.samples_per_batch * self.batches_per_step


class EpochBatchSampler(_StepSampler):
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

    def __init__(self, num_samples: int, batch_size: int, batches_per_step: int, *, num_repeats: int = 1, seed: int):
        super().__init__(num_samples, batches_per_step, seed)
        self.batch_size = self.samples_per_batch = batch_size
        self.num_repeats = num_repeats

    @property
    def steps_per_epoch(self) -> int:  # type: ignore[override]  # of what it is made of
        return -(-self.num_samples * self.num_repeats // (self.batch_size * self.batches_per_step))

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


class BalancedBatchSampler(EpochBatchSampler):
    """The same for classes of unequal sizes: an epoch has as many samples, equally many (but for one) of each class.

    The samples of a class come in turn, those of a small one several times, each time as another view (repeat).

    Args:
        labels: class index of each sample, (num_samples,).
    """

    def __init__(self, labels: np.ndarray, batch_size: int, batches_per_step: int, *, seed: int):
        super().__init__(len(labels), batch_size, batches_per_step, seed=seed)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed_of(self.seed, self.epoch))
        total, num_classes = len(self) * self.batch_size, len(self.members)
        # Which classes get one more differs between epochs.
        shares = np.full(num_classes, total // num_classes)
        shares[generator.permutation(num_classes)[: total % num_classes]] += 1
        index, repeat = [], []
        for members, share in zip(self.members, shares):
            rounds = -(-int(share) // len(members))
            index.append(np.concatenate([generator.permutation(members) for _ in range(rounds)])[:share])
            repeat.append(np.repeat(np.arange(rounds), len(members))[:share])
        order = generator.permutation(total)
        return np.concatenate(index)[order], np.concatenate(repeat)[order]


class TokenBatchSampler(_StepSampler):
    """Batches of about equally many tokens, of pairs of texts of like length.

    The pairs are sorted by their lengths, those of equal lengths in the epoch's random order, and cut into batches,
    which come in random order. The cuts depend on the lengths alone, so every epoch has as many batches. An epoch is
    padded by wrap-around to whole optimizer steps.

    Args:
        lengths: tokens of source and target, (num_samples, 2).
        max_tokens: most tokens of source and target in a batch, padding included.
        batches_per_step: processes times accumulated batches: the batches of one optimizer step.
        seed: with the epoch's number it fixes the order.

    Raises:
        ValueError: `max_tokens` is less than the longest pair has.
    """

    def __init__(self, lengths: np.ndarray, max_tokens: int, batches_per_step: int, *, seed: int):
        super().__init__(len(lengths), batches_per_step, seed)
        longest = int(lengths.sum(axis=1).max())
        if max_tokens < longest:
            raise ValueError(
                f"--max_tokens_per_batch must be >= {longest}, the tokens of the longest pair, found {max_tokens}"
            )
        self.lengths = lengths
        self.max_tokens = max_tokens
        self.starts = self._cut(self.lengths[self._sorted(np.arange(len(lengths)))])
        self.steps_per_epoch = -(-len(self.starts) // batches_per_step)
        self.samples_per_batch = len(lengths) / len(self.starts)

    def _sorted(self, permutation: np.ndarray) -> np.ndarray:
        source, target = self.lengths[permutation].T
        return permutation[np.lexsort((target, source))]

    def _cut(self, lengths: np.ndarray) -> np.ndarray:
        """The indices at which the batches of pairs in this order start."""
        starts, widest = [0], np.zeros(2, dtype=int)
        for index, pair in enumerate(lengths):
            widest = np.maximum(widest, pair)
            if (index + 1 - starts[-1]) * widest.sum() > self.max_tokens:
                starts.append(index)
                widest = pair
        return np.array(starts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = np.random.default_rng(seed_of(self.seed, self.epoch))
        batches = np.split(self._sorted(generator.permutation(self.num_samples)), self.starts[1:])
        for number in np.resize(generator.permutation(len(batches)), len(self)):
            yield [SampleKey(self.epoch, int(index), 0) for index in batches[number]]
