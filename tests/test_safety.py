"""Nothing of a name, an option or a file reaches a shell or an interpreter."""

import ast
import subprocess
import zipfile

import pytest
from helpers import ROOT

SOURCES = sorted(
    path
    for folder in ("dcnv4_mm", "tools", "dev", "examples", "requirements", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
NEVER = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


def calls(path):
    """Name and keywords of every call in a file; methods by their name and what they belong to."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_shell_no_interpreter_no_open_pickle(path):
    for name, keywords in calls(path):
        assert name not in NEVER
        assert keywords.get("shell", "False") == "False", name
        if name.endswith("torch.load"):
            assert keywords.get("weights_only") == "True"
        assert name not in {"pickle.load", "pickle.loads"}


def test_names_of_folders_are_no_commands(tmp_path):
    downloads, target = tmp_path / "a b; touch $(echo ran)", tmp_path / "c d; touch ran"
    downloads.mkdir()
    for name in ("annotations_trainval2017", "val2017", "train2017"):
        with zipfile.ZipFile(downloads / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/1.txt", name)
    script = ROOT / "tools" / "dataset_converters" / "unpack_coco2017.sh"
    subprocess.run(["bash", script, downloads, target], cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [downloads.name, target.name]
    assert len(list(target.glob("*/1.txt"))) == 3
