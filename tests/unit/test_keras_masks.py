"""Masks of Keras on their way from layer to layer; no Keras is needed to follow them."""

from dataclasses import replace

import pytest

from fxloom.keras.description import Call, Layer, Model, TensorRef
from fxloom.keras.masks import unmet


def chain(*layers: Layer) -> Model:
    """An input and layers behind it, one after another."""
    called = [Layer("InputLayer", "input", {}, calls=(Call(()),))]
    for layer in layers:
        called.append(replace(layer, calls=(Call((TensorRef(called[-1].name),)),)))
    # Layers need not be described in the order of their calls.
    ports = (TensorRef("input"),), (TensorRef(called[-1].name),)
    return Model("model", tuple(reversed(called)), *ports)


WORDS = Layer("Embedding", "words", {"mask_zero": True})
DENSE = Layer("Dense", "dense", {})
MEMORY = Layer("LSTM", "memory", {})


def test_a_mask_reaches_a_reader_through_what_does_not_look_at_it() -> None:
    (line,) = unmet(chain(WORDS, DENSE, MEMORY))
    assert line.startswith("memory (LSTM): the mask of words reaches it")


@pytest.mark.parametrize(
    "layers",
    [
        (WORDS, DENSE),
        (replace(WORDS, config={"mask_zero": False}), MEMORY),
        (MEMORY, Layer("Masking", "masking", {}), DENSE),
    ],
)
def test_a_mask_that_no_one_reads_does_no_harm(layers: tuple[Layer, ...]) -> None:
    assert list(unmet(chain(*layers))) == []


def test_masks_go_into_nested_models_and_come_out_of_them() -> None:
    inside = Layer("Sequential", "inside", {}, model=chain(MEMORY))
    assert [line.split(":")[0] for line in unmet(chain(WORDS, inside))] == ["inside (Sequential)"]
    source = Layer("Sequential", "source", {}, model=chain(WORDS))
    (line,) = unmet(chain(source, DENSE, MEMORY))
    assert "the mask of source" in line


def test_a_wrapper_of_what_makes_a_mask_makes_one() -> None:
    wrapper = Layer("TimeDistributed", "each", {}, inner={"layer": WORDS})
    assert len(list(unmet(chain(wrapper, MEMORY)))) == 1
