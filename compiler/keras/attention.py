"""MultiHeadAttention, Attention, AdditiveAttention.

Sources: layers/attention of Keras 3 and of Keras 2 (tf_keras).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.activations import HIDDEN
from fxloom.keras.description import Layer
from fxloom.keras.registry import Refused, builds, number, parameters

Results = Tensor | tuple[Tensor, Tensor]


def causal(rows: int, columns: int) -> Tensor:
    """What each query may see: keys up to its own place. [1, rows, columns]."""
    return torch.ones(1, rows, columns, dtype=torch.bool).tril()


def near(rows: int, columns: int, window: int) -> Tensor:
    """What each query may see: keys less than a window away. [1, rows, columns]."""
    distance = torch.arange(rows)[:, None] - torch.arange(columns)
    return (distance.abs() < window)[None]


def condition(mask: Tensor | None) -> Tensor | None:
    """A mask as a condition: what is not zero counts."""
    return mask if mask is None or mask.dtype == torch.bool else mask != 0


# Of several heads --------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """keras.layers.MultiHeadAttention.

    The products are layers of their own: "attention.query", "attention.key", "attention.value",
    "attention.attention_output" and, with use_gate, "attention.gate".
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        config = layer.config
        self.heads = int(config["num_heads"])
        self.scale = int(config["key_dim"]) ** -0.5
        has_bias, has_gate = bool(config.get("use_bias", True)), bool(config.get("use_gate"))
        given = iter(parameters(layer, (5 if has_gate else 4) * (2 if has_bias else 1)))

        def product(bound: int = 1) -> Product:
            return Product(next(given), next(given) if has_bias else None, bound)

        self.query, self.key = product(), product()
        self.gate = product() if has_gate else None
        self.value, self.attention_output = product(), product(bound=2)
        axes = config.get("attention_axes")
        self.axes = [axes] if isinstance(axes, int) else None if axes is None else list(axes)
        self.window: int | None = config.get("sliding_window")
        # Where Keras 3 leaves scaled_dot_product_attention, rows in which a mask leaves nothing are
        # zeros, as in its Softmax; elsewhere they are means.
        self.zeroes = number(layer, "dropout", 0.0) > 0 and layer.generation == 3
        self.generation = layer.generation

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Results:
        """Masks: of query, value and key [batch, length], of attention [batch, rows, columns]."""
        masks = [condition(attention_mask)]
        masks += [None if query_mask is None else condition(query_mask[:, :, None])]
        masks += [None if m is None else condition(m[:, None]) for m in (value_mask, key_mask)]
        computed = any(each is not None for each in masks)
        if use_causal_mask:
            masks.append(causal(query.shape[1], value.shape[1]))
        if self.window is not None:
            masks.append(near(query.shape[1], value.shape[1], self.window))
        mask = _all([each for each in masks if each is not None])
        q, k = self.query(query), self.key(value if key is None else key)
        v = self.value(value)
        axes = self._axes(q.dim())
        if mask is not None:
            if q.dim() != 4 or axes != [1]:
                raise ValueError("a mask with several attention_axes has no meaning here")
            mask = mask if mask.dim() == 4 else mask[:, None]
        rows = [q.shape[axis] for axis in axes]
        zeroes = self.zeroes or (self.generation == 3 and return_attention_scores)
        q_, k_, v_ = (self._split(each, axes) for each in (q, k, v))
        if return_attention_scores or computed or (zeroes and mask is not None):
            y, scores = _attended(q_, k_, v_, mask, self.scale, zeroes)
        else:  # Where a mask leaves nothing of a row, this gives zeros: constant masks leave some.
            y = functional.scaled_dot_product_attention(
                q_, k_, v_, attn_mask=mask, scale=self.scale
            )
        y = self._joined(y, axes, rows, q)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(query))
        result: Tensor = self.attention_output(y)
        if not return_attention_scores:
            return result
        if len(axes) > 1 or q.dim() != 4:
            raise ValueError("return_attention_scores with several axes has no meaning here")
        return result, scores

    def _axes(self, rank: int) -> list[int]:
        """The axes that are attended over, of a projection [batch, ..., heads, size]."""
        if self.axes is None:
            return list(range(1, rank - 2))
        return [axis % (rank - 1) for axis in self.axes]

    def _split(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """[batch, other axes, heads, attended together, size]."""
        order = _order(x.dim(), axes)
        moved = x.permute(order)
        kept = moved.shape[1 : x.dim() - len(axes) - 1]
        return moved.reshape(-1, *kept, prod(x.shape[axis] for axis in axes), x.shape[-1])

    def _joined(self, y: Tensor, axes: Sequence[int], rows: Sequence[int], like: Tensor) -> Tensor:
        """The axes of `like` again."""
        order = _order(like.dim(), axes)
        apart = y.reshape(-1, *y.shape[1:-2], *rows, y.shape[-1])
        return apart.permute(sorted(range(like.dim()), key=order.__getitem__))


def _order(rank: int, axes: Sequence[int]) -> list[int]:
    """Batch, axes that are not attended over, heads, those that are, size."""
    others = [axis for axis in range(1, rank - 2) if axis not in axes]
    return [0, *others, rank - 2, *axes, rank - 1]


class Product(nn.Module):
    """keras.layers.EinsumDense as attention has it: over the last axes, to new ones.

    kernel: [bound axes, new axes].
    """

    def __init__(self, kernel: nn.Parameter, bias: nn.Parameter | None, bound: int) -> None:
        super().__init__()
        self.bound, self.new = bound, list(kernel.shape[bound:])
        table = kernel.detach().reshape(prod(kernel.shape[:bound]), prod(self.new))
        self.weight = nn.Parameter(table.T.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().flatten())

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.bound == 1 else x.flatten(-self.bound)
        y = functional.linear(x, self.weight, self.bias)
        return y if len(self.new) == 1 else y.reshape(-1, *x.shape[1:-1], *self.new)


def _all(conditions: Sequence[Tensor]) -> Tensor | None:
    found = None
    for each in conditions:
        found = each if found is None else found & each
    return found


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, zeroes: bool
) -> tuple[Tensor, Tensor]:
    """The mean of values by the softmax of scores, and these shares."""
    scores = scale * (q @ k.transpose(-2, -1))
    shares = torch.softmax(scores if mask is None else torch.where(mask, scores, HIDDEN), -1)
    if zeroes and mask is not None:
        shares = torch.where(mask, shares, 0.0)
    return shares @ v, shares


