"""The programs whose files must be complete, whatever happens."""

import importlib.util
import json
import pickle
import runpy
import sys
from pathlib import Path

import torch
from enumerate_faults import Scenario
from small_runner import small_runner

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.checkpoints.files import read_file
from dcnv4_mm.engine import find_complete_checkpoint, load_from_local
from dcnv4_mm.engine.hooks import SafeCheckpointHook

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {path.name: path for path in (ROOT / "tools").rglob("*.py")}


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Tool(Scenario):
    """A command-line tool that writes one file.

    Attributes:
        tool: Its file name.
        arguments: Its arguments; names in capitals are files of the folder.
    """

    tool = ""
    arguments = ()

    def act(self, folder):
        path = TOOLS[self.tool]
        words = [str(folder / w.lower()) if w.isupper() else w for w in self.arguments]
        sys.argv = [str(path), *words]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    def check(self, folder, outcome):
        before = self.before(folder)
        new = {n: c for n, c in contents(folder).items() if n not in before and n[0] != "."}
        if outcome.error is None and outcome.fault not in ("killed",):
            assert len(new) == 1, sorted(new)
        if outcome.error is not None:
            # One line, with the name of the file.
            assert outcome.error.startswith("error: "), outcome.error
            assert "\n" not in outcome.error, outcome.error
            assert str(folder) in outcome.error, outcome.error
        for name in new:
            self.complete(folder / name)
        for name, content in before.items():
            assert (folder / name).read_bytes() == content, name

    def complete(self, path):
        """Raises an error if the file is not complete."""
        assert read_file(path)["state_dict"]


class Released(Tool):
    """A tool that reads a released checkpoint."""

    def __init__(self):
        arch = {"channels": 8, "depths": (1, 1), "groups": (1, 1)}
        weights = to_released(FlashInternImage(arch, out_indices=(0, 1)))
        self.checkpoint = {"state_dict": {f"backbone.{k}": v for k, v in weights.items()}}

    def prepare(self, folder):
        torch.save(self.checkpoint, folder / "source")
        self.source = (folder / "source").read_bytes()

    def before(self, folder):
        return {"source": self.source}


class Convert(Released):
    tool, arguments = "convert.py", ("SOURCE", "TARGET.PTH", "--force")


class Publish(Released):
    tool, arguments = "publish_checkpoint.py", ("SOURCE", "TARGET.PTH")


class HuggingFace(Tool):
    """The conversion to a folder of transformers: three files, written by two libraries."""

    tool, arguments = "hugging_face.py", ("SOURCE", "TARGET")

    def __init__(self):
        model = FlashInternImage("nano", num_classes=2)
        self.checkpoint = {"model": to_released(model)}
        # Imported before the files are counted.
        import dcnv4_mm.transformers  # noqa: F401

    def prepare(self, folder):
        torch.save(self.checkpoint, folder / "source")

    def check(self, folder, outcome):
        target = folder / "target"
        if outcome.error is None and outcome.fault != "killed":
            assert target.is_dir()
        if outcome.error is not None:
            assert outcome.error.startswith("error: "), outcome.error
            assert "\n" not in outcome.error, outcome.error
            assert str(folder) in outcome.error, outcome.error
        if target.exists():
            files = ["config.json", "model.safetensors", "preprocessor_config.json"]
            assert names(target) == files
            assert read_file(target / files[1]).keys() == self.keys()
            for name in (files[0], files[2]):
                json.loads((target / name).read_text())

    def keys(self):
        return FlashInternImage("nano", num_classes=2).state_dict().keys()


class ConvertBoxes(Released):
    tool, arguments = "convert_bev_boxes.py", ("SOURCE", "TARGET.PTH")

    def __init__(self):
        keys = [f"pts_bbox_head.reg_branches.{i}.4" for i in range(6)]
        weights = {f"{key}.weight": torch.ones(10, 4) for key in keys}
        weights |= {f"{key}.bias": torch.ones(10) for key in keys}
        self.checkpoint = {"meta": {}, "state_dict": weights}


class AddInfos(Tool):
    """Without nuScenes itself: the infos are written as they are."""

    tool = "add_bevformerv2_infos.py"
    arguments = ("--data-root", "ROOT", "--version", "v", "--infos", "SOURCE", "--out", "OUT.PKL")

    def __init__(self):
        import nuscenes

        from dcnv4_mm.bev.data import infos

        nuscenes.NuScenes = infos.extend_infos = lambda *_, **__: None

    def prepare(self, folder):
        (folder / "source").write_bytes(pickle.dumps({"data_list": [1] * 5000}))

    def before(self, folder):
        return {"source": pickle.dumps({"data_list": [1] * 5000})}

    def complete(self, path):
        assert len(pickle.loads(path.read_bytes())["data_list"]) == 5000


class MergeInfos(Scenario):
    """The info files of two splits in one."""

    def prepare(self, folder):
        for split in ("train", "val"):
            infos = {"data_list": [{"split": split} for _ in range(2000)]}
            (folder / f"bevformerv2_infos_{split}.pkl").write_bytes(pickle.dumps(infos))

    def act(self, folder):
        load(TOOLS["prepare_nuscenes.py"]).merge(folder)

    def check(self, folder, outcome):
        path = folder / "bevformerv2_infos_trainval.pkl"
        assert path.exists() or outcome.error or outcome.fault in ("killed", "hidden")
        if path.exists():
            infos = pickle.loads(path.read_bytes())["data_list"]
            assert [info["sample_idx"] for info in infos] == list(range(4000))
        assert outcome.error is None or str(folder) in outcome.error


