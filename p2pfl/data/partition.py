"""Partitions: rows dealt to nodes evenly, unevenly by class, or as the sites have them.

Every train row and every test row belongs to exactly one node. A node's own test rows follow the same rule as its
training rows, so that "how well does it serve this hospital" is a question with an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from p2pfl.check import at_least, positive
from p2pfl.data.dataset import Dataset, apportion
from p2pfl.data.stored import Stored
from p2pfl.errors import ConfigError, DataError

# One constant per purpose of randomness, so that the same seed elsewhere does not draw the same numbers.
IID_PURPOSE, DIRICHLET_PURPOSE, SHARDS_PURPOSE = 0x11D, 0xD12, 0x5A2D
MOST_DRAWS = 1000
LEAST_ROWS = 10  # train rows of a node in a Dirichlet partition, where the data is large enough
MOST_NAMED = 10  # nodes that `describe` names one by one


class Partition(NamedTuple):
    """Row indices per node, ascending; entry i belongs to node i."""

    train: tuple[np.ndarray, ...]  # of [rows] int64 into Dataset.train
    test: tuple[np.ndarray, ...]  # of [rows] int64 into Dataset.test: the node's own test rows


def iid(dataset: Dataset, nodes: int, seed: int) -> Partition:
    """Deal the rows at random in equal parts (sizes differ by at most 1).

    Rows that are pieces of a volume or of a patient (`Samples.case`) stay together: these are dealt.

    Args:
        dataset: whose rows are dealt.
        nodes: their number n, at most the training rows.
        seed: of what is drawn, >= 0.

    Returns:
        The rows of each node.

    Raises:
        DataError: more nodes than training rows, or than volumes or patients of training rows.
        ConfigError: nodes < 1 or a negative seed.

    Example:
        >>> import p2pfl
        >>> parts = p2pfl.data.iid(p2pfl.data.digits(), 4, seed=0)
        >>> sum(len(rows) for rows in parts.train)
        1438
    """
    _check(dataset, nodes, seed)
    rng = np.random.default_rng([seed, IID_PURPOSE])
    parts = []
    for part in (dataset.train, dataset.test):
        owner = np.arange(len(part.y)) if part.case is None else part.case.of
        units = np.unique(owner)
        if part is dataset.train and nodes > len(units):
            raise DataError(
                f"nodes={nodes}: more than the {len(units)} volumes or patients that the train rows are pieces of; use "
                "fewer nodes or more data"
            )
        dealt = np.array_split(rng.permutation(units), nodes)
        parts.append(dealt if part.case is None else [np.flatnonzero(np.isin(owner, own)) for own in dealt])
    return _partition(*parts)


def dirichlet(dataset: Dataset, nodes: int, seed: int, alpha: float) -> Partition:
    """Uneven by class: the rows of class c are cut in proportions p_c ~ Dir(alpha * 1_nodes).

    Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks". The same proportions cut the
    train and the test rows of a class. Drawn again, at most 1000 times, until every node has at least 10 train rows; or
    1, where there are fewer than 20 rows per node and an uneven cut can hardly give 10.

    Args:
        dataset: whose rows are dealt.
        nodes: their number n, at most the training rows.
        seed: of what is drawn, >= 0.
        alpha: > 0; small: each node has few classes.

    Returns:
        The rows of each node.

    Raises:
        DataError: no draw gives every node its rows, or there are more nodes than training rows.
        ConfigError: alpha <= 0 or infinite.

    Example:
        >>> import p2pfl
        >>> parts = p2pfl.data.dirichlet(p2pfl.data.digits(), 4, seed=0, alpha=0.5)
        >>> sum(len(rows) for rows in parts.train)
        1438
    """
    _check(dataset, nodes, seed)
    _one_class_a_row(dataset, "dirichlet")
    positive(alpha=alpha)
    if not math.isfinite(alpha):
        raise ConfigError(f"alpha={alpha!r}: must be finite; even parts are the partition 'iid'")
    rng = np.random.default_rng([seed, DIRICHLET_PURPOSE])
    sizes = np.bincount(dataset.train.y, minlength=len(dataset.classes))
    least = LEAST_ROWS if len(dataset.train.y) >= 2 * LEAST_ROWS * nodes else 1
    best = 0
    for _ in range(MOST_DRAWS):
        shares = rng.dirichlet(np.full(nodes, alpha), size=len(sizes))
        counts = _cut(sizes, shares)
        smallest = int(counts.sum(axis=0).min())
        if smallest >= least:
            break
        best = max(best, smallest)
    else:
        raise DataError(
            f"dirichlet: alpha={alpha!r} with {nodes} nodes and {len(dataset.train.y)} train rows: in {MOST_DRAWS} "
            f"draws some node always had fewer than {least} train rows (at best the smallest had {best}). "
            "Use a larger alpha, fewer nodes, or more data"
        )
    test_counts = _cut(np.bincount(dataset.test.y, minlength=len(sizes)), shares)
    return _partition(_deal_by_class(dataset.train.y, counts, rng), _deal_by_class(dataset.test.y, test_counts, rng))


def shards(dataset: Dataset, nodes: int, seed: int, per_node: int) -> Partition:
    """Sort the train rows by label, cut them into nodes * per_node shards, deal per_node to each node.

    McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data". The test rows of a
    class are cut in proportion to the nodes' train rows of it; a class without train rows, in proportion to the nodes'
    sizes.

    Args:
        dataset: whose rows are dealt.
        nodes: their number n, at most the training rows.
        seed: of what is drawn, >= 0.
        per_node: shards of each node, >= 1.

    Returns:
        The rows of each node.

    Raises:
        DataError: more shards or nodes than training rows.
        ConfigError: per_node < 1.

    Example:
        >>> import p2pfl
        >>> parts = p2pfl.data.shards(p2pfl.data.digits(), 4, seed=0, per_node=2)
        >>> sum(len(rows) for rows in parts.train)
        1438
    """
    _check(dataset, nodes, seed)
    _one_class_a_row(dataset, "shards")
    at_least(1, per_node=per_node)
    y = dataset.train.y
    if nodes * per_node > len(y):
        raise DataError(
            f"shards: nodes={nodes} times per_node={per_node} is {nodes * per_node} shards for {len(y)} train rows; "
            "use fewer nodes or a smaller per_node"
        )
    rng = np.random.default_rng([seed, SHARDS_PURPOSE])
    shuffled = rng.permutation(len(y))  # so that rows of one class stand in no order within it
    pieces = np.array_split(shuffled[np.argsort(y[shuffled], kind="stable")], nodes * per_node)
    dealt = rng.permutation(nodes * per_node).reshape(nodes, per_node)
    train = [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]
    # [classes, nodes] train rows
    held = np.stack([np.bincount(y[rows], minlength=len(dataset.classes)) for rows in train], axis=1)
    held[held.sum(axis=1) == 0] = held.sum(axis=0)
    # Shards are of equal size, so shares are often equal, and `apportion` then favours the lower index: shuffled for
    # each class, lest the nodes with high numbers go without test rows.
    test_counts = np.empty_like(held)
    for label, size in enumerate(np.bincount(dataset.test.y, minlength=len(held))):
        order = rng.permutation(nodes)
        test_counts[label, order] = apportion(int(size), held[label, order])
    return _partition(train, _deal_by_class(dataset.test.y, test_counts, rng))


def by_site(dataset: Dataset, nodes: int, seed: int = 0) -> Partition:
    """Give each natural site its node, in the order of dataset.sites.

    The seed is taken like in the others; nothing is drawn.

    Args:
        dataset: whose rows are dealt.
        nodes: their number n, at most the training rows.
        seed: of what is drawn, >= 0.

    Returns:
        The rows of each node.

    Raises:
        DataError: the data has no sites, or not as many as nodes.

    Example:
        >>> import numpy as np, p2pfl
        >>> y, site = np.array([0, 1, 0, 1], np.int32), np.array([0, 1, 1, 0], np.int32)
        >>> rows = p2pfl.Samples(np.eye(4, dtype=np.float32), y, site)
        >>> dataset = p2pfl.Dataset(rows, rows, ("no", "yes"), sites=("here", "there"))
        >>> [part.tolist() for part in p2pfl.data.by_site(dataset, 2).train]
        [[0, 3], [1, 2]]
    """
    _check(dataset, nodes, seed)
    train, test = dataset.train.site, dataset.test.site
    if train is None or test is None:
        raise DataError("by_site: the data has no sites; name their column (csv: site = ...) or use another partition")
    if nodes != len(dataset.sites):
        raise DataError(
            f"by_site: nodes={nodes}, but the data has {len(dataset.sites)} sites: {', '.join(dataset.sites)}. "
            f"Use nodes = {len(dataset.sites)}, or another partition"
        )
    return _partition(*([np.flatnonzero(site == index) for index in range(nodes)] for site in (train, test)))


PARTITIONS: Mapping[str, Callable[..., Partition]] = MappingProxyType(
    {"iid": iid, "dirichlet": dirichlet, "shards": shards, "by_site": by_site}
)
"""Name -> function (dataset, nodes, seed, **arguments)."""


def checked(made: object, dataset: Dataset, nodes: int, where: str) -> Partition:
    """Return what a function of the user's own has made, as a partition: every row belongs to exactly one node.

    Args:
        made: a Partition, or (train, test): of each node whole numbers, its rows of `dataset.train` and `dataset.test`.
        dataset: whose rows are dealt.
        nodes: their number.
        where: how an error begins.

    Returns:
        The partition, the rows of each node ascending.

    Raises:
        DataError: it is neither; rows of another number of nodes, rows that there are not, a row that nobody or more
            than one node has, or a node without training rows.

    Example:
        >>> import numpy as np, p2pfl
        >>> from p2pfl.data.partition import checked
        >>> rows = p2pfl.Samples(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1], np.int32))
        >>> dataset = p2pfl.Dataset(rows, rows, ("no", "yes"))
        >>> checked(([[2, 0], [3, 1]], [[0, 1, 2, 3], []]), dataset, 2, "mine").train[0].tolist()
        [0, 2]
    """
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"{where}: returned a {type(made).__name__}; must be a Partition, or (train, test)")
    parts = []
    for name, given, rows in zip(("train", "test"), made, (len(dataset.train.y), len(dataset.test.y)), strict=True):
        try:
            dealt = [np.asarray(each).reshape(-1) for each in given]
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {name}: must hold the rows of each node: {error}") from error
        if len(dealt) != nodes:
            raise DataError(f"{where}: {name}: rows for {len(dealt)} nodes; there are {nodes}")
        if any(len(each) and each.dtype.kind not in "iu" for each in dealt):
            raise DataError(f"{where}: {name}: rows must be whole numbers, 0 to {rows - 1}")
        every = np.concatenate([np.zeros(0, np.int64), *(each.astype(np.int64) for each in dealt)])
        if len(every) and not (every.min() >= 0 and every.max() < rows):
            raise DataError(f"{where}: {name}: row {int(every[(every < 0) | (every >= rows)][0])}; there are {rows}")
        times = np.bincount(every, minlength=rows)
        if (times != 1).any():
            row = int(np.flatnonzero(times != 1)[0])
            said = f"row {row} belongs to {times[row]} nodes" if times[row] else f"row {row} belongs to no node"
            raise DataError(f"{where}: {name}: {said}; every row must belong to exactly one")
        parts.append([each.astype(np.int64) for each in dealt])
    for name, part, dealt in zip(("train", "test"), (dataset.train, dataset.test), parts, strict=True):
        if part.case is not None:
            owners = [np.unique(part.case.of[rows.astype(np.int64)]) for rows in dealt]
            times = np.bincount(np.concatenate([np.zeros(0, np.int64), *owners]))
            if (times > 1).any():
                raise DataError(
                    f"{where}: {name}: the rows of a volume or patient are dealt to {int(times.max())} nodes; they "
                    "must stay together (`case.of` of the samples says which belong together)"
                )
    bare = [node for node, rows in enumerate(parts[0]) if not len(rows)]
    if bare:
        raise DataError(f"{where}: node {bare[0]} has no training rows; every node must have some")
    return _partition(*parts)


def describe(partition: Partition, dataset: Dataset) -> list[str]:
    """Describe a partition, one plain sentence each: sizes, classes (of "labels": labels; of
    "survival": events) that a node lacks in training, no own test.

    At most 10 nodes are named one by one for each fact, the rest is counted.
    """
    sizes = np.array([len(rows) for rows in partition.train])
    small, large = int(sizes.argmin()), int(sizes.argmax())
    name = names(partition, dataset)
    sentences = [
        f"{len(sizes)} nodes: the smallest is {name[small]} with {sizes[small]} training rows, "
        f"the largest is {name[large]} with {sizes[large]}"
    ]
    if sizes[small] == sizes[large]:
        sentences = [f"{len(sizes)} nodes with {sizes[small]} training rows each"]
    lacks = []
    what = {"labels": "labels", "survival": "events"}.get(dataset.kind, "classes")
    for node, rows in enumerate(partition.train):
        lacking = np.flatnonzero(_held(dataset, rows) == 0)
        if not len(lacking):
            continue
        if what == "events":
            lacks.append(f"{name[node]} has no event among its training rows")
            continue
        of = f"{len(lacking)} of {len(dataset.classes)} {what}"
        listed = ", ".join(dataset.classes[index] for index in lacking)
        lacks.append(f"{name[node]} has no training rows of {of}: {listed}")
    sentences += _shortened(lacks, f"lack {what} in training")
    silent = [f"{name[node]} has no test rows of its own" for node, rows in enumerate(partition.test) if not len(rows)]
    return sentences + _shortened(silent, "have no test rows of their own")


def _held(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Count each class, label or event in these training rows; regression has nothing that could lack."""
    if isinstance(dataset.train.y, Stored):
        return np.ones(1)  # masks that are not read for this
    y = dataset.train.y[rows]
    if dataset.kind in ("classes", "segmentation"):
        return np.bincount(y.reshape(-1), minlength=len(dataset.classes))
    if dataset.kind == "labels":
        return np.asarray(y.sum(axis=0))
    return y[:, 1:].sum(axis=0) if dataset.kind == "survival" else np.ones(1)


