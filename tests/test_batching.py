"""Which rows a node trains on."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.batching import Batching, order


@pytest.mark.parametrize("rows, batch_size, local_steps", [(10, 4, 3), (7, 16, 2), (1, 3, 2), (64, 8, 8), (5, 5, 1)])
def test_every_row_is_used_equally_often(rows: int, batch_size: int, local_steps: int) -> None:
    batching = Batching(3, 1, rows, batch_size, local_steps)
    used = np.zeros(rows, int)
    for round in range(1, 31):
        indices = batching.indices(round)
        assert indices.shape == (local_steps, batch_size)
        np.add.at(used, indices.ravel(), 1)
        assert used.max() - used.min() <= 1
        if round * batch_size * local_steps % rows == 0:
            assert used.max() == used.min()


def test_the_stream_is_pass_after_pass() -> None:
    """A batch reaches into the next pass, and no row waits for longer than it takes to see all others twice."""
    rows = 10
    batching = Batching(3, 1, rows, 4, 3)
    stream = np.concatenate([batching.indices(round).ravel() for round in range(1, 6)])
    for number in range(6):
        assert np.array_equal(stream[number * rows : (number + 1) * rows], order(3, 1, rows, number))


def test_it_is_pure_in_seed_node_and_round() -> None:
    base = Batching(3, 1, 40, 8, 2)
    first = [base.indices(round) for round in range(1, 9)]
    for round in (8, 2, 5, 5, 1):  # any order, also backwards
        assert np.array_equal(base.indices(round), first[round - 1])
    for round in (1, 4, 8):  # a restart
        assert np.array_equal(Batching(3, 1, 40, 8, 2).indices(round), first[round - 1])
    assert not np.array_equal(first[0], first[5])  # the rounds of the next pass come in another order
    assert not np.array_equal(Batching(4, 1, 40, 8, 2).indices(1), first[0])
    assert not np.array_equal(Batching(3, 2, 40, 8, 2).indices(1), first[0])


def test_global_random_state_plays_no_part() -> None:
    np.random.seed(0)
    one = Batching(3, 1, 40, 8, 2).indices(1)
    np.random.seed(1)
    assert np.array_equal(Batching(3, 1, 40, 8, 2).indices(1), one)


def test_the_cut_into_rounds_does_not_change_the_stream() -> None:
    """4 steps of 6 rows a round, or 1 step of 24, or 2 rounds of half: the same rows in the same order."""

    def stream(batch_size: int, local_steps: int, rounds: int) -> list[int]:
        batching = Batching(0, 0, 17, batch_size, local_steps)
        return [int(i) for round in range(1, rounds + 1) for i in batching.indices(round).ravel()]

    assert stream(6, 4, 5) == stream(24, 1, 5) == stream(6, 2, 10)


def test_orders_are_permutations_and_differ() -> None:
    orders = [order(seed, node, 50, number) for seed in range(3) for node in range(3) for number in range(3)]
    assert all(np.array_equal(np.sort(o), np.arange(50)) for o in orders)
    assert len({o.tobytes() for o in orders}) == len(orders)
    first = np.array([order(0, node, 10, number)[0] for node in range(40) for number in range(50)])
    counts = np.bincount(first, minlength=10)  # 2000 draws, 200 each, sd 13.4
    assert np.abs(counts - 200).max() < 4.5 * 13.4


def test_no_more_is_kept_than_a_round_needs() -> None:
    batching = Batching(0, 0, 10, 4, 3)
    for round in range(1, 100):
        batching.indices(round)
    assert len(batching._orders) <= 3
