"""The model index, the metafiles, the configs, the READMEs and the paper's table agree."""

import re
from pathlib import Path

import pytest
import yaml
from backbones.intern_image import models as intern_image_models
from helpers import ROOT, hyperparameters, load_json
from mmengine.config import Config

INTERN_IMAGE = load_json("internimage/models")
HUB = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/"
# Published with the released weights: box and mask AP, mIoU (and that of many copies), top-1.
PUBLISHED = {
    "mask_rcnn_flash_intern_image_t_fpn_1x_coco": (48.0, 43.1),
    "mask_rcnn_flash_intern_image_t_fpn_3x_coco": (49.5, 44.0),
    "mask_rcnn_flash_intern_image_s_fpn_1x_coco": (49.2, 44.0),
    "mask_rcnn_flash_intern_image_s_fpn_3x_coco": (50.5, 44.9),
    "mask_rcnn_flash_intern_image_b_fpn_1x_coco": (50.1, 44.5),
    "mask_rcnn_flash_intern_image_b_fpn_3x_coco": (50.6, 45.4),
    "cascade_flash_intern_image_l_fpn_1x_coco": (55.6, 48.2),
    "cascade_flash_intern_image_l_fpn_3x_coco": (56.7, 48.9),
    "dino_4scale_flash_internimage_t_1x_coco": (54.7,),
    "dino_4scale_flash_internimage_s_1x_coco": (55.3,),
    "dino_4scale_flash_internimage_b_1x_coco": (56.0,),
    "dino_4scale_flash_internimage_l_1x_coco": (58.8,),
    "upernet_flash_internimage_t_512_160k_ade20k": (49.3, 50.3),
    "upernet_flash_internimage_s_512_160k_ade20k": (50.6, 51.6),
    "upernet_flash_internimage_b_512_160k_ade20k": (52.0, 52.6),
    "upernet_flash_internimage_l_640_160k_ade20k": (55.6, 56.0),
    "mask2former_flash_internimage_t_512_160k_ade20k_ss": (51.2,),
    "mask2former_flash_internimage_s_640_160k_ade20k_ss": (52.6,),
    "mask2former_flash_internimage_b_640_160k_ade20k_ss": (53.4,),
    "mask2former_flash_internimage_l_640_160k_ade20k_ss": (56.7,),
    "flash_intern_image_t_1k_224": (83.6,),
    "flash_intern_image_s_1k_224": (84.4,),
    "flash_intern_image_b_1k_224": (84.9,),
    "flash_intern_image_l_22kto1k_384": (88.1,),
}
METRICS = {
    "box AP": "COCO",
    "mask AP": "COCO",
    "mIoU": "ADE20K",
    "mIoU (ms+flip)": "ADE20K",
    "Top 1 Accuracy": "ImageNet-1k",
}
SOURCES = {"paper", "released config", "released weights, evaluated here", "trained here"}
METAFILES = [
    ROOT / path for path in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
]
MODELS = {
    model["Name"]: model
    for path in METAFILES
    for model in yaml.safe_load(path.read_text())["Models"]
}
LEAVES = sorted(
    path
    for path in (ROOT / "configs").rglob("*.py")
    if "_base_" not in path.relative_to(ROOT / "configs").parts
)


def test_the_index_imports_every_metafile():
    assert sorted(METAFILES) == sorted((ROOT / "configs").glob("*/metafile.yml"))


def test_every_config_has_an_entry_and_the_other_way_round():
    # Example configs have none: `mim download` cannot resolve their bases.
    assert {path.stem for path in LEAVES if "own-data" not in path.stem} == set(MODELS)
    for name, model in MODELS.items():
        assert (ROOT / model["Config"]).is_file()
        assert Path(model["Config"]).stem == name == name.lower()


def test_base_names_are_unique():
    names = [path.name for path in (ROOT / "configs").rglob("*.py")]
    assert len(names) == len(set(names))


def test_names_follow_the_grammar():
    # mmdet names DINO without its neck; classifiers have neither method nor neck.
    grammar = r"([a-z0-9-]+_){1,3}\d+xb\d+-\w+(-\w+)*_[a-z0-9-]+"
    for name in MODELS:
        assert re.fullmatch(grammar, name), name


@pytest.mark.parametrize("name", MODELS)
def test_batch_size_is_that_of_the_name(name):
    gpus, images = map(int, re.search(r"_(\d+)xb(\d+)-", name).groups())
    assert MODELS[name]["Metadata"]["Batch Size"] == gpus * images


# BEVFormerV2's have a test of their own.
RELEASED = {
    model["Metadata"]["Original Config"]: model
    for model in MODELS.values()
    if "Original Config" in model["Metadata"] and "bevformerv2" not in model["Config"]
}


def test_every_published_model_has_an_entry():
    assert set(RELEASED) == {*PUBLISHED, *INTERN_IMAGE}


