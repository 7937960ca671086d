"""The order of samples: same for any ranks and workers, different for seeds and epochs, complete."""

import numpy as np
import numpy.typing as npt
import pytest

from barlow.data.order import epoch_order, hashed, rank_positions, replacement

Ints = npt.NDArray[np.int64]


def global_batches(order: Ints, batch_size: int, world_size: int) -> list[list[int]]:
    steps = len(order) // (batch_size * world_size)
    return [
        sorted(int(i) for rank in range(world_size) for i in order[rank_positions(s, batch_size, rank, world_size)])
        for s in range(steps)
    ]


def test_the_hash_is_splitmix64() -> None:
    """First outputs of the reference generator started at 0 (Vigna, splitmix64.c)."""
    assert int(hashed(0)[0]) == 0xE220A8397B1DCDAF


def test_the_order_never_changes_between_releases() -> None:
    assert epoch_order(np.arange(10), seed=0, epoch=0).tolist() == [3, 1, 9, 6, 2, 4, 7, 8, 0, 5]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_order_holds_every_index_once_and_depends_on_seed_and_epoch(grouped: bool) -> None:
    indices = np.arange(0, 3000, 3)
    groups = indices // 7 if grouped else None
    orders = [epoch_order(indices, seed=s, epoch=e, groups=groups) for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), indices)
    assert (orders[0] == orders[3]).all()
    for other in (orders[1], orders[2]):
        assert (orders[0] == other).mean() < 0.05


def test_a_sample_keeps_its_rank_among_others_when_some_are_left_out() -> None:
    full = epoch_order(np.arange(500), seed=3, epoch=2)
    part = epoch_order(np.arange(0, 500, 2), seed=3, epoch=2)
    np.testing.assert_array_equal(full[full % 2 == 0], part)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_ranks_together_take_the_global_batch_of_one_process(world_size: int) -> None:
    order = epoch_order(np.arange(1000), seed=0, epoch=5)
    assert global_batches(order, 64 // world_size, world_size) == global_batches(order, 64, 1)


def test_positions_are_uniform() -> None:
    """Over 2,000 epochs each of 8 samples is first 250 times, within 5 standard deviations."""
    firsts = np.array([epoch_order(np.arange(8), seed=0, epoch=e)[0] for e in range(2000)])
    counts = np.bincount(firsts, minlength=8)
    assert np.abs(counts - 250).max() < 5 * np.sqrt(2000 * 1 / 8 * 7 / 8)


def test_grouped_order_opens_a_window_of_groups_at_a_time_and_shuffles_inside_it() -> None:
    groups = np.repeat(np.arange(40), 25)
    order = epoch_order(np.arange(1000), seed=0, epoch=0, groups=groups, window=8)
    for block in order.reshape(5, 200):
        assert len(np.unique(groups[block])) == 8
        assert len(np.unique(groups[block[:25]])) > 4
    opened = np.unique(groups[order[:200]])
    assert not (opened == np.arange(8)).all()


def test_few_groups_are_one_uniform_shuffle() -> None:
    groups = np.repeat(np.arange(4), 25)
    grouped = epoch_order(np.arange(100), seed=1, epoch=1, groups=groups, window=4)
    np.testing.assert_array_equal(grouped, epoch_order(np.arange(100), seed=1, epoch=1))


def test_a_cluster_sees_every_sample_exactly_once_per_epoch() -> None:
    """1,000 shards of uneven size, 64 ranks of 8 workers: the worker that a batch goes to is its number modulo 8."""
    sizes = np.random.default_rng(0).integers(600, 1400, 1000)
    sizes[-1] += -sizes.sum() % (64 * 32)  # the whole fills complete global batches
    groups = np.repeat(np.arange(1000), sizes)
    n, batch, ranks, workers = len(groups), 32, 64, 8
    order = epoch_order(np.arange(n), seed=0, epoch=1, groups=groups)
    seen = np.zeros(n, np.int64)
    steps = np.arange(n // (batch * ranks))
    for rank in range(ranks):
        at = np.stack([rank_positions(int(step), batch, rank, ranks) for step in steps])
        for worker in range(workers):
            np.add.at(seen, order[at[steps % workers == worker]].ravel(), 1)
    assert seen.min() == seen.max() == 1


def test_a_replacement_is_decided_by_seed_epoch_position_and_attempt() -> None:
    indices = np.arange(100, 1100)
    draws = {
        (s, e, p, a): replacement(indices, seed=s, epoch=e, position=p, attempt=a)
        for s in range(2)
        for e in range(2)
        for p in range(20)
        for a in range(2)
    }
    assert all(100 <= i < 1100 for i in draws.values())
    assert len(set(draws.values())) > 130  # 160 draws of 1,000: about 148 different ones
    assert draws[1, 0, 7, 1] == replacement(indices, seed=1, epoch=0, position=7, attempt=1)
