"""Random models of Keras 2 and Keras 3: the captured graph equals model.predict."""

import pytest

from tests.frontends.keras_agreement import assert_agrees, randomise
from tests.frontends.random_keras import random_model

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_computes_what_keras_predicts(seed: int) -> None:
    assert_agrees(randomise(random_model((keras, tf_keras)[seed % 2], seed)))
