"""Encoder, decoder and fusion: against the plain path, sample by sample, at their edges."""

import pytest
import torch
from bev.samples import RANGE, pyramid, surround_cameras

pytestmark = pytest.mark.mmdet

pytest.importorskip("mmcv", reason="mmcv is not installed")
from bev.encoder_oracle import encode

from dcnv4_mm.bev.layers import encoder as encoder_module
from dcnv4_mm.bev.layers.attention import DeformableSampling, TemporalSelfAttention
from dcnv4_mm.bev.layers.decoder import ObjectDecoderLayer
from dcnv4_mm.bev.layers.encoder import BEVEncoder
from dcnv4_mm.bev.layers.fusion import TemporalFusion, fill_missing

IMAGE_SIZE = (128, 320)
BEV_SHAPE = (20, 24)
CHANNELS = 32


def small_encoder(**kwargs):
    torch.manual_seed(0)
    encoder = BEVEncoder(
        CHANNELS,
        bev_shape=BEV_SHAPE,
        point_cloud_range=RANGE,
        num_layers=2,
        feedforward_channels=64,
        **{"dropout": 0.0, **kwargs},
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def inputs(batch, dtype=torch.float32):
    """Samples that differ in images and cameras."""
    torch.manual_seed(1)
    maps, shapes = pyramid(batch, CHANNELS, IMAGE_SIZE)
    queries = BEV_SHAPE[0] * BEV_SHAPE[1]
    return dict(
        bev_queries=torch.randn(batch, queries, CHANNELS, dtype=dtype),
        bev_pos=tuple(torch.randn(n, CHANNELS // 2, dtype=dtype) for n in BEV_SHAPE[::-1]),
        features=maps.to(dtype),
        spatial_shapes=shapes,
        lidar_to_image=torch.stack(
            [surround_cameras(IMAGE_SIZE, turn=0.4 * sample) for sample in range(batch)]
        ),
        image_size=IMAGE_SIZE,
    )


def gradients(module, output):
    output.square().sum().backward()
    result = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    return result


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_is_the_plain_path(batch):
    """Merged points and the fused attention to cameras change nothing."""
    encoder, sample = small_encoder().double(), inputs(batch, torch.float64)
    output, expected = encoder(**sample), encode(encoder, **sample)
    # Both in float64, from the same float32 references.
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    ours, plain = gradients(encoder, output), gradients(encoder, expected)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_a_batch_is_its_samples():
    """Each sample has cameras, hits and history of its own, unlike in the original."""
    encoder, both = small_encoder(), inputs(2)
    together = encoder(**both)
    for index in range(2):
        alone = {
            name: x[index : index + 1] if isinstance(x, torch.Tensor) else x
            for name, x in both.items()
        }
        torch.testing.assert_close(together[index], encoder(**alone)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_queries_go_part_by_part_where_no_gradient_is_kept(batch, monkeypatch):
    encoder, sample = small_encoder().double(), inputs(batch, torch.float64)
    expected = encoder(**sample)
    # Whole rows of the grid, of 24 cells; the last part is smaller.
    monkeypatch.setattr(encoder_module, "_CPU_QUERIES", 200 * batch)
    lengths = []
    encoder.layers[0].norms[1].register_forward_hook(lambda *a: lengths.append(a[2].shape[1]))
    with torch.no_grad():
        output = encoder(**sample)
    assert lengths == [192, 192, 96]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


def test_recomputation_changes_nothing():
    sample = inputs(1)
    encoder, frugal = small_encoder(), small_encoder(with_cp=True)
    ours, other = gradients(encoder, encoder(**sample)), gradients(frugal, frugal(**sample))
    for name, gradient in ours.items():
        torch.testing.assert_close(other[name], gradient, msg=name)


def test_cameras_may_be_in_any_order():
    """If everything that belongs to a camera moves with it."""
    encoder, sample = small_encoder(), inputs(1)
    order = [3, 1, 5, 0, 4, 2]
    permuted = dict(
        sample,
        features=sample["features"][:, order],
        lidar_to_image=sample["lidar_to_image"][:, order],
    )
    torch.testing.assert_close(encoder(**permuted), encoder(**sample), rtol=1e-4, atol=1e-5)


def test_a_query_that_no_camera_sees_gets_the_bias():
    encoder, sample = small_encoder(), inputs(1)
    attention = encoder.layers[0].attentions[1].eval()
    behind = torch.full((1, 6, 480, 4, 2), 2.0)
    output = attention(
        sample["bev_queries"],
        value=attention.project_value(sample["features"]),
        spatial_shapes=sample["spatial_shapes"],
        reference_points_cam=behind,
        bev_mask=torch.zeros(1, 6, 480, dtype=torch.bool),
    )
    torch.testing.assert_close(output, sample["bev_queries"] + attention.output_proj.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_keeps_hits_and_positions(dtype):
    """Bf16 inside, float32 where it decides what is seen and where."""
    encoder, sample = small_encoder().eval(), inputs(1)
    expected = encoder(**sample)
    with torch.autocast("cpu", dtype=dtype):
        cameras, size = sample["lidar_to_image"], IMAGE_SIZE
        inside = encoder.project_pillars(cameras, size)[1]
        output = encoder(**sample)
    assert torch.equal(inside, encoder.project_pillars(cameras, size)[1])
    # The norm of every layer makes outputs of order one; bf16 keeps three digits.
    assert (output - expected).abs().mean() < 2e-2


def test_start_of_the_samplings():
    """Heads look into eight directions, points one, two, three ... pixels far; weights equal."""
    sampling = DeformableSampling(16, query_dims=8, num_heads=8, num_maps=2, num_points=3)
    offsets, logits = sampling.unpack(sampling.predict_packed(torch.randn(1, 5, 8)))
    assert (logits == 0).all()
    assert offsets.shape == (1, 5, 8, 2, 3, 2)
    torch.testing.assert_close(offsets[0, 0, 0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]))
    torch.testing.assert_close(offsets[0, 0, 1, 0], torch.tensor([[1.0, 1], [2, 2], [3, 3]]))


def test_self_attention_keeps_the_released_shapes():
    attention = TemporalSelfAttention(256)
    assert attention.sampling_offsets.weight.shape == (128, 512)
    assert attention.attention_weights.weight.shape == (64, 512)


def test_groups_do_not_see_each_other():
    """What one group holds changes nothing in another."""
    torch.manual_seed(0)
    layer = ObjectDecoderLayer(CHANNELS, feedforward_channels=64, num_heads=8, dropout=0.0)
    query, query_pos = torch.randn(2, 2, 3 * 4, CHANNELS)
    points, bev = torch.rand(2, 12, 2), torch.randn(2, 480, CHANNELS)
    before = layer(query, query_pos, points, bev, BEV_SHAPE, 3)
    query[:, 4:8] += 1
    after = layer(query, query_pos, points, bev, BEV_SHAPE, 3)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    torch.testing.assert_close(after[:, 8:], before[:, 8:])
    assert (after[:, 4:8] - before[:, 4:8]).abs().max() > 0.1


def test_missing_frames():
    """Outwards from the current one, per sample, without a gradient."""
    bevs = torch.arange(10.0).reshape(2, 5, 1, 1).requires_grad_()
    valid = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]).bool()
    filled = fill_missing(bevs, valid, 2)
    assert filled[..., 0, 0].tolist() == [[1, 1, 2, 2, 2], [7, 7, 7, 8, 8]]
    filled.sum().backward()
    assert bevs.grad[..., 0, 0].tolist() == [[0, 0, 1, 0, 0]] * 2


@pytest.mark.parametrize(("inter", "has_shortcut"), [(None, False), (128, False), (64, True)])
def test_fusion_shortcut(inter, has_shortcut):
    """Where the width changes, the shortcut is a 3x3 convolution."""
    fusion = TemporalFusion(64, num_frames=2, inter_channels=inter, norm_cfg=dict(type="BN"))
    shortcut = fusion.layers[0].downsample
    assert (shortcut is not None) == has_shortcut
    if has_shortcut:
        assert shortcut[0].weight.shape == (64, 128, 3, 3)
    assert fusion(torch.randn(1, 2, 12, 64), (3, 4)).shape == (1, 12, 64)


def test_messages():
    with pytest.raises(ValueError, match="num_points must be a multiple of num_pillar_points=4"):
        small_encoder(num_points=6)
    with pytest.raises(ValueError, match="num_heads must divide embed_dims=32, got 5"):
        DeformableSampling(32, query_dims=32, num_heads=5, num_maps=1, num_points=1)
