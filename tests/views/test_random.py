import numpy as np
import pytest
import torch
from scipy import stats

from barlow.views.random import Stream, random_bits, sample_keys


def stream(ids: torch.Tensor, seed: int = 0, epoch: int = 0, view: int = 0) -> Stream:
    return Stream.of(seed, epoch, ids, [view])


def test_bits_are_the_published_sequence_of_splitmix64() -> None:
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = random_bits(torch.tensor([1234567]), 4)[0]
    assert [word % 2**64 for word in words.tolist()] == expected


def test_draws_follow_the_sample_not_its_place_in_the_batch() -> None:
    ids = torch.tensor([5, 9, 1000000007, 2])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(stream(ids).table[order], stream(ids[order]).table)
    assert torch.equal(stream(ids).field("x", 7)[order], stream(ids[order]).field("x", 7))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}, {"view": 1}])
def test_every_part_of_the_key_changes_all_draws(changed: dict[str, int]) -> None:
    ids = torch.arange(50)
    assert not (stream(ids).table == stream(ids, **changed).table).any()


def test_numpy_integers_count_as_the_numbers_they_are() -> None:
    ids = torch.arange(4)
    assert torch.equal(stream(ids, np.int64(3), np.int32(1)).table, stream(ids, 3, 1).table)  # type: ignore[arg-type]


def test_views_of_a_stream_are_the_streams_of_its_views() -> None:
    ids = torch.arange(4)
    both = Stream.of(3, 1, ids, [0, 2])
    assert torch.equal(both.table, torch.cat([stream(ids, 3, 1, 0).table, stream(ids, 3, 1, 2).table]))


def test_neighbouring_ids_and_ops_are_uncorrelated_and_uniform() -> None:
    table = stream(torch.arange(20000)).table
    assert table.min() >= 0.0
    assert table.max() < 1.0
    correlation = torch.corrcoef(table.T).fill_diagonal_(0.0).abs().max()
    assert correlation < 4.5 / 20000**0.5  # 4.5 standard errors, over some 800 pairs of columns
    along = torch.corrcoef(torch.stack([table[:-1, 0], table[1:, 0]]))[0, 1].abs()
    assert along < 4.5 / 20000**0.5
    for column in table.T[::5]:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4


def test_normal_field_is_standard_normal() -> None:
    field = stream(torch.arange(200)).field("noise", 101)
    assert stats.kstest(field.flatten().numpy(), "norm").pvalue > 1e-3
    halves = torch.corrcoef(torch.stack([field[:, :50].flatten(), field[:, 51:].flatten()]))[0, 1]
    assert halves.abs() < 4 / 10000**0.5


def test_integers_are_uniform_on_their_range() -> None:
    counts = torch.bincount(stream(torch.arange(24000)).integer("jitter order", 24), minlength=24)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_chance_has_its_probability_and_its_ends() -> None:
    draws = stream(torch.arange(40000))
    assert abs(draws.chance("blur", 0.2).double().mean() - 0.2) < 4 * (0.16 / 40000) ** 0.5
    assert draws.chance("blur", 1.0).all()
    assert not draws.chance("blur", 0.0).any()


def test_keys_of_different_names_differ() -> None:
    ids = torch.arange(1000)
    assert not (sample_keys(ids, "a") == sample_keys(ids, "b")).any()
