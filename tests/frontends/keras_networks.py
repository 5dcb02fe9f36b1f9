"""Small networks of every kind that people build with Keras, for images, signals and tables.

Each takes keras or tf_keras and gives a model. What Keras 2 or 3 alone has is not among them.
"""

from collections.abc import Callable
from typing import Any

Build = Callable[[Any], Any]
ARCHITECTURES: dict[str, Build] = {}


def architecture(build: Build) -> Build:
    """Add a network to the table, under its name."""
    ARCHITECTURES[build.__name__] = build
    return build


# Tables ------------------------------------------------------------------------------------------


@architecture
def perceptron(k: Any) -> Any:
    layers = k.layers
    hidden = [layers.Dense(8, activation="relu"), layers.Dense(6, activation="tanh")]
    return k.Sequential([layers.Input((10,)), *hidden, layers.Dense(4, activation="softmax")])


@architecture
def normalised_perceptron(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((7,)),
            layers.Normalization(mean=[1.0, 0, 2, -1, 0, 0, 3], variance=[1.0, 2, 3, 1, 1, 4, 2]),
            layers.Dense(8, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Dense(3),
            layers.BatchNormalization(scale=False),
            layers.ELU(),
        ]
    )


@architecture
def self_normalising(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((6,)),
            layers.GaussianNoise(0.1),
            layers.Dense(8, activation="selu"),
            layers.AlphaDropout(0.1),
            layers.Dense(8),
            layers.Activation("selu"),
            layers.GaussianDropout(0.2),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


@architecture
def wide_and_deep(k: Any) -> Any:
    layers = k.layers
    wide, deep = layers.Input((4,)), layers.Input((6,))
    hidden = layers.Dense(5, activation="relu")(layers.Dense(5, activation="elu")(deep))
    return k.Model([wide, deep], layers.Dense(2)(layers.Concatenate()([wide, hidden])))


@architecture
def highway(k: Any) -> Any:
    layers = k.layers
    x = y = layers.Input((6,))
    for _ in range(2):
        gate = layers.Dense(6, activation="sigmoid")(y)
        change = layers.Subtract()([layers.Dense(6, activation="tanh")(y), y])
        y = layers.Add()([y, layers.Multiply()([gate, change])])
    return k.Model(x, y)


@architecture
def mixture_of_experts(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((5,))
    shares = layers.Reshape((3, 1))(layers.Dense(3, activation="softmax")(x))
    experts = [layers.Reshape((1, 4))(layers.Dense(4, activation="relu")(x)) for _ in range(3)]
    mixed = layers.Dot(axes=1)([shares, layers.Concatenate(axis=1)(experts)])
    return k.Model(x, layers.Flatten()(mixed))


@architecture
def several_inputs_and_outputs(k: Any) -> Any:
    layers = k.layers
    image, vector = layers.Input((6, 6, 2)), layers.Input((3,))
    seen = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    joined = layers.Concatenate()([seen, layers.Dense(4)(vector)])
    classes = layers.Dense(3, activation="softmax", name="classes")(joined)
    box = layers.Dense(4, activation="hard_sigmoid", name="box")(joined)
    return k.Model([image, vector], [classes, box, layers.Average()([seen, vector_of(k, vector)])])


def vector_of(k: Any, x: Any) -> Any:
    """Four numbers of a vector."""
    return k.layers.Dense(4, activation="softsign")(x)


@architecture
def siamese(k: Any) -> Any:
    layers = k.layers
    shared = k.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(3, 3, strides=2), layers.PReLU(), layers.Flatten()]
    )
    one, two = layers.Input((8, 8, 1)), layers.Input((8, 8, 1))
    first, second = shared(one), shared(two)
    far = layers.Subtract()([first, second])
    near = layers.Dot(axes=1, normalize=True)([first, second])
    joined = layers.Concatenate()([layers.Multiply()([far, far]), near])
    return k.Model([one, two], layers.Dense(1, activation="sigmoid")(joined))


@architecture
def shared_layers(k: Any) -> Any:
    layers = k.layers
    dense, norm = layers.Dense(4, activation="relu"), layers.LayerNormalization()
    x, y = layers.Input((4,)), layers.Input((4,))
    a, b = norm(dense(x)), norm(dense(dense(y)))
    return k.Model(
        [x, y], [layers.Maximum()([a, b]), layers.Minimum()([a, b]), layers.Average()([a, b, x])]
    )


