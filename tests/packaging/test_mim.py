"""mim's commands on the installed wheel, run from another folder."""

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

import dcnv4_mm

pytestmark = [pytest.mark.mim, pytest.mark.mmdet]

MIM = Path(sys.executable).with_name("mim")
# The oldest setuptools that mim's own dependencies ask for; `make test-mim` puts it there.
LOWEST_SETUPTOOLS = Path(sys.prefix, "lowest-setuptools")
QUICKSTART = next(ROOT.glob("configs/quickstart/mask-rcnn*.py")).name

# mim with its download of weights replaced: tests do not reach the network.
DOWNLOAD = """
import sys
from importlib import import_module
from pathlib import Path
download = import_module("mim.commands.download")
download.download_from_file = lambda url, path, **_: Path(path).write_text(url)
download.download("dcnv4_mm", sys.argv[2:], dest_root=sys.argv[1])
"""

# `odl get NAME -d FOLDER`, with files as OpenDataLab has them.
ARCHIVES = f"""#!{sys.executable}
import sys, zipfile
from pathlib import Path
command, name, _, folder = sys.argv[1:]
assert (command, name) == ("get", "OpenDataLab/COCO_2017")
folder = Path(folder, "OpenDataLab___COCO_2017", "raw")
folder.mkdir(parents=True)
for archive, file in (
    ("annotations_trainval2017", "annotations/instances_val2017.json"),
    ("train2017", "train2017/1.jpg"),
    ("val2017", "val2017/1.jpg"),
):
    with zipfile.ZipFile(folder / (archive + ".zip"), "w") as file_of:
        file_of.writestr(file, "")
"""


def models() -> list[dict]:
    """The models of all metafiles that model-index.yml imports."""
    imported = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
    files = [yaml.safe_load((ROOT / name).read_text()) for name in imported]
    return [model for file in files for model in file["Models"]]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, run) -> Path:
    """A small mini COCO dataset."""
    folder = tmp_path_factory.mktemp("data") / "mini_coco"
    generator = (sys.executable, ROOT / "dev/generators/mini_coco.py")
    run(*generator, folder, "--num-train", 8, "--num-val", 4, cwd=folder.parent)
    return folder


def data_options(folder: Path) -> list[str]:
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    options = [f"{name}.dataset.data_root={folder}/" for name in loaders]
    annotations = folder / "annotations/val.json"
    options += [f"{name}.ann_file={annotations}" for name in ("val_evaluator", "test_evaluator")]
    return [*options, *(f"{name}.num_workers=0" for name in loaders),
            *(f"{name}.persistent_workers=False" for name in loaders)]  # fmt: skip


def test_list_names_the_package(run, tmp_path):
    assert re.search(r"^dcnv4[-_]mm +\d", run(MIM, "list", cwd=tmp_path), re.MULTILINE)


def test_search_finds_every_model(run, tmp_path):
    shown = run(MIM, "search", "dcnv4_mm", "--valid-config", cwd=tmp_path)
    assert set(re.findall(r"'([^']+)'", shown)) == {model["Name"] for model in models()}


def test_search_shows_models_by_name(run, tmp_path):
    names = [model["Name"] for model in models()]
    shown = run(MIM, "search", "dcnv4_mm", "--config", *names, cwd=tmp_path)
    assert re.findall(r"config id: (\S+)", shown) == names


def test_download_fetches_weights_and_flattens_configs(run, tmp_path):
    found = models()
    names = [model["Name"] for model in found]
    run(sys.executable, "-c", DOWNLOAD, tmp_path, *names, cwd=tmp_path)
    for model in found:
        flat = (tmp_path / f"{model['Name']}.py").read_text()
        assert "_base_" not in flat
        assert "dcnv4_mm." in flat
    # There are no released files of the quickstart models and of BEVFormer v2.
    weights = [model["Weights"] for model in found if model["Weights"] != [""]]
    assert len(weights) == 12 + 8 + 4 + 15
    assert [(tmp_path / url.rsplit("/", 1)[-1]).read_text() for url in weights] == weights


