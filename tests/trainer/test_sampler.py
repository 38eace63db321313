"""The order of samples: complete, full, fixed by (seed, epoch), the same for any number of processes."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from hf_vit.sample_keys import seed_of
from hf_vit.trainer.sampler import EpochBatchSampler


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "batches_per_step", "num_repeats"),
    [(10, 4, 1, 1), (7, 2, 3, 1), (3, 8, 2, 1), (64, 8, 2, 3), (5, 4, 2, 3), (1, 1, 1, 1)],
)
def test_every_sample_comes_and_every_batch_is_full(num_samples, batch_size, batches_per_step, num_repeats):
    sampler = EpochBatchSampler(num_samples, batch_size, batches_per_step, num_repeats=num_repeats, seed=0)
    batches = epoch_of(sampler, 3)
    assert len(batches) == len(sampler) == sampler.steps_per_epoch * batches_per_step
    assert {len(batch) for batch in batches} == {batch_size}
    keys = [key for batch in batches for key in batch]
    assert {(key.index, key.repeat) for key in keys} == {
        (i, r) for i in range(num_samples) for r in range(num_repeats)
    }
    assert len(keys) - num_samples * num_repeats < batch_size * batches_per_step
    assert {key.epoch for key in keys} == {3}


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = (EpochBatchSampler(50, 5, 2, seed=1) for _ in range(2))
    epoch_of(second, 0)
    assert epoch_of(first, 4) == epoch_of(second, 4)
    others = [epoch_of(first, 5), epoch_of(EpochBatchSampler(50, 5, 2, seed=2), 4)]
    assert all(
        [k.index for b in other for k in b] != [k.index for b in epoch_of(first, 4) for k in b] for other in others
    )


def test_two_processes_see_the_optimizer_steps_of_one():
    one = epoch_of(EpochBatchSampler(37, 8, 1, seed=0), 2)
    both = EpochBatchSampler(37, 4, 2, seed=0)
    both.set_epoch(2)
    ranks = [list(BatchSamplerShard(both, num_processes=2, process_index=rank)) for rank in range(2)]
    assert [left + right for left, right in zip(*ranks)] == one


def test_views_of_one_image_meet_in_a_step_but_are_never_neighbours():
    batches = epoch_of(EpochBatchSampler(48, 12, 1, num_repeats=3, seed=0), 0)
    for batch in batches:
        indices = [key.index for key in batch]
        assert sorted(np.unique(indices, return_counts=True)[1]) == [3, 3, 3, 3]
        assert all(left != right for left, right in zip(indices, indices[1:] + indices[:1]))


def test_near_seeds_are_unrelated():
    assert len({seed_of(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}) == 1000
