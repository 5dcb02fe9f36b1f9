"""What must shrink together, pattern by pattern, and what must stay."""

import torch
from torch import nn
from torch.nn import functional

from fxloom.passes.channel_removal import without
from tests.passes.test_channel_masks import analysed


def conv(inputs: int, outputs: int, size: int = 1, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


IMAGE = (3, 6, 6)


def groups(found: object) -> list[tuple[tuple[str, ...], int]]:
    return [(group.names, len(group.units)) for group in found.groups]  # type: ignore[attr-defined]


def test_residual_sum_ties_its_branches() -> None:
    found = analysed(
        lambda m, x: m.head((y := m.a(x)) + m.c(torch.relu(m.b(y)))),
        *IMAGE, a=conv(3, 8), b=conv(8, 6), c=conv(6, 8), head=conv(8, 2),
    )  # fmt: skip
    assert groups(found) == [(("a", "c"), 8), (("b",), 6)]
    assert "output" in found.left["head"]


def test_concatenated_layers_shrink_apart() -> None:
    found = analysed(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1)),
        *IMAGE, a=conv(3, 4), b=conv(3, 6), head=conv(10, 2),
    )  # fmt: skip
    assert groups(found) == [(("a",), 4), (("b",), 6)]


def test_flatten_takes_all_places_of_a_channel() -> None:
    found = analysed(
        lambda m, x: m.head(m.a(x).flatten(1)), *IMAGE, a=conv(3, 8), head=nn.Linear(288, 2)
    )
    smaller = without(found, set(found.groups[0].units[:3].tolist()))
    assert smaller.head.weight.shape == (2, 180)


def test_depthwise_follows_and_its_groups_are_rewritten() -> None:
    found = analysed(
        lambda m, x: m.head(m.b(m.a(x))),
        *IMAGE, a=conv(3, 8), b=conv(8, 16, 3, groups=8), head=conv(16, 2),
    )  # fmt: skip
    assert groups(found) == [(("a", "b"), 8)]
    smaller = without(found, set(found.groups[0].units[:3].tolist()))
    assert smaller.b.weight.shape == (10, 1, 3, 3)
    (depthwise,) = (n for n in smaller.graph.nodes if n.name == "b")
    assert depthwise.args[8] == 5


def test_groups_whose_input_must_stay_lose_a_channel_each() -> None:
    found = analysed(
        lambda m, x: m.head(m.a(x)), 4, 6, 6, a=conv(4, 12, 3, groups=2), head=conv(12, 2)
    )
    assert groups(found) == [(("a",), 6)]


def test_layer_norm_pins_and_batch_norm_follows() -> None:
    found = analysed(
        lambda m, x: m.c(m.norm(m.b(m.batch(m.a(x))))),
        5, a=nn.Linear(5, 8), batch=nn.BatchNorm1d(8), b=nn.Linear(8, 6), norm=nn.LayerNorm(6),
        c=nn.Linear(6, 2),
    )  # fmt: skip
    assert groups(found) == [(("a",), 8)]
    assert "norm (aten.layer_norm)" in found.left["b"]


def test_group_norm_loses_whole_groups() -> None:
    found = analysed(
        lambda m, x: m.b(m.norm(m.a(x))),
        *IMAGE, a=conv(3, 8), norm=nn.GroupNorm(4, 8), b=conv(8, 2),
    )  # fmt: skip
    assert groups(found) == [(("a",), 4)]


def test_attention_loses_whole_heads() -> None:
    found = analysed(
        lambda m, x: m.head(m.attention(x, x, x, need_weights=False)[0]),
        5, 12, attention=nn.MultiheadAttention(12, 3, batch_first=True), head=nn.Linear(12, 2),
    )  # fmt: skip
    heads = found.groups[0]
    assert len(heads.units) == 3
    smaller = without(found, {int(heads.units[1])})
    assert smaller.attention.in_proj_weight.shape == (24, 12)
    assert smaller.attention.out_proj.weight.shape == (12, 8)


def test_single_head_loses_entries_and_keeps_its_scale() -> None:
    found = analysed(
        lambda m, x: m.c(
            functional.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))
        ),
        4, 6, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 5), c=nn.Linear(5, 2),
    )  # fmt: skip
    assert groups(found) == [(("q", "k"), 8), (("v",), 5)]


