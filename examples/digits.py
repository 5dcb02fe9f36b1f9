"""The demo's networks and data as functions that the command line can name:

fxloom compile examples/digits.py:cnn --data examples/digits.py:data --target xczu9eg -o build
"""

from torch import nn

from fxloom import Data, demo

MLP, CNN = demo.NETWORKS


def data() -> Data:
    """1,257 training and 540 test images of handwritten digits."""
    return demo.digits()


def mlp() -> nn.Module:
    """Trained in two seconds."""
    return demo.train(MLP, data())


def cnn() -> nn.Module:
    """Trained in four seconds."""
    return demo.train(CNN, data())
