"""Steps in the order they can be computed in."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from mergeflow.recipe.records import Step, StepReference


def steps_in_order(steps: Sequence[Step]) -> list[Step]:
    """Every step after those it reads; ties keep the order of the recipe.

    Steps on a cycle, and those that depend on one, are left out: the reader of the recipe has reported the cycle.
    """
    by_name = {step.name: step for step in steps}
    needs: nx.DiGraph[str] = nx.DiGraph()
    needs.add_nodes_from(by_name)
    for step in steps:
        sources = [source.name for source in step.sources() if isinstance(source, StepReference)]
        needs.add_edges_from((name, step.name) for name in sources if name in by_name)
    tangled = {name for group in nx.strongly_connected_components(needs) if len(group) > 1 for name in group}
    tangled |= {name for name in by_name if needs.has_edge(name, name)}
    for name in list(tangled):
        tangled |= nx.descendants(needs, name)
    needs.remove_nodes_from(tangled)
    place = {step.name: index for index, step in enumerate(steps)}
    return [by_name[name] for name in nx.lexicographical_topological_sort(needs, key=place.__getitem__)]
