"""The pages: links that lead somewhere, names and paths that are there, every public name on the API page."""

import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = r"(?:src|tests|docs|demo|examples|benchmarks|\.ci)/[\w./*{},-]+"
HYPOTHETICAL = "NAME"  # stands in paths for what a reader adds
STRICT = """
site_name: test
docs_dir: {docs}
site_dir: {site}
strict: true
plugins: []
"""


def named(page):
    return str(page.relative_to(ROOT))


def settings():
    """The part of mkdocs.yml that says what is an error."""
    text = (ROOT / "mkdocs.yml").read_text()
    return re.search(r"^validation:\n(?:  .*\n)+", text, re.MULTILINE).group()


def build(folder, page):
    mkdocs = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page)
    (folder / "docs" / "other.md").write_text("# Other\n")
    config = folder / "mkdocs.yml"
    config.write_text(STRICT.format(docs=folder / "docs", site=folder / "site") + settings())
    mkdocs.build(load_config(str(config)))


def test_strict_settings_take_a_good_page(tmp_path):
    build(tmp_path, "# Start\n[other](other.md#other) [here](#start)\n")


@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nothing", "#nothing", "/other", "nowhere/", "a.png"])
def test_broken_links_and_anchors_fail_the_build(tmp_path, link):
    from mkdocs.exceptions import Abort

    with pytest.raises(Abort):
        build(tmp_path, f"# Start\n[link]({link})\n")


def test_the_build_counts_warnings():
    """`--quiet` would keep them from `--strict`."""
    (line,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert "--strict" in line
    assert "quiet" not in line


HOOK = runpy.run_path(str(ROOT / "docs" / "public_names.py"))


def test_every_public_name_is_on_the_api_page():
    assert HOOK["missing"]((ROOT / "docs" / "api.md").read_text()) == []


@pytest.mark.parametrize("name", list(HOOK["public_names"]()))
def test_a_public_name_that_is_not_there_is_missed(name):
    page = (ROOT / "docs" / "api.md").read_text()
    short = name.rpartition(".")[2]
    assert HOOK["missing"](re.sub(rf"\b{short}\b", "gone", page)) == [name]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text())
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_are_there(page):
    text = page.read_text()
    paths = {re.sub(r"\{.*?\}", "*", path).rstrip("./,") for path in re.findall(rf"[`(\s]({FOLDERS})", text)}
    paths |= {f"**/{path}" for path in re.findall(r"`([\w/]+\.(?:py|toml|txt|sh))`", text)}
    lost = [path for path in paths if HYPOTHETICAL not in path and not any(ROOT.glob(path))]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_dotted_names_are_there(page):
    lost = [name for name in re.findall(r"`(vicinal(?:\.\w+)+)(?:\(.*?\))?`", page.read_text()) if not found(name)]
    assert lost == []


def found(name):
    """Whether it is a module, or an attribute of one."""
    try:
        import_module(name)
    except ImportError:
        module, _, attribute = name.rpartition(".")
        return bool(module) and hasattr(import_module(module), attribute)
    return True


def test_every_example_of_the_guide_is_shown_and_none_is_typed_twice():
    """Code on its pages is included: every block is one line that names an example and its part."""
    text = "".join(page.read_text() for page in (ROOT / "docs" / "guide").glob("*.md"))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    included = [re.fullmatch(r'--8<-- "(examples/guide/\w+\.py):\w+"\n', block) for block in blocks]
    assert all(included), blocks
    examples = {named(path) for path in (ROOT / "examples" / "guide").glob("*.py")}
    assert {match[1] for match in included} == examples


def standing_alone(page):
    """Its blocks of code that import torch themselves: what they need is in them, and they are typed on the page."""
    return re.findall(r"^```python\n(import torch\n.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


BLOCKS = [
    pytest.param(block, id=f"{named(page)} {number}")
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "concepts.md")
    for number, block in enumerate(standing_alone(page), 1)
]


def test_pages_have_blocks_that_stand_alone():
    assert {block.id.split()[0] for block in BLOCKS} == {"README.md", "docs/index.md", "docs/concepts.md"}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_stand_alone_run_as_they_are_pasted(block):
    exec(block, {})


def test_entries_of_the_tables_are_as_many_as_is_said():
    said = re.search(r"(\d+) entries of the H100, (\d+) of the H200", (ROOT / "docs" / "tuning.md").read_text())
    tables = sorted((ROOT / "src" / "vicinal" / "tuning" / "tables").glob("nvidia-h*.json"))
    assert [len(json.loads(table.read_text())["entries"]) for table in tables] == [int(n) for n in said.groups()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_pages_include_is_there(page):
    """Also where a formatter took the line for Python, and spread it out."""
    for line in re.findall(r"^-- ?8 ?<.*", page.read_text(), re.MULTILINE):
        found = re.fullmatch(r'--8<-- "([\w/.]+):(\w+)"', line)
        assert found, line
        assert f"--8<-- [start:{found[2]}]" in (ROOT / found[1]).read_text()


NOTEBOOK = runpy.run_path(str(ROOT / "docs" / "notebook_page.py"))


def test_a_notebook_becomes_a_part_of_a_page():
    page = NOTEBOOK["on_page_markdown"]("# Tour\n\n<!-- notebook: examples/tour.ipynb -->\n")
    assert page.startswith("# Tour\n")
    assert (
        "output = na2d(query, key, value, kernel_size=7)\noutput.shape\n```\n\n```text\ntorch.Size([1, 32, 32, 4, 32])"
        in page
    )
    assert page.count("data:image/png;base64,") == 4
    assert "\x1b" not in page
    assert "%matplotlib" not in page
