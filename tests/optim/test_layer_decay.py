"""Parameter groups: equal to the original's, and the rules one by one."""

import re

import pytest
import torch
from helpers import build_detector, build_segmentor, load_all
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints.key_mappings import convert_keys, find_key_mappings
from dcnv4_mm.optim import LayerDecayOptimWrapperConstructor

ARCH = {"channels": 8, "depths": (1, 2, 1, 1), "groups": (1, 2, 4, 8)}
LAYERS = 7


class Model(nn.Module):
    def __init__(self, name="backbone", **arguments):
        super().__init__()
        self.add_module(name, FlashInternImage(ARCH, **arguments))
        self.neck = nn.Linear(4, 4)
        self.sampling_offsets = nn.Linear(4, 4)
        self.level_embeds = nn.Parameter(torch.zeros(4, 8))


def wrapper_config(lr=0.1, weight_decay=0.05, **paramwise_cfg):
    return {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": lr, "weight_decay": weight_decay},
        "constructor": "dcnv4_mm.LayerDecayOptimWrapperConstructor",
        "paramwise_cfg": paramwise_cfg,
    }


def groups_of(model, **config):
    """The groups of an optimizer by name, with names of parameters in place of them."""
    inner = model.module if hasattr(model, "module") else model
    names = {parameter: name for name, parameter in inner.named_parameters()}
    optimizer = build_optim_wrapper(model, wrapper_config(**config)).optimizer
    return {
        group["name"]: {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    }


def scales_of(model, **config):
    """The factor on the learning rate of every parameter."""
    groups = groups_of(model, **config).values()
    return {name: group["lr"] / 0.1 for group in groups for name in group["params"]}


@pytest.mark.mmdet
@pytest.mark.parametrize("original", load_all("param_groups"))
def test_groups_equal_the_originals(original):
    recorded = load_all("param_groups")[original]
    model, config = build_detector(original, device="meta")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = merged(optimizer.param_groups)
    assert set(groups) == set(recorded["groups"])
    for name, group in groups.items():
        expected = recorded["groups"][name]
        released = dict.fromkeys(expected["params"])
        released = convert_keys(released, find_key_mappings(model.state_dict()))
        ours = [names[id(parameter)] for parameter in group["params"]]
        # The hosts order the parts of DINO otherwise.
        assert sorted(ours) == sorted(released)
        assert group["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        if expected["lr_scale"] is not None:
            assert group["lr_scale"] == pytest.approx(expected["lr_scale"], rel=1e-12)
        assert group["weight_decay"] == expected["weight_decay"]
        assert list(group["betas"]) == recorded["betas"]
        assert group["eps"] == recorded["eps"]


@pytest.mark.mmseg
@pytest.mark.mmdet
@pytest.mark.parametrize("original", load_all("ade20k_param_groups"))
def test_groups_of_segmentors_equal_the_originals(original):
    recorded = load_all("ade20k_param_groups")[original]
    model, config = build_segmentor(original, device="meta")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {group["name"] for group in optimizer.param_groups} == set(recorded["groups"])
    for group in optimizer.param_groups:
        expected = recorded["groups"][group["name"]]
        released = dict.fromkeys(expected["params"])
        released = convert_keys(released, find_key_mappings(model.state_dict()))
        # mmdet's decoder layers list their two attentions in the other order.
        ours = [names[id(parameter)] for parameter in group["params"]]
        assert sorted(ours) == sorted(released)
        assert group["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        assert group["lr_scale"] == pytest.approx(expected["lr_scale"], rel=1e-12)
        assert group["weight_decay"] == expected["weight_decay"]
        assert list(group["betas"]) == recorded["betas"]
        assert group["eps"] == recorded["eps"]


def merged(groups):
    """Groups by name; the plain constructor's, one for each parameter, by what they have alike."""
    result = {}
    for group in groups:
        name = group.get("name") or f"lr{group['lr']:g}_wd{group['weight_decay']:g}"
        result.setdefault(name, {**group, "params": []})["params"] += group["params"]
    return result


def test_rates_fall_towards_the_stem():
    scales = scales_of(Model(), layer_decay_rate=0.5)
    layers = {
        "patch_embed.conv1.weight": 0,
        "levels.0.blocks.0.mlp.fc1.weight": 1,
        "levels.0.norm.weight": 2,
        "levels.0.downsample.conv.weight": 2,
        "levels.1.blocks.1.mlp.fc1.bias": 3,
        "levels.2.downsample.norm.bias": 5,
        "levels.3.blocks.0.gamma1": 5,
        "levels.3.norm.weight": 5,
    }
    for name, layer in layers.items():
        assert scales["backbone." + name] == pytest.approx(0.5 ** (LAYERS - 1 - layer)), name
    assert scales["neck.weight"] == 1
    assert scales["level_embeds"] == pytest.approx(0.5 ** (LAYERS - 1))


def test_every_parameter_is_in_one_group():
    model = Model()
    names = [name for group in groups_of(model).values() for name in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_what_has_no_weight_decay():
    groups = groups_of(Model()).values()
    decay = {name: group["weight_decay"] for group in groups for name in group["params"]}
    for name, parameter in Model().named_parameters():
        has_none = parameter.ndim == 1 or "sampling_offsets" in name
        assert decay[name] == (0 if has_none else 0.05), name


def test_offset_layers_have_their_own_factor():
    scales = scales_of(Model(), offset_lr_scale=0.25)
    slow = {name for name, scale in scales.items() if scale != 1}
    expected = {name for name in scales if ".offset_mask." in name or "sampling_offsets" in name}
    assert len(expected) == 12
    assert slow == expected
    assert all(scales[name] == pytest.approx(0.25) for name in slow)


def test_offset_layers_may_stand_still():
    scales = scales_of(Model(), offset_lr_scale=0.0)
    assert scales["backbone.levels.0.blocks.0.dcn.offset_mask.weight"] == 0
    assert scales["neck.weight"] == 1


def test_offset_layers_may_be_those_of_the_backbone_alone():
    scales = scales_of(Model(), offset_lr_scale=0.25, offset_prefix="backbone.")
    slow = {name for name, scale in scales.items() if scale != 1}
    assert slow == {name for name in scales if ".offset_mask." in name}


def test_depthwise_convolution_of_offsets_is_no_offset_layer():
    model = nn.Module()
    model.backbone = FlashInternImage({**ARCH, "dw_kernel_size": 3})
    scales = scales_of(model, offset_lr_scale=0.25)
    assert scales["backbone.levels.0.blocks.0.dcn.offset_mask_dw.weight"] == 1


def test_classification_recipe():
    """Stem and first block are one layer, last block and head too; offsets are all of a kind."""
    model = nn.Module()
    model.backbone = FlashInternImage({**ARCH, "dw_kernel_size": 3})
    model.head = nn.Linear(4, 4)
    options = {"recipe": "classification", "layer_decay_rate": 0.5, "offset_lr_scale": 0.25}
    scales = scales_of(model, **options)
    expected = {
        "backbone.patch_embed.conv1.weight": 0.5**4,
        "backbone.levels.0.blocks.0.mlp.fc1.weight": 0.5**4,
        "backbone.levels.0.downsample.conv.weight": 0.5**3,
        "backbone.levels.3.blocks.0.mlp.fc1.weight": 1,
        "head.weight": 1,
        "backbone.levels.3.blocks.0.dcn.offset_mask.bias": 0.25,
        "backbone.levels.3.blocks.0.dcn.offset_mask_dw.weight": 0.25,
    }
    assert {name: scales[name] for name in expected} == pytest.approx(expected)
    assert {"lr0.1_wd0.05", "lr0.1_wd0", "lr0.025_wd0.05"} <= set(groups_of(model, **options))


def test_names_of_the_first_layer_can_be_chosen():
    names = ["neck.w", "nowhere"]
    scales = scales_of(Model(), layer_decay_rate=0.5, first_layer_names=names)
    assert scales["neck.weight"] == pytest.approx(0.5 ** (LAYERS - 1))
    assert scales["neck.bias"] == scales["level_embeds"] == 1


def test_the_alphabetically_first_custom_key_counts():
    keys = {"neck": {"lr_mult": 0.5}, "nec": {"lr_mult": 0.25}, "levels.1": {"lr_mult": 0.1}}
    scales = scales_of(Model(), custom_keys=keys)
    assert scales["neck.weight"] == pytest.approx(0.25)
    assert scales["backbone.levels.1.norm.weight"] == pytest.approx(0.1)
    assert scales["backbone.levels.2.norm.weight"] == 1


def test_custom_keys_have_groups_of_their_own():
    key = "levels.1.blocks.0.mlp.fc1"
    groups = groups_of(Model(), custom_keys={key: {"lr_mult": 0.5}, "neck": {}})
    own, others = groups[f"layer_2_decay_{key}"], groups["layer_2_decay"]
    assert own["params"] == [f"backbone.{key}.weight"]
    assert (own["lr"], others["lr"]) == (pytest.approx(0.05), 0.1)
    assert groups["layer_6_decay_neck"]["lr"] == 0.1


def test_classification_recipe_without_weight_decay():
    config = wrapper_config(recipe="classification")
    del config["optimizer"]["weight_decay"]
    config["optimizer"]["type"] = "SGD"
    groups = build_optim_wrapper(Model(), config).optimizer.param_groups
    assert [group["name"] for group in groups] == ["lr0.1_wd0"]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
@pytest.mark.parametrize("name", ["backbone", "img_backbone"])
def test_any_place_of_the_backbone(name, wrap):
    scales = scales_of(wrap(Model(name)), layer_decay_rate=0.5)
    assert scales[f"{name}.patch_embed.conv1.weight"] == pytest.approx(0.5 ** (LAYERS - 1))


def test_the_innermost_module_is_asked_for_layers():
    """mmpretrain's classifiers pass the question on, without the backbone's place."""
    model = Model()
    model.get_layer_depth = lambda *_: (0, 1)
    scales = scales_of(model, layer_decay_rate=0.5)
    assert scales["backbone.levels.1.norm.weight"] == pytest.approx(0.25)


def test_backbone_alone():
    scales = scales_of(FlashInternImage(ARCH), layer_decay_rate=0.5)
    assert scales["patch_embed.conv1.weight"] == pytest.approx(0.5 ** (LAYERS - 1))


def test_frozen_parameters_are_left_out():
    scales = scales_of(Model(frozen_stages=1))
    assert not [name for name in scales if "patch_embed" in name or "levels.0" in name]
    assert any("levels.1" in name for name in scales)


def test_without_options_it_splits_by_weight_decay_alone():
    groups = groups_of(Model()).values()
    assert {group["lr"] for group in groups} == {0.1}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_a_step_moves_the_parameters():
    model = FlashInternImage(ARCH)
    wrapper = build_optim_wrapper(model, wrapper_config(layer_decay_rate=0.9))
    before = model.levels[3].blocks[0].mlp.fc2.weight.clone()
    wrapper.update_params(sum(maps.square().mean() for maps in model(torch.randn(1, 3, 32, 32))))
    assert not torch.equal(before, model.levels[3].blocks[0].mlp.fc2.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_decay_rate": 0.0}, "above 0 and at most 1, got 0"),
        ({"layer_decay_rate": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"offset_lr_scale": -1.0}, "at least 0"),
        ({"num_layers": 30}, r"unknown options \['num_layers'\].*backbone"),
        (dict.fromkeys("dacb"), r"unknown options \['a', 'b', 'c', 'd'\]"),
        ({"custom_keys": {"neck": {"decay_mult": 0.0}}}, "takes lr_mult alone"),
        ({"recipe": "detection"}, 'recipe must be "dense" or "classification", got .detection'),
        ({"lr": None}, "needs an lr"),
    ],
)
def test_bad_options_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        groups_of(Model(), **config)


def test_options_must_be_a_dictionary():
    config = {**wrapper_config(), "paramwise_cfg": [("layer_decay_rate", 0.9)]}
    with pytest.raises(TypeError, match="paramwise_cfg should be None or a dict"):
        build_optim_wrapper(Model(), config)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="get_layer_depth"):
        groups_of(nn.Linear(2, 2))


def test_it_is_registered():
    found = OPTIM_WRAPPER_CONSTRUCTORS.get("dcnv4_mm.LayerDecayOptimWrapperConstructor")
    assert found is LayerDecayOptimWrapperConstructor


class Sharded(nn.Module):
    """Holds a module by the name that FSDP gives it, which itself needs several processes."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, Sharded])
def test_what_is_wrapped_is_grouped_alike(wrap):
    """mmengine's FSDP strategy wraps modules so before the optimizer is built."""
    expected = groups_of(Model(), layer_decay_rate=0.5)
    model = Model()
    model.backbone.levels[1] = wrap(model.backbone.levels[1])
    model.backbone = wrap(model.backbone)
    for key, group in groups_of(model, layer_decay_rate=0.5).items():
        assert group["lr_scale"] == expected[key]["lr_scale"]
        plain = [re.sub(r"_\w+_wrapped_module\.", "", name) for name in group["params"]]
        assert plain == expected[key]["params"]


def test_names_that_say_what_a_matrix_is():
    model = Model()
    model.norms = nn.Linear(2, 2)
    model.relative_position_table = nn.Parameter(torch.zeros(2, 2))
    model.reference_points = nn.Linear(2, 2)
    groups = groups_of(model, offset_lr_scale=0.1)
    assert {"norms.weight", "relative_position_table"} <= set(groups["layer_6_no_decay"]["params"])
    assert groups["layer_6_decay_offset_lr_scale"]["params"] == ["reference_points.weight"]


def test_names_that_end_so():
    """A bias of any shape has no decay; what is called an offset makes sampling points."""
    model = Model()
    model.neck.bias = nn.Parameter(torch.zeros(2, 2))
    model.neck.offset = nn.Parameter(torch.zeros(2, 2))
    groups = groups_of(model, offset_lr_scale=0.1)
    assert "neck.bias" in groups["layer_6_no_decay"]["params"]
    assert "neck.offset" in groups["layer_6_decay_offset_lr_scale"]["params"]
