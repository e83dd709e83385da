"""What algorithms ask of a graph, and the words of a refusal."""

from __future__ import annotations

import networkx as nx
import numpy as np
import optax
import pytest

from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import TopologyError
from p2pfl.learning import quadratic
from p2pfl.topology import eigen, requirements
from p2pfl.topology.spectral import operators
from p2pfl.types import Algorithm, Demands, Schedule

RING, EVEN, DIRECTED = (topology.plan(*graph) for graph in (("ring", 9), ("ring", 8), ("exponential", 7)))
IRREGULAR = topology.schedule(nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]))
"""Column-stochastic, and not doubly."""
_ENDS = np.array([0, 0, 1, 2]), np.array([1, 2, 0, 0])
TOO_MUCH_HEARD = topology.from_rounds(3, [(*_ENDS, np.array([0.9, 0.9, 0.5, 0.5]))])
TOO_MUCH_SAID = topology.from_rounds(3, [(*_ENDS[::-1], np.array([0.9, 0.9, 0.5, 0.5]))])


def algorithm(name: str) -> Algorithm:
    return ALGORITHMS[name](quadratic.learner(2), optax.sgd(0.1))


def asking(weights: str) -> Algorithm:
    return algorithm("dsgd")._replace(name="mine", demands=Demands(weights))


def test_what_fits() -> None:
    for schedule in (RING, EVEN, DIRECTED, topology.plan("base", 7), topology.plan("one_peer_exponential", 8)):
        requirements.check(asking("column"), schedule, "G")
        requirements.check(asking("row"), schedule, "G")
        requirements.check(asking("any"), schedule, "G")
    for schedule in (RING, topology.plan("base", 7), topology.plan("random_matching", 5, rounds=3)):
        requirements.check(asking("symmetric"), schedule, "G")
    requirements.check(asking("column"), IRREGULAR, "G")
    requirements.check(asking("symmetric"), topology.plan("ring", 1), "G")  # a node alone has no slots


@pytest.mark.parametrize(
    "asked, schedule, text",
    [
        ("symmetric", DIRECTED, r"mine: G does not fit; mine needs symmetric weights.*Use an undirected .*push_sum"),
        ("row", TOO_MUCH_HEARD, r'mine: G does not .*; mine needs weights whose rows sum to one. Use .*"metropolis"'),
        ("column", TOO_MUCH_SAID, r'mine: G does not .*; mine needs column-stochastic weights. Use .*"uniform_out"'),
        ("symmetric", topology.plan("star", 9, weights="best_constant"), r"none of them negative"),
        ("any", RING._replace(weight=-RING.weight), r"G: a weight is negative; weights must be >= 0. Use weights"),
    ],
)
def test_what_does_not(asked: str, schedule: Schedule, text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        requirements.check(asking(asked), schedule, "G")


def test_d2_needs_one_w_whose_eigenvalues_are_above_minus_a_third() -> None:
    """Even rings lie on the edge exactly; tori and hypercubes beyond it; graphs that change are refused."""
    it = algorithm("d2")
    requirements.check(it, RING, "G")
    for schedule, least in ((EVEN, "-0.3333"), (topology.plan("hypercube", 16), "-0.6000")):
        with pytest.raises(TopologyError, match=f"d2: G has lambda_min = {least}; .*Use exact_diffusion"):
            requirements.check(it, schedule, "G")
        requirements.check(algorithm("exact_diffusion"), schedule, "G")
    with pytest.raises(TopologyError, match=r"d2: G changes from round to round; .*Use exact_diffusion"):
        requirements.check(it, topology.plan("base", 7), "G")
    with pytest.raises(TopologyError, match="d2: G does not fit; d2 needs symmetric weights"):
        requirements.check(it, DIRECTED, "G")


@pytest.mark.parametrize("graph", ["ring", "star", "barabasi_albert"])
def test_the_least_eigenvalue_of_many_nodes(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (w,) = operators(topology.plan(graph, 60))
    dense = eigen.least(w)
    assert abs(dense - np.linalg.eigvalsh(w.toarray())[0]) < 1e-12
    monkeypatch.setattr(eigen, "DENSE", 10)
    assert abs(eigen.least(w) - dense) < 1e-8  # the tolerance of an iteration
