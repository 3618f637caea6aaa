"""The documentation's site; `make docs` builds it. Pages are read on GitHub as well."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "dcnv4_mm"
author = "dcnv4_mm contributors"
project_copyright = author
version = release = next(
    line.split('"')[1]
    for line in (ROOT / "dcnv4_mm" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

# The sources are the whole repository: its pages link to each other as they lie there.
root_doc = "docs/index"
include_patterns = [
    *("README.md", "README_zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("docs/**", "configs/README.md", "configs/**/README.md", "examples/**/README.md"),
]
extensions = [
    *("myst_nb", "sphinx_copybutton", "sphinx_design"),
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon"),
]

# The API reference: Google style docstrings, types in the signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "forward"}
napoleon_custom_sections = ["Source"]

myst_enable_extensions = ["colon_fence"]
# Links to headings, by GitHub's names of them.
myst_heading_anchors = 3
# The notebook runs while the site is built; an error fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

html_theme = "furo"
html_title = f"dcnv4_mm {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# Without the prompt and the output of an example.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
