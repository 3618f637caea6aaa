"""The model index, the metafiles, the configs, the READMEs and the paper's table agree."""

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import DATA
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
HUB = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/"
# Published with the released weights: (file, box AP, mask AP if there are masks, epochs).
PUBLISHED = {
    f"mask_rcnn_flash_intern_image_{name}": (f"mask_rcnn_flash_internimage_{name}", *figures)
    for name, figures in {
        "t_fpn_1x_coco": (48.0, 43.1, 12),
        "t_fpn_3x_coco": (49.5, 44.0, 36),
        "s_fpn_1x_coco": (49.2, 44.0, 12),
        "s_fpn_3x_coco": (50.5, 44.9, 36),
        "b_fpn_1x_coco": (50.1, 44.5, 12),
        "b_fpn_3x_coco": (50.6, 45.4, 36),
    }.items()
} | {
    "cascade_flash_intern_image_l_fpn_1x_coco": (
        "cascade_flash_internimage_l_fpn_1x_coco",
        55.6,
        48.2,
        12,
    ),
    "cascade_flash_intern_image_l_fpn_3x_coco": (
        "cascade_flash_internimage_l_fpn_3x_coco",
        56.7,
        48.9,
        36,
    ),
    **{
        f"dino_4scale_flash_internimage_{size}_1x_coco": (
            f"dino_4scale_flash_internimage_{size}_1x_coco",
            box,
            None,
            12,
        )
        for size, box in (("t", 54.7), ("s", 55.3), ("b", 56.0), ("l", 58.8))
    },
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


def test_the_published_detectors():
    found = {
        m["Metadata"]["Original Config"]: m
        for m in MODELS.values()
        if "Original Config" in m["Metadata"]
        and m["Results"][0]["Dataset"] == "COCO"
        # InternImage's have a test of their own.
        and not m["Config"].startswith("configs/internimage/")
    }
    assert set(found) == set(PUBLISHED)
    tables = [json.loads(path.read_text()) for path in DATA.glob("*_hyperparameters.json")]
    parameters = {
        original: {**table["common"], **values}["num_parameters"]
        for table in tables
        for original, values in table["configs"].items()
    }
    for original, (file, box, mask, epochs) in PUBLISHED.items():
        model = found[original]
        assert model["Weights"] == f"{HUB}{file}.pth"
        assert model["Metadata"]["Epochs"] == epochs
        assert model["Metadata"]["Parameters"] == parameters[original]
        metrics = {k: v for result in model["Results"] for k, v in result["Metrics"].items()}
        assert metrics == {"box AP": box} | ({} if mask is None else {"mask AP": mask})
        assert {result["Source"] for result in model["Results"]} == {"paper"}
        # The letter in the name, in the original's and in the config's header is the same.
        header = (ROOT / model["Config"]).read_text().splitlines()[0]
        assert header == f"# Reproduces {original} of the original project."


def test_the_four_published_classifiers():
    table = ROOT / "tests" / "data" / "classification_hyperparameters.json"
    table = json.loads(table.read_text())["configs"]
    published = {
        "flash_intern_image_t_1k_224": ("flash_intern_image_t_1k_224.pth", 83.6),
        "flash_intern_image_s_1k_224": ("flash_intern_image_s_1k_224.pth", 84.4),
        "flash_intern_image_b_1k_224": ("flash_intern_image_b_1k_224.pth", 84.9),
        "flash_intern_image_l_22kto1k_384": ("flash_internimage_l_22kto1k_384.pth", 88.1),
    }
    models = [m for m in MODELS.values() if m["Config"].startswith("configs/classification/")]
    assert {m["Metadata"]["Original Config"] for m in models} == set(published) == set(table)
    readme = (ROOT / "configs" / "classification" / "README.md").read_text()
    for model in models:
        facts, values = model["Metadata"], table[model["Metadata"]["Original Config"]]
        file, top1 = published[facts["Original Config"]]
        assert model["Weights"] == HUB + file
        assert facts["Epochs"] == values["schedule.max_epochs"]
        assert facts["Parameters"] == values["num_parameters"]
        (result,) = model["Results"]
        assert (result["Source"], result["Metrics"]) == ("paper", {"Top 1 Accuracy": top1})
        (row,) = (line for line in readme.splitlines() if f"({model['Name']}.py)" in line)
        assert f"| {facts['Parameters'] / 1e6:.1f} M | {top1} |" in row
        assert f"[weights]({model['Weights']})" in row


def test_every_result_has_a_source():
    for name, model in MODELS.items():
        for result in model.get("Results", []):
            assert result["Source"] in SOURCES, name


def test_models_without_a_file_say_so_in_the_way_mim_can_read():
    for name, model in MODELS.items():
        released = "Original Config" in model["Metadata"]
        assert released or model["Weights"] == [""], name


@pytest.mark.parametrize("folder", ["mask_rcnn", "cascade_mask_rcnn", "dino"])
def test_the_readme_table_says_what_the_metafile_says(folder):
    readme = (ROOT / "configs" / folder / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| ") and "[config]" in line]
    models = [m for m in MODELS.values() if m["Config"].startswith(f"configs/{folder}/")]
    assert len(rows) == len(models)
    for row, model in zip(rows, models, strict=True):
        figures = [str(next(iter(r["Metrics"].values()))) for r in model["Results"]]
        assert f"| {' | '.join(figures)} |" in row
        assert f"[config]({model['Name']}.py)" in row
        assert f"[weights]({model['Weights']})" in row
        assert f"| {model['Metadata']['Parameters'] / 1e6:.1f} M |" in row


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
