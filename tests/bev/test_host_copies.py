"""What a model reads on the host or copies to the device: on a GPU each of these waits for it."""

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.small_detector import build, images, losses_of, sample

from dcnv4_mm.bev.sample_geometry import SampleGeometry

_READS = {"tolist", "cpu", "numpy", "item", "__int__", "__float__", "__bool__", "__index__"}
_COPIES = {"tensor", "from_numpy", "new_tensor"}
_WAITS = {"nonzero", "masked_select", "_unique2", "_linalg_check_errors", "repeat_interleave"}


class _Functions(TorchFunctionMode):
    def __init__(self, counts):
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        copied = name == "as_tensor" and not isinstance(args[0], torch.Tensor)
        if name in _READS | _COPIES or copied:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in _WAITS or masks:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def counted(function):
    counts = Counter()
    with _Functions(counts), _Operators(counts):
        function()
    return counts


def test_the_counter_counts():
    x = torch.arange(4.0)
    # A boolean index finds the elements first: two operators, one of them counted twice.
    assert counted(lambda: x[x > 1])["index"] == 1
    assert counted(lambda: x.new_tensor([1.0]))["new_tensor"] == 1
    assert counted(lambda: float(x.sum())).total() == 1
    assert counted(lambda: torch.linalg.inv(torch.eye(2)))["_linalg_check_errors"] == 1
    assert counted(lambda: torch.linalg.inv_ex(torch.eye(2))).total() == 0


@pytest.mark.parametrize("alignment", ["projection", "warp"])
def test_predicting_waits_for_nothing(alignment):
    """From images to the codes of the best boxes; only their number is read at the end."""
    detector = build(frames=3, temporal_alignment=alignment).eval()
    samples, pixels = [sample(valid=(False, True, True)), sample()], images(batch=2)
    metas = [s.metainfo for s in samples]
    geometry = SampleGeometry.of(metas, pixels.device)

    @torch.no_grad()
    def predict():
        bevs, valid, _ = detector.encode(pixels, metas, geometry)
        head = detector.pts_bbox_head
        logits, codes = head(bevs, valid, 1)
        head.coder.topk(logits[-1], codes[-1])

    assert counted(predict) == Counter()
    with torch.no_grad():
        complete = counted(lambda: detector.predict(dict(imgs=pixels), samples))
    # How many boxes of each sample lie in the range.
    assert complete == Counter(nonzero=2)


def test_a_training_step_waits_ten_times_at_most():
    detector = build(frames=3)
    pixels, samples = images(), [sample()]
    counts = counted(lambda: losses_of(detector, pixels, samples))
    assert 0 < counts.total() <= 10, counts


def test_the_decoder_keeps_no_attention_weights():
    """They were most of the memory of a step with 11 groups of 900 queries."""
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape[-2:]))
        return tensor

    detector = build().train()
    layer = detector.pts_bbox_head.transformer.decoder.layers[0].attentions[0]
    layer.attn.dropout = 0.0
    query = torch.randn(2, 7, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(query, query_pos=torch.randn(2, 7, 16)).sum().backward()
    assert shapes
    assert (7, 7) not in shapes
