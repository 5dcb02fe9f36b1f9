"""Normalisations."""

from torch import Tensor, nn
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds


class BatchNorm(nn.Module):
    """BatchNormalization at inference, over axis 1."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self._eps
        )


@builds("BatchNormalization")
def _batch_norm(node: Node) -> nn.Module:
    node.attribute("momentum", 0.9)  # of training alone
    node.only("spatial", 1, 1)
    if node.flag("training_mode"):
        raise Refused("training_mode is set. Export the model for inference")
    node.refuse_outputs(1)
    names = ("scale", "bias", "mean", "variance")
    weight, bias, mean, var = (node.constant(place, name) for place, name in enumerate(names, 1))
    return BatchNorm(weight, bias, mean, var, node.number("epsilon", 1e-5))


class Norm(nn.Module):
    """A norm over dimensions from `axis` on, or of groups of channels."""

    def __init__(self, weight: Tensor, bias: Tensor | None, function: Function) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._function(x, self.weight, self.bias)
        return result


@builds("InstanceNormalization")
def _instance_norm(node: Node) -> nn.Module:
    eps = node.number("epsilon", 1e-5)

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.instance_norm(x, weight=weight, bias=bias, eps=eps)

    return Norm(node.constant(1, "scale"), node.constant(2, "bias"), function)


@builds("GroupNormalization")
def _group_norm(node: Node) -> nn.Module:
    eps, groups = node.number("epsilon", 1e-5), node.integer("num_groups")
    node.only("stash_type", 1, 1)
    weight, bias = node.constant(1, "scale"), node.constant(2, "bias")

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.group_norm(x, groups, weight, bias, eps)

    return Norm(weight, bias, function)


@builds("LayerNormalization")
def _layer_norm(node: Node) -> nn.Module:
    node.refuse_outputs(1)
    node.only("stash_type", 1, 1)
    eps, dims = node.number("epsilon", 1e-5), node.shape()[node.axis(-1) :]

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.layer_norm(x, dims, weight, bias, eps)

    weight, bias = node.constant(1, "scale"), node.optional(2, "bias")
    return Norm(_filled(weight, dims), None if bias is None else _filled(bias, dims), function)


@builds("RMSNormalization")
def _rms_norm(node: Node) -> nn.Module:
    node.only("stash_type", 1, 1)
    eps, dims = node.number("epsilon", 1e-5), node.shape()[node.axis(-1) :]

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.rms_norm(x, dims, weight, eps)

    return Norm(_filled(node.constant(1, "scale"), dims), None, function)


def _filled(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    try:
        return tensor.expand(dims).contiguous()
    except RuntimeError:
        raise Refused(f"a scale of {list(tensor.shape)} does not fit {list(dims)}") from None