def test_hidden_units_of_an_lstm_take_all_gates_and_steps() -> None:
    found = analysed(
        lambda m, x: m.head(m.rnn(x)[0][:, -1]),
        5, 3, rnn=nn.LSTM(3, 6, batch_first=True), head=nn.Linear(6, 2),
    )  # fmt: skip
    assert [len(group.units) for group in found.groups] == [6]
    smaller = without(found, set(found.groups[0].units[:2].tolist()))
    shapes = {tuple(p.shape) for p in smaller.parameters()}
    assert (16, 7) in shapes  # 4 gates of 4 units; 3 inputs and 4 units


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    b.weight = a.weight
    found = analysed(
        lambda m, x: m.head(m.b(torch.relu(m.a(torch.relu(m.enter(x)))))),
        4, enter=nn.Linear(4, 6), a=a, b=b, head=nn.Linear(6, 2),
    )  # fmt: skip
    assert groups(found) == [(("enter", "a", "b"), 6)]
    smaller = without(found, set(found.groups[0].units[:2].tolist()))
    readers = [n.args[1].target for n in smaller.graph.nodes if n.name in ("a", "b")]
    tensors = [smaller.get_parameter(str(name)) for name in readers]
    assert tensors[0] is tensors[1]
    assert tensors[0].shape == (4, 4)


def test_chunks_and_slices_are_rewritten() -> None:
    found = analysed(
        lambda m, x: m.b((y := m.a(x))[:, :4] * y[:, 4:].sigmoid()),
        5, a=nn.Linear(5, 8), b=nn.Linear(4, 2),
    )  # fmt: skip
    assert groups(found) == [(("a",), 4)]


def test_sum_over_channels_may_shrink_but_a_mean_may_not() -> None:
    summed = analysed(
        lambda m, x: m.b(m.a(x).sum(1).flatten(1)), *IMAGE, a=conv(3, 8), b=nn.Linear(36, 2)
    )
    assert groups(summed) == [(("a",), 8)]
    averaged = analysed(
        lambda m, x: m.b(m.a(x).mean(1).flatten(1)), *IMAGE, a=conv(3, 8), b=nn.Linear(36, 2)
    )
    assert "mean" in averaged.left["a"]


def test_value_that_all_channels_share_pins_what_it_is_added_to() -> None:
    added = analysed(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        5, a=nn.Linear(5, 8), b=nn.Linear(5, 1), c=nn.Linear(8, 2),
    )  # fmt: skip
    assert "share" in added.left["a"]
    scaled = analysed(
        lambda m, x: m.c(m.a(x) * m.b(x)),
        5, a=nn.Linear(5, 8), b=nn.Linear(5, 1), c=nn.Linear(8, 2),
    )  # fmt: skip
    assert groups(scaled) == [(("a",), 8)]


def test_pad_that_cuts_one_side_and_fills_the_other_keeps_what_it_moves() -> None:
    found = analysed(
        lambda m, x: m.b(functional.pad(m.a(x), (-1, 1))), 5, a=nn.Linear(5, 8), b=nn.Linear(8, 2)
    )
    assert "constant_pad_nd) cuts it" in found.left["a"]


def test_halves_that_are_read_alone_are_shuffled_channel_by_channel() -> None:
    """As in ShuffleNet: whole halves cannot go, but the same channel of each can."""
    found = analysed(
        lambda m, x: m.head(
            torch.cat([(halves := m.a(x).chunk(2, 1))[0], m.b(halves[1])], 1)
            .reshape(-1, 2, 6, 6, 6).transpose(1, 2).flatten(1, 2)
        ),
        *IMAGE, a=conv(3, 12), b=conv(6, 6, groups=6), head=conv(12, 2),
    )  # fmt: skip
    removed = set(found.groups[0].units[:2].tolist())
    assert len(found.groups[0].units) == 6
    assert without(found, removed).a.weight.shape == (8, 3, 1, 1)


def test_channels_of_images_padded_by_copies_can_go() -> None:
    circular = nn.Conv2d(6, 2, 3, padding=1, padding_mode="circular")
    found = analysed(lambda m, x: m.b(m.a(x)), *IMAGE, a=conv(3, 6), b=circular)
    assert groups(found) == [(("a",), 6)]
    assert without(found, set(found.groups[0].units[:2].tolist())).a.weight.shape == (4, 3, 1, 1)
