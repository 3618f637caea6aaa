"""DCNv4 in place of attention: image shapes, prefix tokens, and calls that are refused."""

import copy
import pickle
import threading

import pytest
import torch
from layers.vision_transformers import Attention, Transformer, images, swapped
from torch import nn

from dcnv4_mm.layers import swap_attention
from dcnv4_mm.layers.drop_in import DCNv4Attention


def multihead(channels):
    return nn.MultiheadAttention(channels, 4, batch_first=True)


def test_tokens_as_maps():
    model = swapped()
    layer = model.blocks[0]
    assert isinstance(layer, DCNv4Attention)
    assert set(layer.after) == {"proj_drop", "out_drop", "gamma1"}
    output = layer(model.embed(images(4, 6, batch=2)))
    assert output.shape == (2, 1 + 4 * 6, 64)
    # The class token has no location in the image: before a linear layer scale, and after.
    torch.testing.assert_close(output[:, 0], output[:, 1:].mean(1))
    output.sum().backward()
    assert layer.offset_mask.weight.grad.any()


def test_every_way_into_the_model_knows_the_image():
    model = swapped()
    for shape in ((4, 6), (6, 4), (2, 3), (4, 6)):
        x = images(*shape)
        expected = model(x)
        assert torch.equal(model(images=x), expected)
        assert torch.equal(model.forward_features(model.embed(x)), expected)


def test_shapes_of_equal_size_differ():
    model = swapped()
    x = images(4, 6)
    tokens = model.embed(x)
    output = model.blocks[0](tokens)
    model.embed(images(6, 4))
    assert (model.blocks[0](tokens) - output).abs().max() > 1e-3


def test_a_shape_does_not_outlive_its_images():
    model = swapped()
    x = images(4, 6)
    tokens = model.embed(x)
    model(x)
    with pytest.raises(ValueError, match=r"expected 1 calls .* got 2"):
        model.blocks[0](tokens)
    with pytest.raises(ValueError, match="no call of it"):
        copy.deepcopy(model).blocks[0](tokens)
    with pytest.raises(ValueError, match="no call of it"):
        pickle.loads(pickle.dumps(model)).blocks[0](tokens)
    model.embed(x)
    for others in (tokens[:, 1:], tokens[:, :-3], torch.cat([tokens[:, :1], tokens], 1)):
        with pytest.raises(ValueError, match=r"1 prefix tokens.*4 x 6 patches"):
            model.blocks[0](others)


def test_threads_have_images_of_their_own():
    model = swapped()
    shapes = [(4, 6), (6, 4)]
    inputs = [images(*shape) for shape in shapes]
    expected = [model(x) for x in inputs]
    both_embedded = threading.Barrier(2)
    outputs = [None, None]

    def run(index):
        tokens = model.embed(inputs[index])
        both_embedded.wait()
        outputs[index] = model.forward_features(tokens)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    model = swapped()
    plain = copy.deepcopy(model)
    model.checkpointed = reentrant
    inputs = [images(4, 6), images(3, 5), images(6, 4)]
    for x in inputs:
        for network in (model, plain):
            network(x).square().sum().backward()
    for x, y in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad)
    losses = [model(x).sum() for x in inputs]
    with pytest.raises(ValueError, match=r"24 patches.*\(4, 6\), \(6, 4\)"):
        sum(losses).backward()