@architecture
def nested(k: Any) -> Any:
    layers = k.layers
    innermost = k.Sequential([layers.Input((4,)), layers.Dense(4), layers.ReLU(max_value=6.0)])
    x = layers.Input((4,))
    y = innermost(x)
    inner = k.Model(x, [layers.Add()([x, y]), layers.Dense(2)(innermost(y))], name="inner")
    z = layers.Input((3,))
    first, second = inner(layers.Dense(4)(z))
    return k.Model(z, layers.Concatenate()([first, second]))


@architecture
def recommender(k: Any) -> Any:
    layers = k.layers
    user, item = layers.Input((1,)), layers.Input((1,))
    towers = [
        layers.Dense(3)(layers.Flatten()(layers.Embedding(size, 4)(x)))
        for x, size in ((user, 9), (item, 7))
    ]
    return k.Model([user, item], layers.Activation("sigmoid")(layers.Dot(axes=1)(towers)))


@architecture
def autoencoder(k: Any) -> Any:
    layers = k.layers
    encoder = k.Sequential(
        [layers.Input((8,)), layers.Dense(5, activation="relu"), layers.Dense(2)], name="encoder"
    )
    decoder = k.Sequential(
        [layers.Input((2,)), layers.Dense(5, activation="relu"), layers.Dense(8)], name="decoder"
    )
    x = layers.Input((8,))
    code = layers.ActivityRegularization(l1=0.1)(encoder(x))
    return k.Model(x, [decoder(code), code])


@architecture
def deep_sets(k: Any) -> Any:
    """As for the constituents of a jet: the same layers for each, then their mean."""
    layers = k.layers
    x = layers.Input((5, 3))
    y = layers.Dense(6, activation="relu")(layers.TimeDistributed(layers.Dense(4))(x))
    return k.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


@architecture
def interaction_network(k: Any) -> Any:
    """Every constituent with the mean of all."""
    layers = k.layers
    x = layers.Input((4, 3))
    mean = layers.RepeatVector(4)(layers.GlobalAveragePooling1D()(x))
    edges = layers.Conv1D(5, 1, activation="relu")(layers.Concatenate()([x, mean]))
    return k.Model(x, layers.Dense(2)(layers.GlobalMaxPooling1D()(edges)))


# Images ------------------------------------------------------------------------------------------


@architecture
def lenet(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((12, 12, 1)),
            layers.Conv2D(4, 5, padding="same", activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(6, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(4, activation="softmax"),
        ]
    )


@architecture
def vgg(k: Any) -> Any:
    layers = k.layers
    blocks: list[Any] = [layers.Input((8, 8, 3)), layers.Rescaling(1 / 255, offset=-0.5)]
    for filters in (3, 4):
        blocks += [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        blocks.append(layers.MaxPooling2D())
    return k.Sequential([*blocks, layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)])


@architecture
def residual(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 3))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x)))
    for filters, strides in ((4, 1), (6, 2)):
        z = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(y)
        z = layers.ReLU()(layers.BatchNormalization()(z))
        z = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(z))
        short = y if strides == 1 else layers.Conv2D(filters, 1, strides=2)(y)
        y = layers.ReLU()(layers.Add()([z, short]))
    return k.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))


@architecture
def residual_before_activation(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((9, 7, 2))
    y = layers.Conv2D(4, 3, padding="same")(layers.ZeroPadding2D((1, 2))(x))
    z = layers.Activation("relu")(layers.BatchNormalization(center=False)(y))
    z = layers.Conv2D(4, (3, 1), padding="same")(z)
    y = layers.Add()([y, layers.SpatialDropout2D(0.1)(z)])
    return k.Model(x, layers.GlobalMaxPooling2D(keepdims=True)(y))


@architecture
def unet(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 1))
    first = layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    second = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    third = layers.Conv2D(5, 3, padding="same", activation="relu")(layers.MaxPooling2D()(second))
    up = layers.Concatenate()([layers.UpSampling2D()(third), second])
    up = layers.Conv2D(4, 3, padding="same", activation="relu")(up)
    up = layers.Conv2DTranspose(3, 2, strides=2, padding="same")(up)
    up = layers.Concatenate()([up, first])
    return k.Model(x, layers.Conv2D(2, 1, activation="softmax")(up))


@architecture
def mobilenet(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((9, 9, 3))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2)(x)))
    for strides in (1, 2):
        y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(5, 1)(y)))
    y = layers.Reshape((1, 1, 5))(layers.GlobalAveragePooling2D()(y))
    return k.Model(x, layers.Softmax()(layers.Flatten()(layers.Conv2D(3, 1)(y))))


