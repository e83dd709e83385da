"""Partitions: nothing lost, nothing twice, deterministic, and the own test looks like the own training data."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.data import Dataset, Samples
from p2pfl.data.dataset import apportion
from p2pfl.data.partition import PARTITIONS, Partition, by_site, describe, dirichlet, iid, shards
from p2pfl.errors import ConfigError, DataError

SEEDS = (0, 1, 7, 123)
CASES = [
    ("iid", 1, {}),
    ("iid", 7, {}),
    ("iid", 600, {}),
    ("dirichlet", 1, {"alpha": 0.5}),
    ("dirichlet", 6, {"alpha": 0.3}),
    ("dirichlet", 13, {"alpha": 100.0}),
    ("shards", 5, {"per_node": 2}),
    ("shards", 11, {"per_node": 1}),
    ("by_site", 3, {}),
]


def make(rows: int = 600, test: int = 200, classes: int = 5, seed: int = 0, sites: int = 3) -> Dataset:
    rng = np.random.default_rng(seed)

    def part(n: int) -> Samples:
        y = rng.permutation(np.arange(n) % classes).astype(np.int32)
        site = rng.permutation(np.arange(n) % sites).astype(np.int32)
        return Samples(rng.normal(size=(n, 3)).astype(np.float32), y, site)

    names = tuple(f"site{i}" for i in range(sites))
    return Dataset(part(rows), part(test), tuple("abcdefghij"[:classes]), names)


def counts(rows: tuple[np.ndarray, ...], y: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([np.bincount(y[r], minlength=classes) for r in rows])


def same(one: Partition, other: Partition) -> bool:
    return all(
        len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("name", "nodes", "arguments"), CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_belongs_to_exactly_one_node(name: str, nodes: int, arguments: dict[str, float], seed: int) -> None:
    dataset = make(seed=seed)
    found = PARTITIONS[name](dataset, nodes, seed, **arguments)
    for parts, samples in ((found.train, dataset.train), (found.test, dataset.test)):
        assert len(parts) == nodes
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(samples.y)))
        assert all(np.array_equal(rows, np.unique(rows)) for rows in parts), "not ascending"
    assert min(len(rows) for rows in found.train) >= 1


@pytest.mark.parametrize(("name", "nodes", "arguments"), CASES)
def test_deterministic_and_a_function_of_the_seed(name: str, nodes: int, arguments: dict[str, float]) -> None:
    dataset = make()
    first = PARTITIONS[name](dataset, nodes, 3, **arguments)
    assert same(first, PARTITIONS[name](dataset, nodes, 3, **arguments))
    if nodes > 1 and name != "by_site":
        assert not same(first, PARTITIONS[name](dataset, nodes, 4, **arguments))


def test_the_table_holds_every_partition_and_can_not_be_changed() -> None:
    assert dict(PARTITIONS) == {"iid": iid, "dirichlet": dirichlet, "shards": shards, "by_site": by_site}
    with pytest.raises(TypeError):
        PARTITIONS["other"] = iid  # type: ignore[index]


@pytest.mark.parametrize("seed", SEEDS)
def test_apportion_keeps_the_total_and_the_quota(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        total, shares = int(rng.integers(0, 500)), rng.dirichlet(np.full(int(rng.integers(1, 20)), 0.3))
        shares[rng.random(len(shares)) < 0.2] = 0
        if shares.sum() == 0:
            continue
        found = apportion(total, shares)
        assert found.sum() == total
        assert np.all(np.abs(found - total * shares / shares.sum()) < 1)
        assert np.all(found[shares == 0] == 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [1, 7, 64])
def test_iid_is_even(nodes: int, seed: int) -> None:
    found = iid(make(), nodes, seed)
    for parts in found:
        sizes = [len(rows) for rows in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_dirichlet_with_a_large_alpha_is_nearly_iid_and_with_a_small_one_is_not(seed: int) -> None:
    dataset = make(rows=3000, test=1000)

    def spread(alpha: float) -> float:
        table = counts(dirichlet(dataset, 5, seed, alpha=alpha).train, dataset.train.y, 5)
        return float(np.abs(table / table.sum(axis=1, keepdims=True) - 0.2).max())

    assert spread(1e5) < 0.01
    assert spread(0.1) > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_dirichlet_cuts_train_and_test_by_the_same_proportions(seed: int) -> None:
    dataset = make(rows=1000, test=500)
    found = dirichlet(dataset, 5, seed, alpha=0.3)
    train, test = counts(found.train, dataset.train.y, 5), counts(found.test, dataset.test.y, 5)
    # 200 train and 100 test rows a class, each within 1 of its quota.
    assert np.all(np.abs(train / 200 - test / 100) < 1 / 200 + 1 / 100)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "arguments"), [("dirichlet", {"alpha": 0.2}), ("shards", {"per_node": 2})])
def test_own_test_resembles_own_training_data(name: str, arguments: dict[str, float], seed: int) -> None:
    dataset = make(rows=2000, test=1000, classes=10)
    found = PARTITIONS[name](dataset, 8, seed, **arguments)
    train, test = counts(found.train, dataset.train.y, 10), counts(found.test, dataset.test.y, 10)
    own = np.abs(train / train.sum(1, keepdims=True) - test / test.sum(1, keepdims=True)).sum(1)
    pooled = np.abs(train / train.sum(1, keepdims=True) - 0.1).sum(1)
    assert own.max() < 0.15, "the test of a node is not like its training data"
    assert pooled.min() > 0.5, "the partition is not uneven, the comparison says nothing"


@pytest.mark.parametrize("seed", SEEDS)
def test_dirichlet_gives_every_node_ten_rows_where_there_are_enough(seed: int) -> None:
    found = dirichlet(make(rows=600), 6, seed, alpha=0.2)
    assert min(len(rows) for rows in found.train) >= 10
    small = dirichlet(make(rows=60), 12, seed, alpha=1.0)  # 5 rows a node: 10 can't be
    assert min(len(rows) for rows in small.train) >= 1


def test_dirichlet_that_can_not_be_names_the_ways_out() -> None:
    with pytest.raises(DataError, match=r"alpha=0\.001 with 30 nodes and 600 train rows.*larger alpha, fewer nodes"):
        dirichlet(make(), 30, 0, alpha=0.001)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("per_node", [1, 2])
def test_shards_give_few_classes_and_even_sizes(per_node: int, seed: int) -> None:
    dataset = make(rows=500, classes=5)
    found = shards(dataset, 5, seed, per_node=per_node)
    assert {len(rows) for rows in found.train} == {100}
    assert np.all((counts(found.train, dataset.train.y, 5) > 0).sum(axis=1) <= per_node)
    test = counts(found.test, dataset.test.y, 5)
    assert np.all(test[counts(found.train, dataset.train.y, 5) == 0] == 0), "test rows of a class it never trains on"


def test_shards_do_not_keep_the_test_rows_for_low_numbers() -> None:
    # 100 nodes of equal shares, 50 test rows: whoever gets one must not be decided by the number of the node.
    found = shards(make(rows=1000, test=50, classes=5), 100, 0, per_node=1)
    holders = [node for node, rows in enumerate(found.test) if len(rows)]
    assert len(holders) > 25
    assert sum(node >= 50 for node in holders) > 5
    late = np.mean(
        [
            np.mean(
                [
                    n >= 50
                    for n, r in enumerate(shards(make(rows=1000, test=50, classes=1), 100, seed, per_node=1).test)
                    if len(r)
                ]
            )
            for seed in range(8)
        ]
    )
    assert 0.3 < late < 0.7


def test_shards_deal_test_rows_of_a_class_that_nobody_trains_on() -> None:
    dataset = make(classes=5)
    keep = dataset.train.y != 3
    site = dataset.train.site
    assert site is not None
    dataset = dataset._replace(train=Samples(dataset.train.x[keep], dataset.train.y[keep], site[keep]))
    found = shards(dataset, 4, 0, per_node=2)
    assert np.array_equal(np.sort(np.concatenate(found.test)), np.arange(200))


def test_by_site_gives_each_node_its_own_site() -> None:
    dataset = make()
    found = by_site(dataset, 3)
    for parts, samples in ((found.train, dataset.train), (found.test, dataset.test)):
        assert samples.site is not None
        for node, rows in enumerate(parts):
            assert set(samples.site[rows].tolist()) == {node}


def test_by_site_refuses_other_numbers_and_data_without_sites() -> None:
    with pytest.raises(DataError, match=r"nodes=4.*3 sites: site0, site1, site2.*nodes = 3"):
        by_site(make(), 4)
    dataset = make()
    bare = dataset._replace(train=dataset.train._replace(site=None), test=dataset.test._replace(site=None), sites=())
    with pytest.raises(DataError, match=r"no sites.*site = "):
        by_site(bare, 3)


@pytest.mark.parametrize(
    ("name", "arguments"), [("iid", {}), ("dirichlet", {"alpha": 1.0}), ("shards", {"per_node": 2}), ("by_site", {})]
)
def test_more_nodes_than_rows_and_odd_arguments_are_refused(name: str, arguments: dict[str, float]) -> None:
    dataset = make(rows=20, test=10)
    with pytest.raises(DataError, match=r"nodes=21: more than the 20 train rows; use fewer"):
        PARTITIONS[name](dataset, 21, 0, **arguments)
    with pytest.raises(ConfigError, match="nodes=0"):
        PARTITIONS[name](dataset, 0, 0, **arguments)
    with pytest.raises(ConfigError, match="seed=-1"):
        PARTITIONS[name](dataset, 3, -1, **arguments)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive_and_finite(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha="):
        dirichlet(make(), 3, 0, alpha=alpha)


def test_shards_refuse_more_shards_than_rows() -> None:
    with pytest.raises(DataError, match=r"nodes=10 times per_node=3 is 30 shards for 20 train rows.*smaller per_node"):
        shards(make(rows=20), 10, 0, per_node=3)
    with pytest.raises(ConfigError, match="per_node=0"):
        shards(make(), 10, 0, per_node=0)


def test_describe_says_sizes_lacking_classes_and_missing_tests() -> None:
    dataset = make(rows=10, test=4, classes=5)
    dataset = dataset._replace(
        train=dataset.train._replace(
            y=np.arange(10, dtype=np.int32) % 5, site=np.array([0] * 5 + [1, 2] + [0] * 3, np.int32)
        )
    )
    rows = [np.array(r) for r in ([0, 1, 2, 3, 4, 7, 8, 9], [5], [6])]
    found = Partition(tuple(rows), (np.arange(4), np.array([], int), np.array([], int)))
    assert describe(found, dataset) == [
        "3 nodes: the smallest is node 1 (site1) with 1 training rows, the largest is node 0 (site0) with 8",
        "node 1 (site1) has no training rows of 4 of 5 classes: b, c, d, e",
        "node 2 (site2) has no training rows of 4 of 5 classes: a, c, d, e",
        "node 1 (site1) has no test rows of its own",
        "node 2 (site2) has no test rows of its own",
    ]


def test_describe_is_short_for_many_nodes_and_quiet_when_all_is_well() -> None:
    said = describe(iid(make(), 300, 0), make())
    assert said[0] == "300 nodes with 2 training rows each"
    assert len(said) <= 1 + 11 + 11
    assert any("290 more nodes lack classes" in line for line in said)
    assert any("90 more nodes have no test rows" in line for line in said)
    assert describe(iid(make(), 3, 0), make()) == ["3 nodes with 200 training rows each"]
