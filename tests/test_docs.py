"""The documentation: its links exist, and its commands are valid."""

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from torch.distributed.run import get_args_parser

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")]
PAGES += ROOT.glob("examples/**/*.md")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "shell", "bash")
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@each_page
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


def test_paths_on_the_map_exist():
    """Capitals stand for a name of one's own."""
    text = BLOCK.sub("", (ROOT / "docs" / "contributing_map.md").read_text())
    paths = re.findall(r"`((?:csrc|dcnv4_mm|configs|tools|dev|tests|docs)/[^` ]*)`", text)
    assert len(paths) > 20
    missing = [path for path in paths if not (re.search("[A-Z]{4}", path) or list(ROOT.glob(path)))]
    assert missing == []


def test_model_zoo_is_what_the_metafiles_say():
    """`python docs/make_model_zoo.py` writes it."""
    spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs" / "make_model_zoo.py")
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    assert (ROOT / "docs" / "model_zoo.md").read_text() == zoo.model_zoo()


def test_evidence_exists_and_the_page_is_up_to_date():
    """`python docs/make_evidence.py` writes it."""
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "docs" / "make_evidence.py")
    evidence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evidence)
    for claims in yaml.safe_load(evidence.CLAIMS.read_text()).values():
        for shown in (name for claim in claims for name in claim.get("shown", ())):
            path, _, test = shown.partition("::")
            assert (ROOT / path).is_file(), path
            assert f"def {test}(" in (ROOT / path).read_text() or not test, shown
    # A clone may lack the history that the last column comes from.
    without = re.sub(r"\| [^|]* \|$", "|", evidence.PAGE.read_text(), flags=re.MULTILINE)
    assert without == re.sub(
        r"\| [^|]* \|$", "|", evidence.page(lambda path: ""), flags=re.MULTILINE
    )


def results(page: Path) -> dict[str, list[str]]:
    """The numeric cells of a page's result tables, by the config that their row links."""
    found = {}
    for line in page.read_text().splitlines():
        if line.startswith("| ") and (config := re.search(r"\[config\]\(([^)]+)\)", line)):
            cells = [cell.strip() for cell in line.split("|")]
            found[config[1]] = [cell for cell in cells if re.fullmatch(r"\d+\.\d+", cell)]
    return found


def test_results_in_the_readmes_are_those_of_the_metafiles():
    models = {
        model["Config"]: model
        for path in ROOT.glob("configs/*/metafile.yml")
        for model in yaml.safe_load(path.read_text())["Models"]
    }
    shown = results(ROOT / "README.md")
    assert len(shown) > 20
    for config, figures in shown.items():
        metrics = [v for result in models[config]["Results"] for v in result["Metrics"].values()]
        assert figures == [str(value) for value in metrics], config
        assert {result["Source"] for result in models[config]["Results"]} == {"paper"}


def test_the_readmes_have_the_same_content():
    pages = [ROOT / "README.md", ROOT / "README_zh-CN.md"]
    assert results(pages[0]) == results(pages[1])
    sections, codes = zip(
        *((re.findall("^##+ ", p.read_text(), re.M), BLOCK.findall(p.read_text())) for p in pages),
        strict=True,
    )
    assert len(sections[0]) == len(sections[1])
    # Comments do not count.
    without = [[(kind, re.sub("#.*", "", code)) for kind, code in blocks] for blocks in codes]
    assert without[0] == without[1]


def commands(page: Path) -> list[list[str]]:
    """The words of every command on a page, in blocks and in the text."""
    text = page.read_text()
    lines = [
        code.replace("\\\n", " ") for language, code in BLOCK.findall(text) if language in SHELLS
    ]
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", BLOCK.sub("", text))
    lines += [span.replace("\n", " ") for span in spans if re.match(r"[\w./=-]+ ", span)]
    found = []
    for line in "\n".join(lines).splitlines():
        # Options in brackets may be left out; R is the number of a machine; `cat` gives a path.
        line = re.sub(r"\[(--[\w-]+)\]", r"\1", line).replace(" R ", " 0 ")
        line = re.sub(r"\$\(cat (\S+)\)", r"\1", line)
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        found.append([])
        for word in words:
            if set(word) <= set("&|;"):
                found.append([])
            else:
                found[-1].append(word)
    return found


@each_page
def test_shell_blocks_are_of_the_shells_language(page):
    code = "\n".join(
        code for language, code in BLOCK.findall(page.read_text()) if language in SHELLS
    )
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.fixture
def accept(monkeypatch):
    """Function that gives a script its arguments, and fails unless it takes them."""

    class Accepted(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_leave(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise Accepted

    def run(script, arguments):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
            patch.setattr(sys, "argv", [str(script), *arguments])
            patch.syspath_prepend(str(script.parent))
            with pytest.raises(Accepted):
                runpy.run_path(str(script), run_name="__main__")

    return run


def tool(name):
    (script,) = ROOT.glob(f"tools/**/{name}.py")
    return script


@each_page
def test_commands_are_accepted(page, accept):
    """By the parsers of mim, torchrun and the scripts; a name alone is no command."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):|\b(trial-\w+)", makefile, re.MULTILINE))
    for words in commands(page):
        script = next(
            (w for w in words if re.fullmatch(r"(tools|dev|benchmarks)/\w[\w/]*\.py", w)), None
        )
        if words[:1] == ["make"]:
            assert set(words[1:]) <= {name for pair in targets for name in pair}
        elif words[:1] == ["mim"] and words[2:3] == ["dcnv4_mm"] and "NAME" not in words:
            cli = importlib.import_module(f"mim.commands.{words[1]}").cli
            given = cli.make_context(words[1], words[2:]).params
            if words[1] in ("train", "test"):
                checkpoint = [given["checkpoint"]] if words[1] == "test" else []
                accept(tool(words[1]), [given["config"], *checkpoint, *given["other_args"]])
            elif words[1] == "run" and given["other_args"]:
                accept(tool(given["command"]), given["other_args"])
        elif script and script != "tools/FOLDER/NAME.py":
            before, after = words[: words.index(script)], words[words.index(script) + 1 :]
            if "torchrun" in before:
                options = before[before.index("torchrun") + 1 :]
                get_args_parser().parse_args([*options, script])
            if after:
                accept(ROOT / script, after)


@each_page
def test_configs_exist(page):
    configs = {
        path.name for path in (*ROOT.glob("configs/**/*.py"), *ROOT.glob("examples/**/*.py"))
    }
    assert set(re.findall(r"[\w-]+_\d+xb\d[\w-]*\.py", page.read_text())) <= configs