@builds("MultiHeadAttention")
def _multi_head_attention(layer: Layer) -> nn.Module:
    # They are seen in the arrays, say how to compute, or act in training alone.
    for key in ("value_dim", "output_shape", "seed", "query_shape", "key_shape", "value_shape"):
        layer.config.get(key)
    for key in ("softmax_robust_masking", "flash_attention"):
        layer.config.get(key)
    return MultiHeadAttention(layer)


# Of one head -------------------------------------------------------------------------------------


class Attention(nn.Module):
    """keras.layers.Attention and AdditiveAttention, on [query, value] or [query, value, key].

    scale: of the scores or, in sums, of each term; weight: of the sums.
    """

    def __init__(
        self, scale: nn.Parameter | None, weight: nn.Parameter | None, mode: str, causal: bool
    ) -> None:
        super().__init__()
        self.scale, self.weight, self.mode, self.causal = scale, weight, mode, causal

    def forward(
        self,
        inputs: Sequence[Tensor],
        mask: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Results:
        """mask: of queries and of values, [batch, length], or None."""
        query, value, *rest = inputs
        scores = self._scores(query, rest[0] if rest else value)
        query_mask, value_mask = (None, None) if mask is None else mask[:2]
        masks = [] if value_mask is None else [condition(value_mask[:, None])]
        if self.causal or use_causal_mask:
            masks.append(causal(scores.shape[-2], scores.shape[-1]))
        kept = _all([each for each in masks if each is not None])
        if kept is not None:
            scores = torch.where(kept, scores, HIDDEN)
        shares = torch.softmax(scores, -1)
        y = shares @ value
        if query_mask is not None:
            kept = condition(query_mask[:, :, None])
            assert kept is not None
            y = torch.where(kept, y, 0.0)
        return (y, shares) if return_attention_scores else y

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self.mode == "dot":
            scores = query @ key.transpose(-2, -1)
            return scores if self.scale is None else scores * self.scale
        terms = query[..., :, None, :] + key[..., None, :, :]
        if self.mode == "additive":
            squashed = torch.tanh(terms)
            return (squashed if self.scale is None else squashed * self.scale).sum(-1)
        scaled = terms if self.scale is None else terms * self.scale
        sums = torch.tanh(scaled).sum(-1)
        return sums if self.weight is None else sums * self.weight


@builds("Attention", "AdditiveAttention")
def _attention(layer: Layer) -> nn.Module:
    for key in ("dropout", "seed"):  # act in training alone
        layer.config.get(key)
    is_causal = bool(layer.config.get("causal", False))
    is_scaled = bool(layer.config.get("use_scale", False))
    mode = str(layer.config.get("score_mode", "dot"))
    if layer.class_name == "AdditiveAttention":
        mode = "additive"
    if mode not in ("dot", "concat", "additive"):
        raise Refused(f"score_mode is {mode!r}, required dot or concat")
    given = iter(parameters(layer, is_scaled + (mode == "concat")))
    scale = next(given) if is_scaled else None
    return Attention(scale, next(given, None), mode, is_causal)
