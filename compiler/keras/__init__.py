"""Models of Keras and QKeras, read without TensorFlow.

    file or model in memory -> Model (description.py) -> nn.Module (network.py) -> fxloom.capture

A model is described by the JSON that Keras itself writes and by its arrays; nothing in it is ever
executed. What a layer means is written once, in torch, in the modules beside this one.
"""
