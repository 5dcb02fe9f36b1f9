"""Deep Compression's storage of LeNet-300-100 and LeNet-5, published and by our accounting.

`python -m benchmarks.published_rates`, one thread, half a minute; seed 0. Given are the published
shares of weights that are kept, widths of indices in the codebook and of run lengths (Han et al.
2016, arXiv 1510.00149v5, section 5.1). Rates are bits by bits of float32 weights:

    ratios   from these numbers alone, kept weights anywhere (fxloom.storage.published)
    coded    of real weights (fxloom.coding.account), which are coded and decoded as well: nets
             trained on scikit-learn's digits at 28 x 28 pixels, pruned by magnitude to the
             published shares in three steps and trained on after each, without what the paper does
             not say; then k-means as in its section 3

The reading under which the published rates come out: a codebook has 2**bits float32 values even
where fewer are used (conv1 of LeNet-5 has 330 weights and 256 values), padding zeros are stored
weights and one of the values, run lengths have 5 bits, biases are counted on neither side. With
Huffman coding ours count tables, where blocks begin and full bytes, which the paper does not
mention. What is really stored, with the values that are used, is in the last column.

One published figure cannot come out: with Huffman coding the last layer of LeNet-5 would have 5.5
bits a weight beside 3.7 bits a run, where a code of 32 values has 5 at most. Ours takes less.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from fxloom import demo
from fxloom.coding import account, decode_weights, encode_weights
from fxloom.storage import FLOAT_BITS, Storage, published

INDEX_BITS = 5
SIZE = 28
EPOCHS, TRAINED_ON, STEPS = 20, 12, 3
ROUNDS = 300
"""Of k-means: nothing changes any more."""
WITHIN = 0.1


@dataclass(frozen=True, slots=True)
class Layer:
    """shape of the weights; kept: share; bits: of an index; rates without and with Huffman."""

    shape: tuple[int, ...]
    kept: float
    bits: int
    rate: float
    huffman_rate: float


LENET_300_100 = {
    "ip1": Layer((300, 784), 0.08, 6, 0.031, 0.0232),
    "ip2": Layer((100, 300), 0.09, 6, 0.038, 0.0304),
    "ip3": Layer((10, 100), 0.26, 6, 0.157, 0.127),
}
LENET_5 = {
    "conv1": Layer((20, 1, 5, 5), 0.66, 8, 0.785, 0.6745),
    "conv2": Layer((50, 20, 5, 5), 0.12, 8, 0.06, 0.0528),
    "ip1": Layer((500, 800), 0.08, 5, 0.027, 0.0245),
    "ip2": Layer((10, 500), 0.19, 5, 0.069, 0.0613),
}
NETWORKS: Mapping[str, Mapping[str, Layer]] = {"LeNet-300-100": LENET_300_100, "LeNet-5": LENET_5}
TOTALS = {"LeNet-300-100": (0.031, 0.0249), "LeNet-5": (0.0305, 0.0255)}


class Lenet(nn.Module):
    """Caffe's: convolutions of 5 x 5, each with max pooling behind it, then linear layers with ReLU
    between them."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self.names = list(layers)
        for name, layer in layers.items():
            n_out, n_in, *kernel = layer.shape
            made = nn.Conv2d(n_in, n_out, 5) if kernel else nn.Linear(n_in, n_out)
            self.add_module(name, made)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            layer = getattr(self, name)
            if isinstance(layer, nn.Conv2d):
                x = functional.max_pool2d(layer(x), 2)
            else:
                x = layer(x.flatten(1))
                if name != self.names[-1]:
                    x = functional.relu(x)
        return x


def trained(layers: Mapping[str, Layer]) -> tuple[Lenet, float]:
    """A network of which only the published shares of weights are not zero, and its accuracy."""
    data = demo.digits()
    x, x_test = (_larger(torch.as_tensor(each)) for each in (data.x_train, data.x_test))
    y, y_test = (torch.as_tensor(each) for each in (data.y_train, data.y_test))
    torch.manual_seed(0)
    model = Lenet(layers)
    _train(model, x, y, EPOCHS, {})
    for step in range(1, STEPS + 1):
        masks = {}
        for name, layer in layers.items():
            weight = getattr(model, name).weight.detach()
            count = round(layer.kept ** (step / STEPS) * weight.numel())
            mask = torch.zeros(weight.numel())
            mask[weight.abs().reshape(-1).topk(count).indices] = 1
            masks[name] = mask.reshape(weight.shape)
        _train(model, x, y, TRAINED_ON, masks)
    with torch.no_grad():
        right = (model(x_test).argmax(1) == y_test).double().mean()
    return model, float(right)


def _larger(images: Tensor) -> Tensor:
    return functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear")


