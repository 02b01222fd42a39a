"""What the two parts of a stage's backward take: gradients of what it received (I), of its parameters (W).

Assumptions, as the runtime does it (`runtime/execution/split_backward.py`): layers that no received value
with a gradient leads to belong to W whole, so a first stage has no I; where layers of the stage share a
parameter, all belongs to I; a stage that recomputes runs forward again in I.
"""

from collections.abc import Sequence

from stagewright.graph import LayerGraph, LayerNode, unique_parameters
from stagewright.optimizer.problem import Problem
from stagewright.plan import Plan, ReplicaPrediction
from stagewright.value import tensors_of


def in_parts(
    predicted: ReplicaPrediction, plan: Plan, problem: Problem, stage: int, device_type: str
) -> ReplicaPrediction:
    """Return a prediction with the parts of its backward; None where some layer's was not measured."""
    if problem.is_inference:
        return predicted
    graph = problem.inputs.graphs[device_type]
    layers = [graph.by_name[name] for name in plan.stages[stage].layers]
    reached = _reached(plan, graph, stage, layers)
    costs = [layer.cost_at(plan.microbatch_size) for layer in layers if layer.name in reached]
    loss = problem.loss_cost(device_type) if stage == len(plan.stages) - 1 else None
    if loss is not None and reached.intersection(graph.outputs):
        costs.append(loss)
    again_ms = predicted.forward_ms if plan.stages[stage].recompute else 0.0
    input_ms, weight_ms = again_ms, max(0.0, predicted.backward_ms - again_ms)
    for cost in costs:
        if cost.input_gradient_ms is None or cost.weight_gradient_ms is None:
            return predicted
        input_ms += cost.input_gradient_ms
        weight_ms += cost.weight_gradient_ms - cost.backward_ms
    if costs and _share_parameters(graph, layers):
        input_ms, weight_ms = predicted.backward_ms, 0.0
    return predicted.replace(backward_input_ms=input_ms, backward_weight_ms=max(0.0, weight_ms))


def _reached(plan: Plan, graph: LayerGraph, stage: int, layers: Sequence[LayerNode]) -> set[str]:
    """Return those of a stage's layers, in the graph's order, that received trained values lead to."""
    received = (v for border in plan.borders if border.target == stage for v in border.values)
    leading = {v.layer for v in received if any(t.requires_grad for t in tensors_of(v.spec))}
    reached = set()
    for layer in layers:
        has_gradient = layer.output is None or any(
            tensor.requires_grad for tensor in tensors_of(layer.output)
        )
        if has_gradient and not leading.isdisjoint(layer.inputs):
            leading.add(layer.name)
            reached.add(layer.name)
    return reached


def _share_parameters(graph: LayerGraph, layers: Sequence[LayerNode]) -> bool:
    """Return whether a trained parameter belongs to several of some layers."""
    held = sum(p.spec.requires_grad for layer in layers for p in layer.parameters)
    return held > sum(p.spec.requires_grad for p in unique_parameters(graph, layers).values())
