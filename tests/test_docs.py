"""The documentation: its links lead somewhere, and its examples run."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")]
PAGES += ROOT.glob("examples/**/*.md")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for link in ("".join(pair) for pair in LINK.findall(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_model_zoo_is_what_the_metafiles_say():
    """`python docs/make_model_zoo.py` writes it."""
    spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs" / "make_model_zoo.py")
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    assert (ROOT / "docs" / "model_zoo.md").read_text() == zoo.model_zoo()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_name_tools_options_and_configs_that_exist(page):
    text = re.sub(r"\\\n\s*", "", page.read_text())
    shared = "".join((ROOT / "tools" / name).read_text() for name in ("_running.py", "_models.py"))
    for name, arguments in re.findall(
        r"(?:mim run dcnv4_mm |python (?:[\w/]*/)?tools/)([a-z][\w/]*)(?:\.py)?([^`|\n#]*)", text
    ):
        (tool,) = [*ROOT.glob(f"tools/{name}.py"), *ROOT.glob(f"tools/data/{name}.py")]
        for option in re.findall(r"--[\w-]+", arguments):
            assert f'"{option}"' in tool.read_text() + shared, f"{name} {option}"
    configs = {
        path.name for path in (*ROOT.glob("configs/**/*.py"), *ROOT.glob("examples/**/*.py"))
    }
    for config in re.findall(r"[\w-]*flash-internimage[\w-]*\.py", text):
        assert config in configs


@pytest.mark.parametrize("page", ["docs/extend.md", "docs/backbones.md"])
def test_examples_of_torch_alone_run(page):
    text = (ROOT / page).read_text()
    examples = re.findall(r"```python\n(import torch\n.*?)```", text, re.DOTALL)
    assert examples
    for code in examples:
        exec(code, {})


@pytest.mark.parametrize("page", ["README.md", "README_zh-CN.md"])
def test_readme_example_runs(page, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.strip() == "torch.Size([2, 56, 56, 64])"