@architecture
def inverted_residual(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((6, 6, 3))
    y = layers.Conv2D(3, 1)(x)
    z = layers.Activation("relu6")(layers.Conv2D(6, 1, use_bias=False)(y))
    z = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu6")(z)
    y = layers.Add()([y, layers.BatchNormalization()(layers.Conv2D(3, 1)(z))])
    return k.Model(x, layers.GlobalAveragePooling2D()(y))


@architecture
def xception(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 2))
    y = layers.SeparableConv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2)(y)
    y = layers.MaxPooling2D(3, strides=2, padding="same")(layers.BatchNormalization()(y))
    return k.Model(x, layers.Add()([y, layers.Conv2D(4, 1, strides=2, padding="same")(x)]))


@architecture
def inception(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((7, 7, 3))
    branches = [
        layers.Conv2D(2, 1, activation="relu")(x),
        layers.Conv2D(3, 3, padding="same")(layers.Conv2D(2, 1, activation="relu")(x)),
        layers.Conv2D(2, 5, padding="same", activation="relu")(x),
        layers.Conv2D(2, 1)(layers.MaxPooling2D(3, strides=1, padding="same")(x)),
        layers.AveragePooling2D(3, strides=1, padding="same")(x),
    ]
    return k.Model(x, layers.Dense(3)(layers.Flatten()(layers.Concatenate()(branches))))


@architecture
def squeezenet(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 2))
    y = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    squeezed = layers.Conv2D(2, 1, activation="relu")(y)
    wide = [layers.Conv2D(3, size, padding="same", activation="relu")(squeezed) for size in (1, 3)]
    y = layers.Conv2D(3, 1, activation="relu")(layers.Concatenate(axis=3)(wide))
    return k.Model(x, layers.Softmax()(layers.GlobalAveragePooling2D()(y)))


@architecture
def densenet(k: Any) -> Any:
    layers = k.layers
    x = y = layers.Input((6, 6, 2))
    for _ in range(3):
        z = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.Concatenate()([y, layers.Conv2D(2, 3, padding="same")(z)])
    return k.Model(x, layers.AveragePooling2D(2)(layers.Conv2D(3, 1)(y)))


@architecture
def squeeze_and_excitation(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((6, 6, 4))
    y = layers.Conv2D(4, 3, padding="same", activation="swish")(x)
    weights = layers.Dense(2, activation="relu")(layers.GlobalAveragePooling2D()(y))
    weights = layers.Reshape((1, 1, 4))(layers.Dense(4, activation="hard_sigmoid")(weights))
    return k.Model(x, layers.Multiply()([y, weights]))


@architecture
def shuffled_channels(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((4, 4, 4))
    y = layers.Conv2D(4, 1, groups=2)(x) if k.__name__ == "keras" else layers.Conv2D(4, 1)(x)
    y = layers.Permute((1, 2, 4, 3))(layers.Reshape((4, 4, 2, 2))(y))
    y = layers.DepthwiseConv2D(3, padding="same")(layers.Reshape((4, 4, 4))(y))
    return k.Model(x, y)


@architecture
def segmentation(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 2))
    y = x
    for rate in (1, 2, 4):
        y = layers.Conv2D(3, 3, dilation_rate=rate, padding="same", activation="relu")(y)
    y = layers.UpSampling2D((2, 1), interpolation="bilinear")(layers.Conv2D(3, 1)(y))
    return k.Model(x, layers.Softmax(axis=-1)(y))


@architecture
def image_autoencoder(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((7, 7, 1)),
            layers.ZeroPadding2D(((0, 1), (0, 1))),
            layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(2, 3, strides=2, padding="same"),
            layers.Cropping2D(((0, 1), (1, 0))),
            layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ]
    )


@architecture
def variational_encoder(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((6, 6, 1))
    y = layers.Flatten()(layers.Conv2D(3, 3, strides=2, activation="leaky_relu")(x))
    mean = layers.Dense(2)(y)
    return k.Model(x, [mean, layers.Dense(2, activation="softplus")(y)])


@architecture
def detector(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 3))
    fine = layers.LeakyReLU(0.1)(layers.Conv2D(4, 3, strides=2, padding="same")(x))
    coarse = layers.LeakyReLU(0.1)(layers.Conv2D(5, 3, strides=2, padding="same")(fine))
    joined = layers.Concatenate()([layers.UpSampling2D(2)(layers.Conv2D(2, 1)(coarse)), fine])
    heads = [layers.Conv2D(6, 1)(coarse), layers.Conv2D(6, 1)(joined)]
    return k.Model(x, [layers.Reshape((-1, 6))(head) for head in heads])


