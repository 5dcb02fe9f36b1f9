"""Models of a few nodes: every operator of ONNX that is read, and its attributes."""

from typing import Any

import numpy as np

chance = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return chance.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return (np.abs(normal(*shape)) + 0.5).astype(np.float32)


def whole(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


IMAGE = ["n", 4, 7, 6]
W3 = normal(5, 4, 3, 3)
CASES: dict[str, tuple[Any, ...]] = {
    # name: nodes, shape of x, constants, operator set
    "conv": ("y = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w, b)", IMAGE, {"w": W3, "b": normal(5)}),
    "conv asymmetric": ("y = Conv<pads=[0,1,2,0], dilations=[1,2]>(x, w)", IMAGE, {"w": W3}),
    "conv same upper": (
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
        IMAGE,
        {"w": normal(5, 4, 2, 3)},
    ),
    "conv same lower": (
        'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)',
        IMAGE,
        {"w": normal(5, 4, 2, 3)},
    ),
    "conv valid": ('y = Conv<auto_pad="VALID">(x, w)', IMAGE, {"w": W3}),
    "conv groups": ("y = Conv<group=2>(x, w)", IMAGE, {"w": normal(6, 2, 3, 3)}),
    "conv depthwise": (
        "y = Conv<group=4, kernel_shape=[3,3]>(x, w)",
        IMAGE,
        {"w": normal(8, 1, 3, 3)},
    ),
    "conv 1d": (
        "y = Conv<pads=[2,1], strides=[2]>(x, w, b)",
        ["n", 4, 9],
        {"w": normal(3, 4, 4), "b": normal(3)},
    ),
    "deconv": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]>(x, w, b)",
        IMAGE,
        {"w": normal(4, 3, 3, 3), "b": normal(3)},
    ),
    "deconv asymmetric": (
        "y = ConvTranspose<strides=[2,1], pads=[0,1,1,0], group=2>(x, w)",
        IMAGE,
        {"w": normal(4, 3, 3, 3)},
    ),
    "deconv same": (
        'y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w)',
        IMAGE,
        {"w": normal(4, 3, 3, 3)},
    ),
    "deconv shape": (
        "y = ConvTranspose<strides=[2,2], output_shape=[14,13]>(x, w)",
        IMAGE,
        {"w": normal(4, 3, 3, 3)},
    ),
    "deconv 1d": (
        "y = ConvTranspose<strides=[3], pads=[1,0]>(x, w)",
        ["n", 4, 9],
        {"w": normal(4, 3, 4)},
    ),
    "gemm": (
        "y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)",
        ["n", 6],
        {"w": normal(4, 6), "b": normal(4)},
    ),
    "gemm plain": ("y = Gemm(x, w)", ["n", 6], {"w": normal(6, 4)}),
    "gemm row": ("y = Gemm(x, w, b)", ["n", 6], {"w": normal(6, 4), "b": normal(1, 4)}),
    "gemm scalar": ("y = Gemm(x, w, b)", ["n", 6], {"w": normal(6, 4), "b": normal(1)}),
    "gemm computed bias": (
        "b = Slice(x, s, e, a)\ny = Gemm<beta=0.5>(x, w, b)",
        ["n", 6],
        {"w": normal(6, 4), "s": whole(1), "e": whole(5), "a": whole(1)},
    ),
    "matmul": ("y = MatMul(x, w)", ["n", 5, 6], {"w": normal(6, 4)}),
    "matmul left": ("y = MatMul(w, x)", ["n", 5, 6], {"w": normal(3, 5)}),
    "matmul batched": ("y = MatMul(x, w)", ["n", 3, 5, 6], {"w": normal(3, 6, 4)}),
    "matmul computed": ("t = Transpose<perm=[0,2,1]>(x)\ny = MatMul(x, t)", ["n", 5, 6], {}),
    "einsum": ('y = Einsum<equation="bij,jk->bik">(x, w)', ["n", 5, 6], {"w": normal(6, 4)}),
    "arithmetic": (
        "a = Add(x, w)\nb = Sub(w, a)\nc = Mul(b, x)\nd = Neg(c)\ne = Abs(d)\ny = Div(e, v)",
        ["n", 4, 5],
        {"w": normal(5), "v": positive(4, 1)},
    ),
    "numbers": (
        "a = Add(x, one)\nb = Mul(half, a)\ny = Div(b, half)",
        ["n", 4],
        {"one": np.float32(1), "half": np.full((1, 1), 0.5, np.float32)},
    ),
    "computed division": (
        "a = Abs(x)\nb = Add(a, one)\ny = Div(x, b)",
        ["n", 4],
        {"one": np.float32(1)},
    ),
    "sum mean": ("a = Sum(x, w, x)\ny = Mean(a, x)", ["n", 4], {"w": normal(4)}),
    "max min": (
        "a = Max(x, w)\nb = Min(half, a, x)\ny = Max(b, x)",
        ["n", 4],
        {"w": normal(4), "half": np.float32(0.5)},
    ),
    "pow": (
        "a = Pow(x, two)\nb = Add(a, two)\nc = Pow(b, half)\ny = Pow(x, three)\nz = Sqrt(b)",
        ["n", 4],
        {"two": np.float32(2), "half": np.float32(0.5), "three": np.float32(3)},
        21,
        ("c", "y", "z"),
    ),
    "exp log": ("a = Exp(x)\nb = Log(a)\nc = Reciprocal(a)\ny = Add(b, c)", ["n", 4], {}),
    "erf": ("y = Erf(x)", ["n", 4], {}),
    "sin cos sign": ("a = Sin(x)\nb = Cos(a)\nc = Sign(x)\ny = Mul(b, c)", ["n", 4], {}),
    "relu": ("y = Relu(x)", ["n", 4], {}),
    "leaky": ("y = LeakyRelu<alpha=0.125>(x)", ["n", 4], {}),
    "leaky default": ("y = LeakyRelu(x)", ["n", 4], {}),
    "prelu": ("y = PRelu(x, w)", IMAGE, {"w": normal(4, 1, 1)}),
    "prelu one": ("y = PRelu(x, w)", ["n", 4], {"w": normal(1)}),
    "prelu all": ("y = PRelu(x, w)", ["n", 4, 3], {"w": normal(4, 3)}),
    "elu": ("y = Elu<alpha=0.5>(x)", ["n", 4], {}),
    "selu": ("y = Selu(x)", ["n", 4], {}),
    "selu other": ("y = Selu<alpha=1.5, gamma=2.0>(x)", ["n", 4], {}),
    "celu": ("y = Celu<alpha=0.5>(x)", ["n", 4], {}),
    "thresholded": ("y = ThresholdedRelu<alpha=0.5>(x)", ["n", 4], {}),
    "sigmoid tanh": ("a = Sigmoid(x)\ny = Tanh(a)", ["n", 4], {}),
    "hard": ("a = HardSigmoid<alpha=0.25>(x)\nb = HardSwish(a)\ny = HardSigmoid(b)", ["n", 4], {}),
    "soft": ("a = Softplus(x)\ny = Softsign(a)", ["n", 4], {}),
    "gelu": ('a = Gelu(x)\ny = Gelu<approximate="tanh">(a)', ["n", 4], {}),
    "mish": ("y = Mish(x)", ["n", 4], {}),
    "swish": ("a = Swish(x)\ny = Swish<alpha=0.5>(a)", ["n", 4], {}, 24),
    "clip": (
        "a = Clip(x, low, high)\nb = Clip(a, , high)\ny = Clip(b)",
        ["n", 4],
        {"low": np.float32(-0.5), "high": np.float32(0.75)},
    ),
    "clip 6": ("a = Clip<min=-0.5, max=0.5>(x)\ny = Clip(a)", ["n", 4], {}, 9),
    "softmax": ("a = Softmax(x)\ny = LogSoftmax<axis=1>(a)", ["n", 4, 3], {}),
    "softmax 11": ("a = Softmax(x)\ny = LogSoftmax<axis=2>(a)", ["n", 4, 3], {}, 11),
    "batch norm": (
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        IMAGE,
        {"s": positive(4), "b": normal(4), "m": normal(4), "v": positive(4)},
    ),
    "batch norm flat": (
        "y = BatchNormalization(x, s, b, m, v)",
        ["n", 4],
        {"s": positive(4), "b": normal(4), "m": normal(4), "v": positive(4)},
        9,
    ),
    "instance norm": (
        "y = InstanceNormalization(x, s, b)",
        IMAGE,
        {"s": positive(4), "b": normal(4)},
    ),
    "layer norm": (
        "y = LayerNormalization(x, s, b)",
        ["n", 4, 5],
        {"s": positive(5), "b": normal(5)},
    ),
    "layer norm 2": ("y = LayerNormalization<axis=1>(x, s)", ["n", 4, 5], {"s": positive(4, 5)}),
    "group norm": (
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        IMAGE,
        {"s": positive(4), "b": normal(4)},
    ),
    "rms norm": ("y = RMSNormalization(x, s)", ["n", 4, 5], {"s": positive(5)}, 23),
    "max pool": ("y = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,0]>(x)", IMAGE, {}),
    "max pool ceil": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", IMAGE, {}),
    "max pool same": (
        'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)',
        IMAGE,
        {},
    ),
    "max pool 1d": ("y = MaxPool<kernel_shape=[3], strides=[2], pads=[0,1]>(x)", ["n", 4, 9], {}),
    "average pool": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        IMAGE,
        {},
    ),
    "average pool include": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        IMAGE,
        {},
    ),
    "average pool ceil": (
        "y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
        IMAGE,
        {},
    ),
    "average pool same": (
        'y = AveragePool<kernel_shape=[2,3], strides=[2,2], auto_pad="SAME_LOWER">(x)',
        IMAGE,
        {},
    ),
    "average pool uneven": (
        "y = AveragePool<kernel_shape=[2,3], pads=[0,1,1,0], count_include_pad=1>(x)",
        IMAGE,
        {},
    ),
    "average pool 1d": ("y = AveragePool<kernel_shape=[3]>(x)", ["n", 4, 9], {}),
    "global pools": (
        "a = GlobalAveragePool(x)\nb = GlobalMaxPool(x)\ny = Concat<axis=1>(a, b)",
        IMAGE,
        {},
    ),
    "reduce": (
        "a = ReduceMean(x, d)\n"
        "b = ReduceSum<keepdims=0>(x, d)\n"
        "c = ReduceMax(x, d)\n"
        "y = ReduceMin<keepdims=0>(x, d)",
        IMAGE,
        {"d": whole(2, -1)},
        21,
        ("a", "b", "c", "y"),
    ),
    "reduce 11": (
        "a = ReduceMean<axes=[1]>(x)\ny = ReduceSum<axes=[-1], keepdims=0>(a)",
        IMAGE,
        {},
        11,
    ),
    "reduce others": (
        "a = ReduceL1(x, d)\n"
        "b = ReduceL2(x, d)\n"
        "c = ReduceSumSquare(x, d)\n"
        "y = ReduceLogSumExp<keepdims=0>(x, d)",
        ["n", 4, 5],
        {"d": whole(2)},
        21,
        ("a", "b", "c", "y"),
    ),
    "reduce nothing": ("y = ReduceSum<noop_with_empty_axes=1>(x)", ["n", 4], {}),
    "reduce nothing of each": (
        """a = ReduceL1<noop_with_empty_axes=1>(x)
        b = ReduceL2<noop_with_empty_axes=1>(x)
        c = ReduceSumSquare<noop_with_empty_axes=1>(x)
        d = ReduceLogSumExp<noop_with_empty_axes=1>(x)
        e = ReduceMax<noop_with_empty_axes=1>(x)
        y = Concat<axis=1>(a, b, c, d, e)""",
        ["n", 3, 4],
        {},
    ),
    "arg max": (
        "a = ArgMax<axis=1>(x)\ny = ArgMin<axis=-1, keepdims=0>(x)",
        ["n", 4, 5],
        {},
        21,
        ("a", "y"),
    ),
    "flatten": ("y = Flatten(x)", IMAGE, {}),
    "flatten 2": ("a = Flatten<axis=2>(x)\ny = Reshape(a, s)", IMAGE, {"s": whole(-1, 4, 42)}),
    "reshape": (
        "a = Reshape(x, s)\ny = Reshape(a, t)",
        IMAGE,
        {"s": whole(0, 2, -1), "t": whole(-1, 84, 2)},
    ),
    "reshape of shape": (
        "s = Shape(x)\n"
        "b = Gather(s, zero)\n"
        "c = Unsqueeze(b, zeros)\n"
        "d = Concat<axis=0>(c, rest)\n"
        "y = Reshape(x, d)",
        IMAGE,
        {"zero": np.int64(0), "zeros": whole(0), "rest": whole(-1)},
    ),
    "transpose": (
        "a = Transpose<perm=[0,3,1,2]>(x)\ny = Transpose<perm=[0,2,3,1]>(a)\nz = Relu(a)",
        IMAGE,
        {},
        21,
        ("y", "z"),
    ),
    "squeeze": (
        "a = Unsqueeze(x, d)\nb = Squeeze(a, d)\nc = Squeeze(a)\ny = Add(b, c)",
        ["n", 4],
        {"d": whole(2, 1)},
    ),
    "squeeze 11": ("a = Unsqueeze<axes=[1,3]>(x)\ny = Squeeze<axes=[1]>(a)", ["n", 4], {}, 11),
    "concat": ("a = Relu(x)\ny = Concat<axis=-1>(x, a)", ["n", 4, 5], {}),
    "class token": (
        "s = Shape<end=1>(x)\nt = Concat<axis=0>(s, r)\nc = Expand(w, t)\ny = Concat<axis=1>(c, x)",
        ["n", 4, 5],
        {"w": normal(1, 1, 5), "r": whole(1, 5)},
    ),
    "split": (
        "a, b, c = Split<axis=1>(x, s)\ny = Concat<axis=1>(c, a)",
        ["n", 6],
        {"s": whole(1, 3, 2)},
    ),
    "split even": (
        "a, b = Split<axis=1, num_outputs=2>(x)\ny = Concat<axis=1>(b, a)",
        ["n", 5],
        {},
    ),
    "split 11": (
        "a, b = Split<axis=1>(x)\nc, d = Split<axis=1, split=[1,2]>(b)\ny = Concat<axis=1>(d, c)",
        ["n", 6],
        {},
        11,
    ),
    "slice": (
        "a = Slice(x, s, e, d, t)\ny = Slice(a, s1, e1)",
        IMAGE,
        {
            "s": whole(1, -1),
            "e": whole(2**62, -(2**62)),
            "d": whole(2, 3),
            "t": whole(2, -2),
            "s1": whole(0, 1),
            "e1": whole(2**62, 3),
        },
    ),
    "slice from before the first": (
        "y = Slice(x, s, e, a, t)",
        ["n", 4, 7, 6],
        {"s": whole(-9, 9), "e": whole(-9, -9), "a": whole(1, 2), "t": whole(-1, -3)},
    ),
    "slice 9": ("y = Slice<starts=[1,0], ends=[3,-1], axes=[1,2]>(x)", IMAGE, {}, 9),
    "gather": (
        "a = Gather<axis=1>(x, i)\nb = Gather<axis=2>(a, k)\ny = Gather<axis=-1>(b, m)",
        IMAGE,
        {"i": whole(2, -1, 0), "k": np.int64(-1), "m": np.array([[0, 1], [2, 2]])},
    ),
    "embedding": (
        "i = ArgMax<axis=-1, keepdims=0>(x)\ny = Gather(w, i)",
        ["n", 4, 5],
        {"w": normal(5, 3)},
    ),
    "pad": (
        'a = Pad(x, p, v)\nb = Pad<mode="reflect">(a, q)\ny = Pad<mode="edge">(b, r, , d)',
        IMAGE,
        {
            "p": whole(0, 1, 0, 2, 0, 0, 1, 0),
            "v": np.float32(0.5),
            "q": whole(0, 0, 1, 1, 0, 0, 0, 1),
            "r": whole(1, 2),
            "d": whole(3),
        },
    ),
    "pad 10": ("y = Pad<pads=[0,0,1,1,0,0,2,0], value=1.5>(x)", IMAGE, {}, 10),
    "pad wrap": ('y = Pad<mode="wrap">(x, p)', IMAGE, {"p": whole(0, 0, 1, 2, 0, 0, 0, 1)}),
    "expand": (
        "a = Expand(x, s)\ny = Add(a, w)",
        ["n", 1, 5],
        {"s": whole(1, 3, 1), "w": normal(5)},
    ),
    "tile": ("y = Tile(x, r)", ["n", 2, 3], {"r": whole(1, 2, 3)}),
    "resize nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, , s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "resize half pixel": (
        'y = Resize<mode="nearest">(x, , s)',
        IMAGE,
        {"s": np.array([1, 1, 1.5, 0.5], np.float32)},
    ),
    "resize ceil": (
        'y = Resize<mode="nearest", '
        'coordinate_transformation_mode="align_corners", nearest_mode="ceil">(x, , , s)',
        [3, 4, 7, 6],
        {"s": whole(3, 4, 9, 11)},
    ),
    "resize linear": (
        'y = Resize<mode="linear">(x, , s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize corners": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , s)',
        ["n", 4, 6],
        {"s": np.array([1, 1, 2], np.float32)},
    ),
    "resize axes": (
        'y = Resize<mode="linear", '
        'coordinate_transformation_mode="pytorch_half_pixel", axes=[2,3]>(x, , , s)',
        IMAGE,
        {"s": whole(14, 9)},
    ),
    "resize without a region": (
        "y = Resize(x, region, s)",
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32), "region": np.zeros(0, np.float32)},
    ),
    "resize cubic": (
        'y = Resize<mode="cubic">(x, , s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize of shape": (
        "s = Shape<end=2>(x)\n"
        "t = Concat<axis=0>(s, r)\n"
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, , , t)',
        IMAGE,
        {"r": whole(14, 12)},
    ),
    "resize 10": (
        'y = Resize<mode="nearest">(x, s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
        10,
    ),
    "resize 10 smaller": (
        "y = Resize(x, s)",
        ["n", 2, 7, 5],
        {"s": np.array([1, 1, 0.33, 0.7], np.float32)},
        10,
    ),
    "resize rounded": (
        """a = Resize<mode="nearest", nearest_mode="floor">(x, , s)
        y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric">(a, , s)""",
        ["n", 2, 10, 5],
        {"s": np.array([1, 1, 0.7, 0.6], np.float32)},
    ),
    "upsample": (
        'y = Upsample<mode="nearest">(x, s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
        9,
    ),
    "upsample 7": ('y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,3.0]>(x)', IMAGE, {}, 8),
    "depth to space": (
        "a = DepthToSpace<blocksize=2>(x)\n"
        "b = SpaceToDepth<blocksize=2>(a)\n"
        'y = DepthToSpace<blocksize=2, mode="CRD">(b)',
        ["n", 8, 4, 6],
        {},
    ),
    "where": (
        "c = Greater(x, w)\ny = Where(c, x, w)\nd = Not(c)\nz = Where(d, x, half)",
        ["n", 4],
        {"w": normal(4), "half": np.float32(0.5)},
        21,
        ("y", "z"),
    ),
    "comparisons": (
        "a = Less(x, w)\n"
        "b = GreaterOrEqual(x, half)\n"
        "c = LessOrEqual(x, half)\n"
        "d = Or(a, b)\n"
        "e = And(d, c)\n"
        "f = Xor(e, a)\n"
        "y = Cast<to=1>(f)",
        ["n", 4],
        {"w": normal(4), "half": np.float32(0.5)},
    ),
    "equal": (
        "a = Sign(x)\nb = Equal(a, one)\nc = Where(b, x, a)\nd = CastLike(b, x)\ny = Add(c, d)",
        ["n", 4],
        {"one": np.float32(1)},
    ),
    "identities": (
        "a = Identity(x)\nb = Dropout(a)\ny = Dropout(b, r)",
        ["n", 4],
        {"r": np.float32(0.5)},
    ),
    "dropout 7": ("a = Dropout<ratio=0.5>(x)\ny = Relu(a)", ["n", 4], {}, 9),
    "constants": (
        "a = Constant<value_floats=[0.5,1.5]>()\n"
        "b = Constant<value_float=2.0>()\n"
        "c = Mul(a, b)\n"
        "y = Add(x, c)",
        ["n", 2],
        {},
    ),
    "made constants": (
        "n = ReduceProd<keepdims=0>(s)\n"
        "r = Range(zero, n, one)\n"
        "m = Mod(r, two)\n"
        "t = Reshape(m, s)\n"
        "f = Cast<to=1>(t)\n"
        "g = Floor(f)\n"
        "h = Ceil(g)\n"
        "z = ConstantOfShape(s)\n"
        "k = Size(z)\n"
        "l = Cast<to=1>(k)\n"
        "i = Add(h, z)\n"
        "o = Mul(i, l)\n"
        "y = Add(x, o)",
        ["n", 2, 3],
        {"s": whole(2, 3), "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2)},
    ),
    "lstm": (
        "t = Transpose<perm=[1,0,2]>(x)\n"
        "a, h, c = LSTM<hidden_size=3>(t, w, r, b)\n"
        "y = Transpose<perm=[2,0,1,3]>(a)\n"
        "hs = Squeeze(h, zero)\n"
        "cs = Squeeze(c, zero)",
        ["n", 4, 5],
        {"w": normal(1, 12, 5), "r": normal(1, 12, 3), "b": normal(1, 24), "zero": whole(0)},
        21,
        ("y", "hs", "cs"),
    ),
    "lstm both ways": (
        "t = Transpose<perm=[1,0,2]>(x)\n"
        "s = Shape<start=1, end=2>(t)\n"
        "d = Concat<axis=0>(two, s, three)\n"
        "z = ConstantOfShape(d)\n"
        'a = LSTM<hidden_size=3, direction="bidirectional">(t, w, r, b, , z, z)\n'
        "p = Transpose<perm=[2,0,1,3]>(a)\n"
        "y = Reshape(p, shape)",
        ["n", 4, 5],
        {
            "w": normal(2, 12, 5),
            "r": normal(2, 12, 3),
            "b": normal(2, 24),
            "two": whole(2),
            "three": whole(3),
            "shape": whole(0, 0, 6),
        },
    ),
    "gru reverse": (
        "t = Transpose<perm=[1,0,2]>(x)\n"
        'a, h = GRU<hidden_size=3, linear_before_reset=1, direction="reverse">(t, '
        "w, r)\n"
        "p = Squeeze(a, one)\n"
        "y = Transpose<perm=[1,0,2]>(p)",
        ["n", 4, 5],
        {"w": normal(1, 9, 5), "r": normal(1, 9, 3), "one": whole(1)},
    ),
    "rnn": (
        "t = Transpose<perm=[1,0,2]>(x)\n"
        'a, h = RNN<hidden_size=3, activations=["Relu"]>(t, w, r, b)\n'
        "y = Squeeze(h, zero)",
        ["n", 4, 5],
        {"w": normal(1, 3, 5), "r": normal(1, 3, 3), "b": normal(1, 6), "zero": whole(0)},
    ),
    "rnn state": (
        "t = Transpose<perm=[1,0,2]>(x)\n"
        "u = Slice(t, s, e, d)\n"
        "i = Slice(u, s, three, two)\n"
        "a, h = RNN<hidden_size=3>(t, w, r, b, , i)\n"
        "y = Squeeze(h, zero)",
        ["n", 4, 5],
        {
            "w": normal(1, 3, 5),
            "r": normal(1, 3, 3),
            "b": normal(1, 6),
            "zero": whole(0),
            "s": whole(0),
            "e": whole(1),
            "d": whole(0),
            "three": whole(3),
            "two": whole(2),
        },
    ),
}
CASES |= {
    "quantize linear": (
        "a = QuantizeLinear(x, s, z)\n"
        "b = DequantizeLinear(a, s, z)\n"
        "c = Relu(b)\n"
        "d = QuantizeLinear(c, s)\n"
        "y = DequantizeLinear(d, s)",
        ["n", 4],
        {"s": np.float32(0.037), "z": np.int8(-5)},
    ),
    "quantize linear weights": (
        "a = QuantizeLinear(x, s, z)\n"
        "b = DequantizeLinear(a, s, z)\n"
        "v = DequantizeLinear<axis=0>(w, each, zeros)\n"
        "c = DequantizeLinear<axis=0>(i, each)\n"
        "d = Conv<pads=[0,1,0,1]>(b, v, c)\n"
        "e = DequantizeLinear<axis=1>(u, each)\n"
        "f = GlobalAveragePool(d)\n"
        "g = Flatten(f)\n"
        "t = Identity(e)\n"
        "h = Gemm(g, t)\n"
        "y = Add(h, half)",
        ["n", 4, 7, 6],
        {
            "s": np.float32(0.037),
            "z": np.uint8(120),
            "w": chance.integers(-128, 128, (3, 4, 3, 3)).astype(np.int8),
            "i": chance.integers(-(2**12), 2**12, 3).astype(np.int32),
            "u": chance.integers(0, 256, (3, 3)).astype(np.uint8),
            "each": np.array([0.013, 0.007, 0.021], np.float32),
            "zeros": np.zeros(3, np.int8),
            "half": np.float32(0.5),
        },
    ),
    "quantize linear of fewer bits": (
        "a = QuantizeLinear(x, s, z)\n"
        "b = Clip(a, low, high)\n"
        "c = DequantizeLinear(b, s, z)\n"
        "u = QuantizeLinear(w, t, zero)\n"
        "v = Clip(u, low, high)\n"
        "d = DequantizeLinear(v, t, zero)\n"
        "y = Gemm(c, d)",
        ["n", 6],
        {
            "w": normal(6, 5),
            "s": np.float32(0.21),
            "t": np.float32(0.17),
            "z": np.int8(2),
            "zero": np.int8(0),
            "low": np.int8(-7),
            "high": np.int8(7),
        },
    ),
    "quantized constants": (
        "a = QuantizeLinear(w, s, z)\nb = DequantizeLinear(a, s, z)\ny = Add(x, b)",
        ["n", 4],
        {"w": normal(4), "s": np.float32(0.037), "z": np.uint8(128)},
    ),
}
