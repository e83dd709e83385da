"""What [secure] asks for: checked against graph, algorithm and network, and made out for a node. See docs/secure.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.config.experiment import Experiment, Secure
from p2pfl.errors import ConfigError
from p2pfl.methods import statistics
from p2pfl.node.masked import SPARE, MaskedSums
from p2pfl.protocol.neighbor import BARRIER
from p2pfl.topology import matrix
from p2pfl.trust import masks
from p2pfl.types import Algorithm, Neighborhood, Schedule, Tree

BOUNDS = {64: 2.0**20, 32: 2.0**6}
"""Of numbers, by the bits of a masked one, unless the experiment says another."""
COALITIONS = 20_000
"""Groups of nodes of which it is found out what they can solve for, at most."""
_SLACK = 10
"""Times that word of all nodes may take as long as it takes where nothing is lost."""


def mixing(experiment: Experiment) -> Secure | None:
    """Return the table where models are masked; None where they are not."""
    return experiment.secure if experiment.secure is not None and experiment.secure.mixing else None


def least(experiment: Experiment) -> int:
    """Return how many neighbours a node that mixes must have; 0: any number."""
    table = mixing(experiment)
    return 0 if table is None else 2 + table.colluders


def check(experiment: Experiment) -> None:
    """Raises ConfigError for what can be seen to be wrong before the data are read."""
    if experiment.secure is None:
        return
    gathers = experiment.statistics.gather or experiment.statistics.normalize
    if not experiment.secure.mixing and not gathers:
        raise ConfigError(
            "secure.mixing=false: nothing is masked, since the experiment gathers no [statistics]; leave [secure] out"
        )
    if mixing(experiment) is None:
        return
    network = experiment.network
    given = {
        f"network.loss={network.loss:g}": network.loss,
        f"network.late={network.late}": network.late,
        f"network.rule={network.rule!r}": network.rule != "double_entry",
        f"topology.take_part={experiment.topology.take_part:g}": experiment.topology.take_part < 1,
        "churn.event='link_loss'": any(getattr(each, "event", "") == "link_loss" for each in experiment.churn),
    }
    for name, wrong in given.items():
        if wrong:
            raise ConfigError(
                f"{name}: with [secure] a node knows the sum of all its neighbours or nothing, and here some are left "
                "out of it; leave it out, or set secure.mixing = false"
            )
    for i, attack in enumerate(experiment.attack):
        if attack.by != "label_flip":
            raise ConfigError(
                f"attack[{i}].by={attack.by!r}: what a liar sends is another thing than its model, and with [secure] "
                "nobody sees what a single node sends; leave attack out (label_flip may stay), or set secure.mixing = "
                "false"
            )
    if network.sync != BARRIER:
        raise ConfigError(
            f'network.sync={network.sync!r}: with [secure] a round needs everyone; set network.sync = "barrier"'
        )
    table = experiment.secure
    if bound(table) > 2.0 ** (table.bits - SPARE[table.bits] - 6):
        raise ConfigError(
            f"secure.bound={table.bound:g}: leaves no place behind the point in {table.bits} bits; take a smaller one"
        )


def bound(table: Secure) -> float:
    """Return what no number that is mixed is beyond."""
    return BOUNDS[table.bits] if table.bound is None else table.bound


def check_algorithm(
    experiment: Experiment, algorithm: Algorithm, graph: Schedule, model: Tree, unequal: bool = False
) -> None:
    """Raises ConfigError where mixing is more than a weighted sum, or a sum tells of one.

    `model`: its shapes; `unequal`: those of other nodes are others.
    """
    table = mixing(experiment)
    if table is None:
        return
    wrong = {
        "sends one way, or nothing": algorithm.link != "exchange",
        "tells each neighbour something else": algorithm.per_edge,
        "weighs each message by what has come": algorithm.weigh is not None,
        "sends less in some rounds": algorithm.travelling is not None,
        "has models of unequal shapes": unequal,
        "looks at each neighbour's message by itself": not algorithm.linear,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ConfigError(
                f"secure: {algorithm.name}, with what is around it and its objectives, {what}, and with [secure] a "
                "node knows nothing but their weighted sum; use dsgd without algorithm.wrap, or leave [secure] out"
            )
    around = Neighborhood(jnp.zeros(1), jnp.zeros(1))
    payload = jax.eval_shape(lambda params: algorithm.send(algorithm.init(params, 1), around)[1], model)
    for name, leaf in tree.named_leaves(payload).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"secure: {name} of the model is {leaf.dtype.name}, and sums are of numbers with a point; keep it at "
                "home (algorithm.share), or leave [secure] out"
            )
    if len(graph.neighbor) > 1:
        raise ConfigError(
            "secure: the graph changes from round to round, and the difference of the sums of two sets of neighbours "
            "tells a single model; use a graph that stays"
        )
    check_graph(graph, least(experiment), table.colluders)


def check_graph(graph: Schedule, least: int, colluders: int) -> None:
    """Raises ConfigError for a node with too few neighbours, and for nodes that solve for a model together."""
    neighbors = (graph.weight[0] > 0).sum(axis=1)
    few = np.flatnonzero(neighbors < least)
    if len(few):
        fewer = f", or secure.colluders = {neighbors.min() - 2}" if neighbors.min() >= 2 else ""
        raise ConfigError(
            f"secure.colluders={colluders}: node {few[0]} has {neighbors[few[0]]} neighbours, and a node that mixes "
            f"must have {least}: two honest ones, besides {colluders} that may work together with it; else the sum "
            f"tells a single model. Use a denser graph{fewer}"
        )
    found = _solved(graph, colluders + 1)
    if found is not None:
        together, victim = found
        raise ConfigError(
            f"secure.colluders={colluders}: from their sums of one round nodes {', '.join(map(str, together))} solve "
            f"for the model of node {victim} together; use a graph of more equal neighbourhoods, as a complete one"
        )


def solvable(w: np.ndarray, together: int) -> tuple[tuple[int, ...], int] | None:
    """Return nodes that solve for the value of another one from their weighted sums of one round; None for nobody.

    Args:
        w: [n, n] weights: node i gets sum_j w[i, j] x_j over all others, and knows w.
        together: how many tell each other all they know. Of many nodes only COALITIONS such groups are looked at.

    Returns:
        (the nodes, whose value); x_j is solved for where e_j lies in the span of their rows without their own columns.

    Example:
        >>> import numpy as np
        >>> from p2pfl.federation.secure import solvable
        >>> w = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]) / 4
        >>> solvable(w, 1), solvable(w, 2)
        (None, ((0, 1), 2))
    """
    nodes = range(len(w))
    for group in itertools.islice(itertools.combinations(nodes, together), COALITIONS):
        others = [j for j in nodes if j not in group]
        rows = w[np.ix_(group, others)]
        _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
        basis = basis[sizes > 1e-9 * max(sizes.max(initial=0), 1e-300)]
        inside = (basis**2).sum(axis=0)  # of e_j the length that lies in the span
        if len(inside) and inside.max() > 1 - 1e-9:
            return group, others[int(inside.argmax())]
    return None


def core(schedule: Schedule, least: int) -> tuple[Schedule, tuple[int, ...]]:
    """The largest part of a graph in which every node that mixes has so many neighbours, and who is not in it.

    Exchanges of all others rest. Source: the k-core, Seidman, "Network structure and minimum degree" (1983).
    """
    neighbor, weight = schedule.neighbor[0], schedule.weight[0]
    there = (weight > 0).any(axis=1)
    began = there.copy()
    while True:
        used = (weight > 0) & there[:, None] & there[np.maximum(neighbor, 0)]
        few = there & (used.sum(axis=1) < least)
        if not few.any():
            break
        there &= ~few
    order = np.argsort(~used, axis=1, kind="stable")  # empty slots stand at the end

    def part(of: np.ndarray, nothing: float) -> np.ndarray:
        return np.take_along_axis(np.where(used, of[0], nothing).astype(of.dtype), order, axis=1)[None]

    weights = part(schedule.weight, 0.0), part(schedule.out_weight, 0.0)
    resting = tuple(int(i) for i in np.flatnonzero(began & ~there))
    return Schedule(part(schedule.neighbor, -1), *weights, schedule.trains), resting


def resting(experiment: Experiment, graph: Schedule, members: Sequence[int]) -> tuple[Schedule, str]:
    """Return what may be exchanged of the graph of an epoch, and what a person should know of it; "" for nothing.

    Args:
        experiment: whose [secure] it is.
        graph: among the members, rows and ids 0 ... m - 1.
        members: their ids.

    Returns:
        The part in which all have enough neighbours, or nothing where some of them solve for a single model; the text.
    """
    table = mixing(experiment)
    if table is None or not graph.neighbor.shape[2]:
        return graph, ""
    left, few = core(graph, least(experiment))
    listed = ", ".join(str(members[i]) for i in few)
    said = f"too few neighbours for a sum that tells no single model has node {listed}: it mixes with nobody"
    found = _solved(left, 1 + table.colluders)
    if found is None:
        return left, said if few else ""
    together = ", ".join(str(members[i]) for i in found[0])
    return Schedule(left.neighbor[..., :0], left.weight[..., :0], left.out_weight[..., :0], left.trains), (
        f"nobody mixes while only these are members: from their sums of one round nodes {together} would solve for the "
        f"model of node {members[found[1]]} together"
    )


def hands_over(graph: Schedule) -> bool:
    """Return whether what a node has mixed tells no member more than it knows, so that who joins may have it.

    So it is where all who mix with one another end a round with the same, as in a complete graph. In another graph the
    sum that a node knows and the model that another one has mixed, in which that one's own is, can tell a single model.

    Example:
        >>> from p2pfl import topology
        >>> from p2pfl.federation.secure import hands_over
        >>> hands_over(topology.plan("complete", 5)), hands_over(topology.plan("ring", 5))
        (True, False)
    """
    w = matrix(graph, 0, "row")
    return bool(np.allclose(w, w[(w > 0).argmax(axis=1)], rtol=0, atol=1e-9))


def sums(
    experiment: Experiment, node: int, planned: Callable[[Sequence[int]], Schedule], whole: Schedule
) -> MaskedSums | None:
    """How a node masks models; None where it does not. `planned`: the schedule of members; `whole`: that of all.

    Its secrets follow from the seed: whoever has keys puts others in their place.
    """
    table = mixing(experiment)
    if table is None:
        return None

    def around(members: tuple[int, ...]) -> Mapping[int, tuple[int, ...]]:
        graph = planned(members)
        neighbor, weight = graph.neighbor[0], graph.weight[0]
        heard = {i: tuple(int(j) for j in neighbor[i][weight[i] > 0]) for i in range(len(neighbor))}
        return {j: heard[j] for j in heard[node]}

    def gives(members: tuple[int, ...] | None) -> bool:
        return hands_over(whole if members is None else planned(members))

    return MaskedSums(node, table.bits, bound(table), around, masks.of_seed(experiment.seed, node), masks.stream, gives)


# --- statistics


def facts(experiment: Experiment, found: Tree, nodes: int, real: bool) -> dict[str, Any]:
    """What nodes know of themselves to mask their sums `found` [n, ...]: of a study, by the seed.

    `nodes`: how many are planned; there may be one more, this machine's, which joins them. `real`: this machine's own
    data: nonces are the operating system's, and secrets are put in by whoever has keys. Raises ConfigError.
    """
    there = len(jax.tree.leaves(found)[0])
    if real:
        shared = np.zeros((there, nodes, masks.BYTES // 4), np.uint32)
        nonces = np.random.SeedSequence().generate_state(3 * there).reshape(there, 3)
        return statistics.facts(found, shared, nonces)
    pairs = [masks.of_seed(experiment.seed, i) for i in range(there)]
    shared = np.stack([np.stack([statistics.words(pair(j)) for j in range(nodes)]) for pair in pairs])
    drawn = [masks.stream(pair(i), b"nonce", 12) for i, pair in enumerate(pairs)]
    return statistics.facts(found, shared, np.stack([statistics.words(each) for each in drawn]))


def with_keys(site: Tree, secret: Callable[[int], bytes], node: int) -> Tree:
    """What a node knows of itself, with the secrets of its keys; as it was where no sums are masked.

    Raises ConfigError where some planned node has no key yet.
    """
    if "secrets" not in site:
        return site
    shared = np.zeros_like(site["secrets"])
    for j in range(len(shared)):
        if j != node:
            try:
                shared[j] = statistics.words(secret(j))
            except KeyError as error:
                raise ConfigError(
                    f"secure: node {j} of the experiment is no member of the federation file, so that there is no key "
                    "to mask sums with; invite it first (p2pfl federation invite), or plan fewer nodes"
                ) from error
    return {**site, "secrets": shared}


def rounds(experiment: Experiment, graph: Schedule) -> int:
    """Rounds until all know the sums where nothing is lost. Raises ConfigError where the run is too short."""
    needed = 2 * statistics.hops(graph)
    if needed > experiment.rounds:
        raise ConfigError(
            f"rounds={experiment.rounds}: word of all nodes goes around this graph twice in {needed} rounds, before "
            "which nobody knows the masked sums; run longer, or take a denser graph"
        )
    return needed


def due(experiment: Experiment, graph: Schedule) -> int:
    """The round at whose end masked sums must be known; 0: there are none."""
    if experiment.secure is None or not (experiment.statistics.gather or experiment.statistics.normalize):
        return 0
    return min(experiment.rounds, _SLACK * rounds(experiment, graph))


def notes(experiment: Experiment, real: bool, graph: Schedule, table: Tree) -> tuple[str, ...]:
    """What a person should know. `table`: shapes of that of masked sums; () for none."""
    if experiment.secure is None:
        return ()
    said = []
    if not real:
        said.append("secure: masks follow from the seed, so that anybody can take them off: a study")
    found = mixing(experiment)
    if found is not None:
        said.append(
            f"secure: a node sees the sum of its neighbours' models, each with at least {least(experiment)}; it holds "
            f"against the one that mixes and {found.colluders} of them together"
        )
    if found is not None and not hands_over(graph):
        said.append(
            "secure: in this graph what a node has mixed would tell its members more than sums; who joins later, or "
            "comes back with nothing, begins with the first model"
        )
        if math.comb(graph.neighbor.shape[1], 1 + found.colluders) > COALITIONS:
            said.append(
                f"secure: of so many nodes only {COALITIONS:,} groups of {1 + found.colluders} were looked at for "
                "whether they solve for a single model together"
            )
    if table:
        nbytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(table))
        said.append(f"secure: masked sums of all nodes go with models: {nbytes:,} bytes a message")
    return tuple(said)


def _solved(graph: Schedule, together: int) -> tuple[tuple[int, ...], int] | None:
    """The same of a graph in which all have enough neighbours: where all of a piece are alike, no two can be told."""
    return None if hands_over(graph) else solvable(_matrix(graph), together)


def _matrix(graph: Schedule) -> np.ndarray:
    w = matrix(graph, 0, "row").copy()
    np.fill_diagonal(w, 0)
    return w