@architecture
def super_resolution(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((5, 5, 1))
    y = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(4, 3, padding="same")(x))
    y = layers.PReLU()(layers.Conv2D(3, 1)(y))
    return k.Model(x, layers.Conv2DTranspose(1, 4, strides=2, padding="valid")(y))


@architecture
def group_normalised(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((6, 6, 2))
    y = layers.Activation("mish")(layers.GroupNormalization(2)(layers.Conv2D(4, 3)(x)))
    y = layers.Activation("gelu")(layers.LayerNormalization()(layers.Conv2D(4, 3)(y)))
    return k.Model(x, layers.UnitNormalization()(layers.GlobalAveragePooling2D()(y)))


@architecture
def mixer(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 2))
    y = layers.Reshape((4, 5))(layers.Conv2D(5, 4, strides=4)(x))
    tokens = layers.Permute((2, 1))(layers.LayerNormalization()(y))
    tokens = layers.Permute((2, 1))(layers.Dense(4, activation="gelu")(tokens))
    y = layers.Add()([y, tokens])
    y = layers.Add()([y, layers.Dense(5, activation="gelu")(layers.LayerNormalization()(y))])
    return k.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


@architecture
def vision_transformer(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 8, 1))
    y = layers.Reshape((4, 6))(layers.Conv2D(6, 4, strides=4)(x))
    z = layers.LayerNormalization(epsilon=1e-6)(y)
    y = layers.Add()([y, layers.MultiHeadAttention(2, 3)(z, z)])
    y = layers.Dense(6, activation="gelu")(layers.LayerNormalization()(y))
    return k.Model(x, layers.Dense(3)(layers.Flatten()(y)))


@architecture
def recurrent_over_images(k: Any) -> Any:
    layers = k.layers
    frames = layers.Input((2, 6, 6, 1))
    y = layers.TimeDistributed(layers.Conv2D(2, 3, activation="relu"))(frames)
    y = layers.TimeDistributed(layers.Flatten())(layers.TimeDistributed(layers.MaxPooling2D())(y))
    return k.Model(frames, layers.Dense(2)(layers.LSTM(3)(y)))


# Signals and texts -------------------------------------------------------------------------------


@architecture
def signal_classifier(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((16, 2)),
            layers.Conv1D(4, 3, padding="same", activation="relu"),
            layers.MaxPooling1D(),
            layers.SpatialDropout1D(0.2),
            layers.Conv1D(5, 3, strides=2, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3, activation="softmax"),
        ]
    )


@architecture
def separable_signal_classifier(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((12, 2)),
            layers.ZeroPadding1D(1),
            layers.SeparableConv1D(4, 3, padding="same", activation="relu"),
            layers.AveragePooling1D(2),
            layers.DepthwiseConv1D(3, padding="same"),
            layers.BatchNormalization(),
            layers.Activation("hard_sigmoid"),
            layers.GlobalAveragePooling1D(),
        ]
    )


@architecture
def temporal_convolutions(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((10, 2))
    y = layers.Conv1D(3, 1)(x)
    for rate in (1, 2, 4):
        z = layers.Conv1D(3, 2, padding="causal", dilation_rate=rate, activation="relu")(y)
        y = layers.Add()([y, layers.Conv1D(3, 1)(z)])
    return k.Model(x, layers.Dense(2)(layers.Cropping1D((9, 0))(y)))


@architecture
def wavenet(k: Any) -> Any:
    layers = k.layers
    x = y = layers.Input((8, 3))
    skips = []
    for rate in (1, 2):
        curve = layers.Conv1D(3, 2, padding="causal", dilation_rate=rate, activation="tanh")(y)
        gate = layers.Conv1D(3, 2, padding="causal", dilation_rate=rate, activation="sigmoid")(y)
        z = layers.Conv1D(3, 1)(layers.Multiply()([curve, gate]))
        skips.append(z)
        y = layers.Add()([y, z])
    return k.Model(x, layers.Conv1D(4, 1)(layers.Activation("relu")(layers.Add()(skips))))


@architecture
def signal_autoencoder(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((8, 2)),
            layers.Conv1D(4, 3, padding="same", activation="relu"),
            layers.MaxPooling1D(2),
            layers.UpSampling1D(3),
            layers.Cropping1D((1, 3)),
            layers.Conv1D(2, 3, padding="same"),
        ]
    )