def load(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


class Dataset(Scenario):
    """A generated dataset: the folder is complete, or is not there."""

    def __init__(self):
        self.module = load(ROOT / "dev" / "generators" / "dataset_folder.py")
        self.expected = None

    def act(self, folder):
        dataset = self.module.GeneratedDataset(
            name="tiny", format=1, write_split=self.write_split, num_train=1, num_val=1, least=1
        )
        dataset.generate(folder / "set")

    def write_split(self, folder, split, seed, count):
        """One image, as the generators write them."""
        path = folder / ("train", "val")[split]
        path.mkdir()
        generator = self.module.random_generator(seed, split)
        image = generator.integers(0, 256, (40, 40, 3), "uint8")
        self.module.write_image(path / "image.png", image)
        yield

    def check(self, folder, outcome):
        found = {name: contents_of(folder / "set", name) for name in names(folder / "set")}
        if outcome.fault == "none":
            assert outcome.error is None, outcome.error
            self.expected = self.expected or found
        assert found in ({}, self.expected), sorted(found)
        if outcome.error is None and outcome.fault != "killed":
            assert found
        else:
            assert outcome.fault == "killed" or str(folder) in outcome.error, outcome.error
        if outcome.fault == "none":
            # What a killed process has left is gone.
            assert [path.name for path in folder.iterdir()] == ["set"]


def contents_of(folder, name):
    path = folder / name
    return path.read_bytes() if path.is_file() else None


class Download(Scenario):
    """A file and the note of its hash."""

    def prepare(self, folder):
        torch.save({"weight": torch.arange(5000)}, folder.parent / "served.pth")

    def act(self, folder):
        from dcnv4_mm.checkpoints.downloads import check_download, download

        address = (folder.parent / "served.pth").as_uri()
        download(address, folder / "cache" / "model.pth")
        check_download(folder / "cache" / "model.pth")
        read_file(folder / "cache" / "model.pth")

    def check(self, folder, outcome):
        path, served = folder / "cache" / "model.pth", folder.parent / "served.pth"
        if path.exists():
            assert path.read_bytes() == served.read_bytes()
        if outcome.fault == "none":
            assert outcome.error is None, outcome.error
            assert path.exists()
        elif outcome.error:
            assert str(folder) in outcome.error, outcome.error


class Run(Scenario):
    """A run of two epochs, which keeps two checkpoints and the best one."""

    def prepare(self, folder):
        # The folder is the same every time, and what the runner has in memory.
        if not hasattr(self, "runner"):
            self.runner = small_runner(folder)
            self.hook = next(h for h in self.runner.hooks if isinstance(h, SafeCheckpointHook))
            for epoch in range(2):
                self.end_epoch(epoch)
            self.before = contents(folder)
        for name, content in self.before.items():
            (folder / name).write_bytes(content)

    def end_epoch(self, epoch):
        """What the hook does at the end of an epoch and of its validation."""
        self.runner.train_loop._epoch = epoch
        self.hook.after_train_epoch(self.runner)
        self.runner.train_loop._epoch = epoch + 1
        self.hook.after_val_epoch(self.runner, {"ap": float(epoch)})


class SaveCheckpoint(Run):
    """Saving, keeping and removing at the end of the third epoch."""

    def act(self, folder):
        self.end_epoch(2)

    def check(self, folder, outcome):
        found = find_complete_checkpoint(folder, "epoch_*.pth")
        epoch = load_from_local(found)["meta"]["epoch"]
        assert found == str(folder / f"epoch_{epoch}.pth")
        assert epoch >= 2
        # Whatever has the name of a checkpoint is one.
        for path in folder.glob("*.pth"):
            assert path.name[0] == "." or load_from_local(str(path))["state_dict"], path
        assert any(name.startswith("best_ap") for name in contents(folder))
        if outcome.fault == "none":
            assert outcome.error is None, outcome.error
            assert epoch == 3
            assert "best_ap_epoch_3.pth" in contents(folder)
        assert not outcome.error or str(folder) in outcome.error, outcome.error


class Resume(Run):
    """The search for the latest checkpoint, with faults of reading."""

    reads = True

    def act(self, folder):
        # The result is the error here, for it to reach the check.
        sys.exit(find_complete_checkpoint(folder, "epoch_*.pth"))

    def check(self, folder, outcome):
        assert contents(folder) == self.before
        if outcome.fault == "killed":
            return
        if outcome.fault == "none":
            assert outcome.error == str(folder / "epoch_2.pth"), outcome.error
        # An older one is better than none; a message names the file that cannot be read.
        assert outcome.error.startswith(str(folder / "epoch_")) or str(folder) in outcome.error


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, image):
        return {"logits": self.layer(image)}


class Export(Tool):
    """The export of a small program; what is slow (tracing, comparing) is left out."""

    tool = "export.py"
    kind, suffix = "export", ".pt2"

    def __init__(self):
        self.module = load(TOOLS[self.tool])
        program = torch.export.export(Named(), (torch.ones(1, 2),))
        self.module.check = lambda args: None
        self.module.build = lambda *args: (program, {"task": "features"})
        self.module.trace = lambda *args: program
        self.module.compare = lambda *args: True

    def prepare(self, folder):
        (folder / f"model{self.suffix}").write_bytes(b"the file before")

    def before(self, folder):
        return {}

    def act(self, folder):
        target = str(folder / f"model{self.suffix}")
        sys.argv = ["export.py", "config", "checkpoint", target, "--format", self.kind]
        self.module.main()

    def complete(self, path):
        if path.read_bytes() != b"the file before":
            self.load(path)

    def load(self, path):
        torch.export.load(path)


class ExportOnnx(Export):
    kind, suffix = "onnx", ".onnx"

    def __init__(self):
        super().__init__()
        program = self.module.trace().run_decompositions()
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        torch.onnx.export = lambda *args, **options: converted

    def load(self, path):
        import onnx

        onnx.checker.check_model(str(path))