def _train(model: Lenet, x: Tensor, y: Tensor, epochs: int, masks: Mapping[str, Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(64):
            with torch.no_grad():
                for name, mask in masks.items():
                    getattr(model, name).weight *= mask
            optimizer.zero_grad()
            functional.cross_entropy(model(x[some]), y[some]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        for name, mask in masks.items():
            getattr(model, name).weight *= mask


def shared(weights: np.ndarray[Any, Any], bits: int, zero: bool) -> np.ndarray[Any, Any]:
    """Weights that are not zero replaced by centroids of k-means, evenly spaced in the beginning
    (section 3.2 of the paper). zero: one of the 2**bits values is for padding zeros."""
    flat = weights.reshape(-1).astype(np.float64)
    where = np.flatnonzero(flat)
    kept = flat[where]
    centroids = np.linspace(kept.min(), kept.max(), (1 << bits) - zero)
    for _ in range(ROUNDS):
        nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, kept)
        counts = np.bincount(nearest, minlength=centroids.size)
        sums = np.bincount(nearest, kept, centroids.size)
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
    flat[where] = centroids[nearest]
    return flat.reshape(weights.shape).astype(np.float32)


def coded(weights: np.ndarray[Any, Any], bits: int) -> Storage:
    """What the weights take, which are coded and decoded as well."""
    padded = account(weights, index_bits=INDEX_BITS).padding > 0
    values = shared(weights, bits, padded)
    found = encode_weights(values, index_bits=INDEX_BITS)
    counted = account(values, index_bits=INDEX_BITS)
    assert counted.huffman_bits == found.bits
    assert np.array_equal(decode_weights(found), values)
    return counted


def records(name: str) -> Iterator[dict[str, Any]]:
    """A row for every layer, then the total."""
    layers = NETWORKS[name]
    model, accuracy = trained(layers)
    rows = []
    for layer, of in layers.items():
        real = coded(getattr(model, layer).weight.detach().numpy(), of.bits)
        missing = FLOAT_BITS * ((1 << of.bits) - real.values)
        whole = replace(real, codebook=real.codebook + missing)
        ratios = published(prod(of.shape), of.kept, of.bits, INDEX_BITS)
        rows.append(
            {
                "layer": layer,
                "weights": real.weights,
                "kept": real.kept,
                "padding": real.padding,
                "values": real.values,
                "mean_weight_code": (real.weight_codes or 0) / real.stored,
                "mean_index_code": (real.index_codes or 0) / real.stored,
                "published": of.rate,
                "ratios": ratios.rate,
                "coded": whole.rate,
                "published_huffman": of.huffman_rate,
                "coded_huffman": whole.huffman_rate,
                "stored": real.huffman_rate,
            }
        )
    total: dict[str, Any] = {"layer": "total", "accuracy": accuracy}
    total |= {key: sum(row[key] for row in rows) for key in ("weights", "kept", "padding")}
    total |= {
        key: sum(row[key] * row["weights"] for row in rows) / total["weights"]
        for key in ("ratios", "coded", "coded_huffman", "stored")
    }
    total["published"], total["published_huffman"] = TOTALS[name]
    yield from (row | {"network": name} for row in [*rows, total])


def table(rows: list[dict[str, Any]]) -> Table:
    """Rates in percent, and how far ours are from the published ones."""
    out = Table(title="bits of coded weights by bits of float32 weights")
    for head in ("network", "layer", "weights", "kept", "padding", "bits/weight", "bits/run"):
        out.add_column(head)
    for head in ("P+Q published", "ratios", "coded", "P+Q+H published", "coded", "stored"):
        out.add_column(head, justify="right")
    for row in rows:
        means = [f"{row[key]:.1f}" if key in row else "" for key in _MEANS]
        out.add_row(
            row["network"],
            row["layer"],
            f"{row['weights']:,}",
            f"{row['kept'] / row['weights']:.0%}",
            f"{row['padding']:,}",
            *means,
            f"{row['published']:.2%}",
            _beside(row["ratios"], row["published"]),
            _beside(row["coded"], row["published"]),
            f"{row['published_huffman']:.2%}",
            _beside(row["coded_huffman"], row["published_huffman"]),
            f"{row['stored']:.2%}",
        )
    return out


_MEANS = ("mean_weight_code", "mean_index_code")


def _beside(ours: float, theirs: float) -> str:
    off = ours / theirs - 1
    return f"{ours:.2%} {off:+.1%}{'' if abs(off) <= WITHIN else ' !'}"


def main() -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    rows = [row for name in NETWORKS for row in records(name)]
    Console(width=160).print(table(rows))
    for row in rows:
        if "accuracy" in row:
            rate = 1 / row["stored"]
            print(f"{row['network']}: {rate:.1f}x, accuracy {row['accuracy']:.2%} (pruned)")
    Path("benchmarks-published_rates.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