@pytest.fixture
def address(tmp_path):
    """Where the files of the folder `served` are: mim knows http alone, no file:// addresses."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_download_of_a_published_checkpoint(run, address, tmp_path):
    """A checkpoint is published, a metafile names it, and mim brings the bytes that were hashed."""
    torch.save({"state_dict": {"x": torch.randn(100)}, "optimizer": {}}, tmp_path / "epoch_1.pth")
    publish = (MIM, "run", "dcnv4_mm", "publish_checkpoint", "epoch_1.pth", "served/x.pth")
    shown = run(*publish, cwd=tmp_path)
    ((name, digest),) = re.findall(r"served/(x-[0-9a-f]{8}\.pth): .* SHA-256 ([0-9a-f]{64})", shown)
    assert digest.startswith(name[2:10])
    # A copy of the installed package, ahead of it on the path, with the address in its metafile.
    installed, copy = Path(dcnv4_mm.__file__).parent, tmp_path / "site"
    shutil.copytree(installed, copy / installed.name)
    (about,) = installed.parent.glob("dcnv4_mm-*.dist-info")
    shutil.copytree(about, copy / about.name)
    metafile = copy / "dcnv4_mm/.mim/configs/quickstart/metafile.yml"
    content = yaml.safe_load(metafile.read_text())
    (model,) = (m for m in content["Models"] if m["Name"] + ".py" == QUICKSTART)
    model["Weights"] = [f"{address}/{name}"]
    metafile.write_text(yaml.safe_dump(content))

    download = (MIM, "download", "dcnv4_mm", "--config", model["Name"], "--dest", "weights")
    run(*download, cwd=tmp_path, PYTHONPATH=str(copy))
    brought = tmp_path / "weights" / name
    assert hashlib.sha256(brought.read_bytes()).hexdigest() == digest
    assert (tmp_path / "weights" / QUICKSTART).is_file()


def test_download_fetches_and_unpacks_a_data_set(run, tmp_path):
    """With OpenDataLab's client replaced by one that writes small archives."""
    client = tmp_path / "bin" / "odl"
    client.parent.mkdir()
    client.write_text(ARCHIVES)
    client.chmod(0o755)
    path = f"{client.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    run(MIM, "download", "dcnv4_mm", "--dataset", "coco2017", cwd=tmp_path, PATH=path)
    found = {str(file.relative_to(tmp_path)) for file in (tmp_path / "data/coco").rglob("*.*")}
    parts = ("train2017/1.jpg", "val2017/1.jpg", "annotations/instances_val2017.json")
    assert found == {f"data/coco/{part}" for part in parts}


def test_run_finds_the_tools(run, tmp_path):
    shown = run(MIM, "run", "dcnv4_mm", "print_config", QUICKSTART, cwd=tmp_path)
    assert "type='MaskRCNN'" in shown
    assert "The script finished successfully" in shown


def test_run_prints_the_options_of_a_tool(run, tmp_path):
    """As docs/tools.md says; the warning that it names does not appear."""
    environment = {"PYTHONWARNINGS": "ignore:pkg_resources is deprecated"}
    shown = run(MIM, "run", "dcnv4_mm", "benchmark", "--", "-h", cwd=tmp_path, **environment)
    assert "--batch-sizes" in shown
    assert "pkg_resources is deprecated" not in shown


def test_gridsearch_trains_with_every_value(run, tmp_path, data_root):
    rates = (0.0001, 0.0002)
    search = f"--optim_wrapper.optimizer.lr {rates[0]} {rates[1]}"
    command = ["gridsearch", "dcnv4_mm", QUICKSTART, "--gpus", "0", "--work-dir", tmp_path / "work"]
    options = [*data_options(data_root), "train_cfg.max_epochs=1", "train_cfg.val_interval=5"]
    run(MIM, *command, "--search-args", search, "--cfg-options", *options, cwd=tmp_path)
    for rate in rates:
        (folder,) = tmp_path.glob(f"work_search_*lr_{rate}")
        (log,) = folder.glob("*/vis_data/scalars.json")
        first = json.loads(log.read_text().splitlines()[0])
        assert first["lr"] <= rate
        assert (folder / "epoch_1.pth").is_file()


