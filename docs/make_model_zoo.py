"""Writes model_zoo.md from the metafiles; run it after changing one.

python docs/make_model_zoo.py
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Model zoo

Written by `docs/make_model_zoo.py` from the metafiles of [configs](../configs/README.md). Every
figure names its source: `paper` and `released config` are what was published with the released
weights, not measurements of this project. `mim download dcnv4_mm --config NAME --dest weights`
fetches config and weights; the NAME is that of the config, without `.py`.
"""


def model_zoo() -> str:
    """The page: a table for each metafile."""
    parts = [HEADER]
    imported = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
    for name in sorted(imported):
        metafile = yaml.safe_load((ROOT / name).read_text())
        folder = Path(name).parent
        readme = ROOT / folder / "README.md"
        title = readme.read_text().splitlines()[0] if readme.exists() else f"# {folder.name}"
        parts.append(f"#{title}\n")
        parts.append("| config | parameters | results | source | original config | weights |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        for model in metafile["Models"]:
            parts.append(row(model, folder))
        parts.append("")
    return "\n".join(parts)


def row(model: dict, folder: Path) -> str:
    """The line of a model."""
    facts, results = model["Metadata"], model.get("Results", [])
    figures = [
        # On the site's narrow columns a figure would else stand below its name.
        f"{metric}\N{NO-BREAK SPACE}{value}"
        for result in results
        for metric, value in result["Metrics"].items()
    ]
    count = facts.get("Parameters")
    addresses = model["Weights"] if isinstance(model["Weights"], list) else [model["Weights"]]
    cells = (
        f"[{model['Name']}](../{model['Config']})",
        f"{count / 1e6:.1f} M" if count else "",
        ", ".join(figures),
        ", ".join(dict.fromkeys(result["Source"] for result in results)),
        f"`{facts['Original Config']}`" if "Original Config" in facts else "",
        ", ".join(f"[file]({address})" for address in addresses if address),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    (ROOT / "docs" / "model_zoo.md").write_text(model_zoo())