def test_activation_checkpointing_behind_a_frozen_embedding():
    model = swapped()
    model.patches.requires_grad_(False)
    model.token.requires_grad_(False)
    plain = copy.deepcopy(model)
    model.checkpointed = False
    x = images(4, 6)
    for network in (model, plain):
        network(x).square().sum().backward()
    for own, expected in zip(model.blocks.parameters(), plain.blocks.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    # Its forward pass has no graph inside of the blocks either.
    model.checkpointed = True
    model.token.requires_grad_()
    with pytest.raises(ValueError, match="use_reentrant=True"):
        model(x).sum().backward()


def test_multihead_attention():
    model = swapped(multihead)
    layer = model.blocks[0]
    assert layer.after == ()
    x = images(4, 6)
    tokens = model.embed(x)
    output, weights = layer(tokens, tokens, tokens)
    assert output.shape == tokens.shape
    assert weights is None
    model.embed(x)
    by_name = layer(query=tokens, key=tokens, value=tokens, need_weights=False, attn_mask=None)
    assert torch.equal(by_name[0], output)


def test_what_attention_does_beyond_is_refused():
    layer = swapped(multihead).blocks[0]
    x, y = torch.randn(2, 1, 7, 64)
    for arguments, options, name in (
        ((x, y, y), {}, "key"),
        ((x, x, y), {}, "value"),
        ((x, x, x, torch.zeros(1, 7, dtype=torch.bool)), {}, "key_padding_mask"),
        ((x, x, x), {"attn_mask": torch.zeros(7, 7)}, "attn_mask"),
        ((x, x, x), {"is_causal": True}, "is_causal"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            layer(*arguments, **options)
    layer = swapped().blocks[0]
    with pytest.raises(ValueError, match=r"^attn_mask: "):
        layer(x, torch.zeros(7, 7))
    with pytest.raises(TypeError, match=r"^x: expected a tensor, got list"):
        layer([x])
    with pytest.raises(ValueError, match=r"expected \(N, L, 64\), got \(7, 64\)"):
        layer(x[0])
    with pytest.raises(ValueError, match="nested"):
        layer(torch.nested.nested_tensor([x[0], x[0, :3]]))
    with pytest.raises(TypeError, match="at most 3 arguments, got 4"):
        layer(x, None, False, None)


def test_encoder_layers_of_torch():
    """They read what attention consists of, to run a kernel of their own in evaluation."""
    torch.manual_seed(0)
    model = Transformer(
        lambda channels: nn.TransformerEncoderLayer(channels, 4, 64, 0.0, batch_first=True)
    )
    swap_attention(model, nn.MultiheadAttention)
    x = images(2, 3)
    trained = model(x)
    assert torch.equal(model.eval()(x), trained)
    with torch.inference_mode():
        assert torch.equal(model(x), trained)
    with pytest.raises(ValueError, match=r"^key_padding_mask: "):
        model.blocks[0](model.embed(x), src_key_padding_mask=torch.zeros(1, 7, dtype=torch.bool))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("selected", [("layers.0",), ("layers.0", "layers.1")])
def test_padding_masks_of_torchs_encoder(nested, selected):
    """Its first layer's weights are read before any layer is called."""
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    model = nn.ModuleDict({"patches": nn.Conv2d(3, 64, 8, stride=8), "encoder": encoder}).eval()
    swap_attention(
        model,
        nn.MultiheadAttention,
        lambda name, _: any(part in name for part in selected),
        prefix_tokens=0,
    )
    tokens = model["patches"](images(2, 3)).flatten(2).mT
    assert model["encoder"](tokens).shape == tokens.shape
    mask = torch.tensor([[False] * 5 + [True]])
    with pytest.raises((AttributeError, ValueError), match=r"padding_mask.* `select`"):
        model["encoder"](tokens, src_key_padding_mask=mask)


def test_only_what_is_selected():
    decoder = nn.TransformerDecoderLayer(64, 4, 64, batch_first=True)
    model = nn.ModuleDict({"patches": nn.Conv2d(3, 64, 8, stride=8), "decoder": decoder})
    count = swap_attention(
        model, nn.MultiheadAttention, lambda name, _: name.endswith("self_attn"), prefix_tokens=0
    )
    assert count == 1
    assert isinstance(decoder.self_attn, DCNv4Attention)
    assert isinstance(decoder.multihead_attn, nn.MultiheadAttention)


def test_a_shared_attention_stays_shared():
    shared = Attention(64)
    model = Transformer(lambda _: shared).eval()
    assert swap_attention(model, Attention) == 1
    assert model.blocks[0] is model.blocks[1]
    assert model(images(2, 3)).shape == (1, 7, 64)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (nn.MultiheadAttention(64, 4), "batch_first = True"),
        (nn.MultiheadAttention(64, 4, kdim=32, vdim=32, batch_first=True), "keys and values"),
        (nn.MultiheadAttention(64, 4, add_bias_kv=True, batch_first=True), "add_bias_kv"),
        (nn.MultiheadAttention(64, 4, add_zero_attn=True, batch_first=True), "add_zero_attn"),
        (Attention(40), "group_channels = 16, got 40"),
        (nn.Linear(64, 64), "`proj`"),
        # As CaiT's attention of the class token alone.
        (nn.ModuleDict({"q": nn.Linear(64, 64), "proj": nn.Linear(64, 64)}), "`qkv`"),
    ],
)
def test_attention_that_does_not_fit_is_refused(attention, message):
    model = Transformer(lambda _: attention)
    with pytest.raises(ValueError, match=f"'blocks.0': .*{message}"):
        swap_attention(model, type(attention))
    assert model.blocks[0] is attention


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [("window_size", (7, 7), "windows"), ("v_shortcut", True, "v_shortcut")],
)
def test_other_kinds_of_attention_are_refused(name, setting, message):
    attention = Attention(64)
    setattr(attention, name, setting)
    with pytest.raises(ValueError, match=message):
        swap_attention(Transformer(lambda _: attention), Attention)


def test_models_that_do_not_tell_are_refused():
    with pytest.raises(ValueError, match="no module inside of this Sequential"):
        swap_attention(nn.Sequential(nn.Linear(8, 8)), Attention)
    model = nn.ModuleDict({"attention": Attention(64), "conv": nn.Conv2d(3, 8, 3)})
    with pytest.raises(ValueError, match=r"^prefix_tokens: "):
        swap_attention(model, Attention)
    with pytest.raises(ValueError, match=r"^patch_embed: .* 0: "):
        swap_attention(model, Attention, prefix_tokens=0)
    assert type(model.attention) is Attention
    assert swap_attention(model, Attention, prefix_tokens=0, patch_embed="conv") == 1
    model = Transformer(Attention)
    model.flat = nn.Sequential(model.patches, nn.Flatten(2))
    swap_attention(model, Attention, patch_embed="flat")
    with pytest.raises(ValueError, match=r"^patch_embed: .* got \(1, 64, 6\) from Sequential"):
        model.flat(images(2, 3))