def test_lowest_setuptools(run, tmp_path):
    """The highest is what all other tests run on."""
    old = {"PYTHONPATH": str(LOWEST_SETUPTOOLS)}
    version = "import pkg_resources, setuptools; print('VERSION', setuptools.__version__)"
    shown = run(sys.executable, "-c", version, cwd=tmp_path, **old)
    (pinned,) = (ROOT / "requirements" / "lowest.txt").read_text().splitlines()[-1:]
    assert f"VERSION {pinned.removeprefix('setuptools==')}\n" in shown
    assert re.search(r"^dcnv4[-_]mm +\d", run(MIM, "list", cwd=tmp_path, **old), re.MULTILINE)
    name = QUICKSTART.removesuffix(".py")
    assert f"config id: {name}" in run(
        MIM, "search", "dcnv4_mm", "--config", name, cwd=tmp_path, **old
    )
    # Its bases are mmdet's, which mmengine finds by pkg_resources.
    shown = run(MIM, "run", "dcnv4_mm", "print_config", QUICKSTART, cwd=tmp_path, **old)
    assert "type='MaskRCNN'" in shown


def test_train_then_test_by_config_name(run, tmp_path, data_root):
    options = ["--cfg-options", *data_options(data_root)]
    train = ["train", "dcnv4_mm", QUICKSTART, "--gpus", "0", "--work-dir", tmp_path / "work"]
    shown = run(MIM, *train, *options, "train_cfg.max_epochs=1", cwd=tmp_path)
    assert "Training finished successfully" in shown
    checkpoint = tmp_path / "work/epoch_1.pth"

    test = ["test", "dcnv4_mm", QUICKSTART, "--checkpoint", checkpoint, "--gpus", "0"]
    output = ["--work-dir", tmp_path / "work", "--out", tmp_path / "found.pkl"]
    options += ["test_evaluator.outfile_prefix=found"]
    shown = run(MIM, *test, *output, *options, cwd=tmp_path)
    assert "coco/segm_mAP" in shown
    assert "Testing finished successfully" in shown

    # What docs/tools.md says of the host's own plots.
    (config,) = ROOT.glob(f"configs/quickstart/{QUICKSTART}")
    host = (sys.executable, "-m", "dcnv4_mm.integrations.mmcv_ext", "mmdet")
    plot = ["confusion_matrix", config, tmp_path / "found.pkl", tmp_path / "matrix"]
    run(*host, *plot, *options, cwd=tmp_path)
    assert (tmp_path / "matrix/confusion_matrix.png").is_file()
    plot = ["coco_error_analysis", "found.bbox.json", "curves"]
    run(*host, *plot, "--ann", data_root / "annotations/val.json", cwd=tmp_path)
    assert (tmp_path / "curves/bbox/bbox-allclass-allarea.png").is_file()


def test_train_with_two_processes(run, tmp_path, data_root):
    train = ["train", "dcnv4_mm", QUICKSTART, "--launcher", "pytorch", "--gpus", "2"]
    options = [*data_options(data_root), "train_cfg.max_epochs=1", "train_cfg.val_interval=5"]
    work = ["--work-dir", tmp_path / "work", "--cfg-options", *options]
    shown = run(MIM, *train, *work, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "Training finished successfully" in shown
    saved = torch.load(tmp_path / "work/epoch_1.pth", weights_only=False)
    # 8 images, less those without objects, in batches of 4 on each of 2 ranks.
    assert saved["meta"]["iter"] == 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
