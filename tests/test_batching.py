"""Which rows a node trains on."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl import random_bits
from p2pfl.learning.batching import Batching, one, orders


def order(seed: int, node: int, rows: int, number: int) -> np.ndarray:
    return orders(seed, np.array([node]), np.array([rows]), np.array([number]))[0]


@pytest.mark.parametrize("rows, batch_size, local_steps", [(10, 4, 3), (7, 16, 2), (1, 3, 2), (64, 8, 8), (5, 5, 1)])
def test_every_row_is_used_equally_often(rows: int, batch_size: int, local_steps: int) -> None:
    batching = one(3, 1, rows, local_steps, batch_size)
    used = np.zeros(rows, int)
    for turn in range(1, 31):
        indices = batching.indices(turn)
        assert indices.shape == (1, local_steps, batch_size)
        np.add.at(used, indices.ravel(), 1)
        assert used.max() - used.min() <= 1
        if turn * batch_size * local_steps % rows == 0:
            assert used.max() == used.min()


def test_the_stream_is_pass_after_pass() -> None:
    """A batch reaches into the next pass, and no row waits for longer than it takes to see all others twice."""
    rows = 10
    batching = one(3, 1, rows, 3, 4)
    stream = np.concatenate([batching.indices(turn).ravel() for turn in range(1, 6)])
    for number in range(6):
        assert np.array_equal(stream[number * rows : (number + 1) * rows], order(3, 1, rows, number))


def test_it_is_pure_in_seed_node_and_turn() -> None:
    base = one(3, 1, 40, 2, 8)
    first = [base.indices(turn) for turn in range(1, 9)]
    for turn in (8, 2, 5, 5, 1):  # any order, also backwards
        assert np.array_equal(base.indices(turn), first[turn - 1])
    for turn in (1, 4, 8):  # a restart
        assert np.array_equal(one(3, 1, 40, 2, 8).indices(turn), first[turn - 1])
    assert not np.array_equal(first[0], first[5])  # the turns of the next pass come in another order
    assert not np.array_equal(one(4, 1, 40, 2, 8).indices(1), first[0])
    assert not np.array_equal(one(3, 2, 40, 2, 8).indices(1), first[0])


def test_global_random_state_plays_no_part() -> None:
    np.random.seed(0)
    indices = one(3, 1, 40, 2, 8).indices(1)
    np.random.seed(1)
    assert np.array_equal(one(3, 1, 40, 2, 8).indices(1), indices)


def test_the_cut_into_turns_does_not_change_the_stream() -> None:
    """4 steps of 6 rows a turn, or 1 step of 24, or 2 turns of half: the same rows in the same order."""

    def stream(batch_size: int, local_steps: int, turns: int) -> list[int]:
        batching = one(0, 0, 17, local_steps, batch_size)
        return [int(i) for turn in range(1, turns + 1) for i in batching.indices(turn).ravel()]

    assert stream(6, 4, 5) == stream(24, 1, 5) == stream(6, 2, 10)


def test_orders_are_permutations_and_differ() -> None:
    found = [order(seed, node, 50, number) for seed in range(3) for node in range(3) for number in range(3)]
    assert all(np.array_equal(np.sort(o), np.arange(50)) for o in found)
    assert len({o.tobytes() for o in found}) == len(found)
    node, number = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(50)))
    first = orders(0, node, np.full(2000, 10), number)[:, 0]
    counts = np.bincount(first, minlength=10)  # 2000 draws, 200 each, sd 13.4
    assert np.abs(counts - 200).max() < 4.5 * 13.4


def test_an_order_does_not_depend_on_the_others() -> None:
    """Nor on how many rows the widest node has."""
    node, rows, number = np.array([5, 2, 9, 0]), np.array([3, 1, 65, 64]), np.array([0, 7, 2, 2])
    whole = orders(1, node, rows, number)
    for i in range(4):
        # the lowest bits hold the row: other widths cut the keys elsewhere, which may swap only keys equal above that
        assert np.array_equal(whole[i, : rows[i]], order(1, int(node[i]), int(rows[i]), int(number[i])))


def test_ragged_nodes_are_the_single_ones() -> None:
    node, rows, steps = np.array([7, 0, 3, 4]), np.array([1, 23, 8, 40]), np.array([2, 4, 0, 1])
    whole = Batching(3, node, rows, steps, 5)
    for turn in (1, 2, 3, 9, 4):
        indices = whole.indices(turn)
        assert indices.shape == (4, 4, 5)
        for i in range(4):
            assert np.array_equal(
                indices[i, : steps[i]], one(3, int(node[i]), int(rows[i]), int(steps[i]), 5).indices(turn)[0]
            )
        assert (indices < rows[:, None, None]).all()
        assert not indices[np.arange(4)[None, :] >= steps[:, None]].any()  # beyond its own steps: its first row


def test_no_more_is_kept_than_an_order_per_node() -> None:
    batching = one(0, 0, 10, 3, 4)
    for turn in range(1, 100):
        batching.indices(turn)
    assert batching._order.shape == (1, 10)


# -------------------------------------------------------------------------------------------------------------- draws


def test_bits_are_those_of_splitmix() -> None:
    """One key: the first output of SplitMix64 with the state seed = 0x9E37... ^ key, from Vigna's reference in C."""

    def reference(key: int) -> int:
        mask = (1 << 64) - 1
        z = ((0x9E3779B97F4A7C15 ^ key) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for key in (0, 1, 12345, (1 << 63) + 17):
        assert int(random_bits.bits(np.uint64(key))) == reference(key)


def test_draws_broadcast_and_are_uniform() -> None:
    a, b = np.arange(300)[:, None], np.arange(400)[None, :]
    u = random_bits.uniform(1, a, b)
    assert u.shape == (300, 400)
    assert u[7, 11] == random_bits.uniform(1, 7, 11)
    assert (u >= 0).all() and (u < 1).all()
    n = u.size
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * n)
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 4 * np.sqrt(2 * 63)  # chi squared, 63 degrees of freedom
    # neighbours in either key, and the two orders of the keys, are uncorrelated: sd of a correlation 1 / sqrt(n)
    square = random_bits.uniform(1, a, a.T)
    for x, y in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (square, square.T)):
        off = x != y
        assert abs(np.corrcoef(x[off], y[off])[0, 1]) < 6 / np.sqrt(off.sum())