def names(partition: Partition, dataset: Dataset) -> list[str]:
    """For each node "node 3", or "node 3 (va)" where all its training rows come from one of several sites."""
    names = []
    for node, rows in enumerate(partition.train):
        found = set() if dataset.train.site is None else set(dataset.train.site[rows].tolist())
        single = len(found) == 1 and len(dataset.sites) > 1
        names.append(f"node {node} ({dataset.sites[found.pop()]})" if single else f"node {node}")
    return names


def _shortened(sentences: list[str], what: str) -> list[str]:
    more = len(sentences) - MOST_NAMED
    return sentences if more <= 0 else [*sentences[:MOST_NAMED], f"{more} more nodes {what}"]


def _check(dataset: Dataset, nodes: int, seed: int) -> None:
    at_least(1, nodes=nodes)
    at_least(0, seed=seed)
    if nodes > len(dataset.train.y):
        raise DataError(f"nodes={nodes}: more than the {len(dataset.train.y)} train rows; use fewer nodes or more data")


def _one_class_a_row(dataset: Dataset, name: str) -> None:
    if dataset.kind != "classes":
        raise ConfigError(
            f"partition={name!r}: deals the rows by their class, and these data are of kind {dataset.kind!r}; "
            "use 'iid' or 'by_site'"
        )


def _cut(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Rows of each class for each node: [classes, nodes] int64 from class sizes [classes], shares [classes, nodes]."""
    return np.stack([apportion(int(size), share) for size, share in zip(sizes, shares, strict=True)])


def _deal_by_class(y: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows for each node, `counts` [classes, nodes] of each class, drawn at random within the class."""
    pieces = [
        np.split(rng.permutation(np.flatnonzero(y == label)), np.cumsum(row)[:-1]) for label, row in enumerate(counts)
    ]
    return [np.concatenate(hand) for hand in zip(*pieces, strict=True)]


def _partition(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> Partition:
    return Partition(tuple(np.sort(rows) for rows in train), tuple(np.sort(rows) for rows in test))