def expected_of(original):
    """Weights, parameters, length of the training and published figures of a released model."""
    if original in INTERN_IMAGE:
        recorded = INTERN_IMAGE[original]
        kind = "segmentation" if recorded["dataset"] == "ade20k" else "detection"
        facts = intern_image_models(kind)[original.replace("_3x_", "_1x_")]
        published = recorded["published"]
        if kind == "segmentation":
            figures = published["miou (ss/ms)"].split(" / ")
        else:
            figures = published["box map"], published["mask map"]
        address = f"{HUB.replace('DCNv4', 'InternImage')}{original}.pth"
        assert recorded["checkpoint_url"] == address
        return address, facts["num_parameters"], recorded["runner"], tuple(map(float, figures))
    settings = hyperparameters()[original]
    runner = {name: settings.get(f"schedule.{name}") for name in ("max_epochs", "max_iters")}
    # The files of three classifiers alone have the names of the configs.
    file = original if original.endswith("_1k_224") else original.replace("n_image", "nimage")
    return f"{HUB}{file}.pth", settings["num_parameters"], runner, PUBLISHED[original]


@pytest.mark.parametrize("original", RELEASED)
def test_metafile_readme_and_header_of_a_released_model(original):
    model = RELEASED[original]
    facts, results = model["Metadata"], model["Results"]
    weights, parameters, runner, figures = expected_of(original)
    assert model["Weights"] == weights
    assert facts["Parameters"] == parameters
    assert facts.get("Epochs") == runner.get("max_epochs")
    assert facts.get("Iterations") == runner.get("max_iters")
    metrics = {name: value for result in results for name, value in result["Metrics"].items()}
    assert tuple(metrics.values()) == figures
    assert {result["Source"] for result in results} == {"paper"}
    for result in results:
        assert {METRICS[name] for name in result["Metrics"]} == {result["Dataset"]}
    config = ROOT / model["Config"]
    readme = (config.parent / "README.md").read_text()
    (row,) = (line for line in readme.splitlines() if f"[config]({config.name})" in line)
    assert f"| {parameters / 1e6:.1f} M | {' | '.join(map(str, figures))} |" in row
    assert f"[weights]({weights})" in row
    # The letter in the name, in the original's and in the config's header is the same.
    lines = config.read_text().splitlines()
    assert lines[0] == f"# Reproduces {original} of the original project."
    longest = {"internimage": 40, "classification": 90}
    assert len(lines) <= longest.get(config.parent.name, 75)


def test_every_result_has_a_source():
    for name, model in MODELS.items():
        for result in model.get("Results", []):
            assert result["Source"] in SOURCES, name


def test_models_without_a_file_say_so_in_the_way_mim_can_read():
    for name, model in MODELS.items():
        released = "Original Config" in model["Metadata"]
        assert released or model["Weights"] == [""], name


def test_the_table_of_bevformerv2_says_what_the_metafile_says():
    readme = (ROOT / "configs" / "bevformerv2" / "README.md").read_text()
    models = [m for m in MODELS.values() if m["Config"].startswith("configs/bevformerv2/")]
    for model in models:
        epochs = Config.fromfile(ROOT / model["Config"]).train_cfg.max_epochs
        assert model["Metadata"]["Epochs"] == epochs
        if model["Name"].endswith(("synthetic-nus-3d", "motion-nus-3d", "nus-mini-3d")):
            continue
        (row,) = (line for line in readme.splitlines() if f"({model['Name']}.py)" in line)
        cells = [cell.strip().removesuffix(" (test)") for cell in row.strip("|").split("|")]
        facts, results = model["Metadata"], model.get("Results", [])
        assert int(cells[2]) == facts["Epochs"]
        assert cells[5] == f"{facts['Parameters'] / 1e6:.1f} M"
        if results:
            metrics = results[0]["Metrics"]
            assert [float(cell) for cell in cells[3:5]] == [metrics["NDS"], metrics["mAP"]]
        else:
            assert cells[3:5] == ["–", "–"]


def test_the_data_set_index():
    index = yaml.safe_load((ROOT / "dataset-index.yml").read_text())
    entry = index["coco2017"]
    assert {"dataset", "download_root", "data_root", "script"} == set(entry)
    script = ROOT / entry["script"]
    assert script.stat().st_mode & 0o111


def test_mim_reads_the_index():
    """As `mim search` and `mim download` do: a weight that is no str would crash the latter."""
    index = pytest.importorskip("modelindex.load_model_index", reason="openmim is not installed")
    search = pytest.importorskip("mim.commands.search", reason="openmim is not installed")
    table = search.convert2df(index.load(str(ROOT / "model-index.yml"))).to_dict("index")
    assert set(table) == set(MODELS)
    for name, row in table.items():
        assert row["config"] == MODELS[name]["Config"]
        # The part behind the last slash is the file that gets downloaded; none if it is empty.
        files = [address.split("/")[-1] for address in row["weight"].split(",")]
        assert files == ([""] if MODELS[name]["Weights"] == [""] else [files[0]])
        assert files[0] == "" or files[0].endswith(".pth")