@architecture
def tagger(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((3,))
    y = layers.Embedding(11, 3)(x)
    y = layers.LSTM(4, return_sequences=True, dropout=0.1)(y)
    return k.Model(x, layers.TimeDistributed(layers.Dense(3, activation="softmax"))(y))


@architecture
def tagger_of_both_directions(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((3, 3))
    y = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(x)
    y = layers.Bidirectional(layers.GRU(2, return_sequences=True), merge_mode="sum")(y)
    return k.Model(x, layers.Dense(3, activation="log_softmax")(y))


@architecture
def gated_classifier(k: Any) -> Any:
    layers = k.layers
    recurrent = [layers.GRU(3, return_sequences=True), layers.GRU(2, reset_after=False)]
    return k.Sequential([layers.Input((3, 3)), *recurrent, layers.Dense(2, activation="softmax")])


@architecture
def simple_recurrence(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Input((4, 2)),
            layers.SimpleRNN(3, return_sequences=True),
            layers.SimpleRNN(2, activation="relu", go_backwards=True),
            layers.Dense(1),
        ]
    )


@architecture
def hard_gates(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((3, 2))
    return k.Model(x, layers.LSTM(3, activation="relu", recurrent_activation="hard_sigmoid")(x))


@architecture
def convolution_before_recurrence(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8, 2))
    y = layers.MaxPooling1D(2)(layers.Conv1D(4, 3, padding="same", activation="relu")(x))
    return k.Model(x, layers.Dense(2)(layers.Bidirectional(layers.SimpleRNN(2))(y)))


@architecture
def sequence_to_sequence(k: Any) -> Any:
    layers = k.layers
    source, target = layers.Input((3, 2)), layers.Input((2, 2))
    _, h, c = layers.LSTM(3, return_state=True)(source)
    y = layers.LSTM(3, return_sequences=True)(target, initial_state=[h, c])
    return k.Model([source, target], layers.Dense(2, activation="softmax")(y))


@architecture
def sequence_autoencoder(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((3, 2))
    y = layers.RepeatVector(3)(layers.GRU(3)(x))
    return k.Model(
        x, layers.TimeDistributed(layers.Dense(2))(layers.GRU(3, return_sequences=True)(y))
    )


@architecture
def text_by_mean(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((6,), dtype="int32")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(13, 4)(x))
    return k.Model(x, layers.Dense(2, activation="softmax")(layers.Dense(4, activation="relu")(y)))


@architecture
def text_by_convolutions(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((8,), dtype="int32")
    y = layers.Embedding(13, 4)(x)
    found = [layers.Conv1D(3, size, activation="relu")(y) for size in (2, 3, 4)]
    joined = layers.Concatenate()([layers.GlobalMaxPooling1D()(each) for each in found])
    return k.Model(x, layers.Dense(2)(layers.Dropout(0.5)(joined)))


@architecture
def text_by_attention(k: Any) -> Any:
    layers = k.layers
    x, question = layers.Input((4,), dtype="int32"), layers.Input((3,), dtype="int32")
    words = layers.Embedding(9, 4)
    keys, queries = words(x), words(question)
    dot = layers.Attention(use_scale=True)([queries, keys])
    additive = layers.AdditiveAttention()([queries, layers.Conv1D(4, 1)(keys)])
    y = layers.Concatenate()([queries, dot, additive])
    return k.Model([x, question], layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))


@architecture
def transformer_encoder(k: Any) -> Any:
    layers = k.layers
    x = layers.Input((4, 6))
    y = layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x)
    y = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, layers.Dropout(0.1)(y)]))
    z = layers.Dense(6)(layers.Dense(8, activation="gelu")(y))
    return k.Model(x, layers.LayerNormalization()(layers.Add()([y, z])))


@architecture
def transformer_decoder(k: Any) -> Any:
    layers = k.layers
    x, memory = layers.Input((3, 4)), layers.Input((5, 4))
    seen = layers.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True)
    y = layers.LayerNormalization()(layers.Add()([x, seen]))
    read = layers.MultiHeadAttention(2, 2, value_dim=3)(y, memory)
    y = layers.LayerNormalization()(layers.Add()([y, read]))
    return k.Model([x, memory], layers.Dense(5, activation="softmax")(y))
