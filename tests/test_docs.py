"""What the documentation shows works: the site builds, links lead somewhere, and code runs or says why it does not.

A fenced block is run by `test_what_a_page_shows_works`, page by page in one folder, unless a comment above it says

- ``not run: <why>``; its commands are read by the command line all the same, so that every option exists;
- ``run by <file of tests>``, which names the page;
- ``output``: the block is what the one before it prints. Numbers may differ, accuracies by little, and a line of
  ``…`` stands for any number of lines.

Blocks of language ``text``, or of none, are no code.
"""

from __future__ import annotations

import html.parser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Head2ToeConfig
from pipeline.evaluation import EvaluationConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MARK = re.compile(r"<!-- (not run|run by|output)(?::? (.+?))? -->\s*$", re.DOTALL)
NO_CODE = ("", "text")
# VARIABLE=$(head2toe …), head2toe … > FILE
COMMAND = re.compile(
    r"(?:(?P<variable>\w+)=\$\()?head2toe (?P<words>[^|)>#]+?)\s*"
    r"(?:>\s*(?P<file>[\w.]+))?(?:\)\s*)?(?:#.*)?"
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment above it says."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    why: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(path: Path) -> Iterator[Block]:
    page, above = path.relative_to(ROOT).as_posix(), ""
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        if token.type == "fence":
            found = MARK.search(above)
            mark, why = found.groups() if found else ("", None)
            yield Block(page, token.map[0] + 1, token.info.split(" ")[0], token.content, mark, why or "")
        above = token.content if token.type == "html_block" else ""


BLOCKS = [block for path in PAGES for block in read_blocks(path)]
RUN = sorted({block.page for block in BLOCKS if not block.mark and block.language in ("bash", "python")})


def commands(block: Block) -> Iterator[str]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


# ---------------------------------------------------------------- every block runs or says why not


def test_every_block_has_a_language_and_marks_give_their_reason() -> None:
    assert len(BLOCKS) > 80
    for block in BLOCKS:
        if block.language in NO_CODE:
            typed = re.search(r"^(?:\$ )?(?:head2toe|make|pip|python|docker|export) \S", block.text, re.MULTILINE)
            assert block.mark == "output" or not typed, f"{block} shows a command; make it a block of bash"
        else:
            assert block.language in ("bash", "python", "yaml", "toml"), f"{block} is in {block.language}"
        if block.mark == "not run":
            assert len(block.why) > 5, f"{block} does not say why it is not run"
            for named in re.findall(r"\btests/[\w/*.]+\w", block.why):
                assert list(ROOT.glob(named)), f"{block} names {named}, which does not exist"
        elif block.mark == "run by":
            tests = (ROOT / block.why).read_text(encoding="utf-8")
            assert Path(block.page).name in tests, f"{block} is not run by {block.why}, which does not name it"


def test_commands_that_are_not_run_are_read_by_the_command_line() -> None:
    group = typer.main.get_command(app)
    shown = [
        (block, line)
        for block in BLOCKS
        if block.mark == "not run" and block.language == "bash"
        for line in commands(block)
    ]
    read = 0
    for block, line in shown:
        if not (found := COMMAND.fullmatch(line)):
            assert not line.startswith("head2toe"), f"{block}: {line!r} cannot be read"
            continue
        name, *words = shlex.split(found["words"])
        assert name in group.commands, f"{block}: there is no command {name!r}"
        group.commands[name].make_context(name, words)
        read += 1
    assert read > 20


def test_configurations_shown_are_valid() -> None:
    shown = [block for block in BLOCKS if block.language == "yaml" and not block.mark]
    for block in shown:
        document = yaml.safe_load(block.text)
        (EvaluationConfig if "methods" in document else Head2ToeConfig).model_validate(document)


class Session:
    """Types the blocks of one page, in order, with the variables of one shell and the names of one interpreter."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.names: dict[str, Any] = {}
        self.printed = ""

    def run(self, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
        if block.language == "python":
            capsys.readouterr()
            exec(compile("\n" * block.line + block.text, block.page, "exec"), self.names)
            self.printed = capsys.readouterr().out
        else:
            self.printed = "".join(self.type(line, str(block)) for line in commands(block))

    def type(self, line: str, place: str) -> str:
        found = COMMAND.fullmatch(line)
        assert found, f"{place}: only commands of ours can be typed, not {line!r}"
        expanded = re.sub(r"\$(\w+)", lambda name: self.variables[name[1]], found["words"])
        done = CliRunner().invoke(app, shlex.split(expanded))
        assert done.exit_code == 0, f"{place}: {line}\n{done.output}\n{done.exception!r}"
        out = done.stdout
        if found["file"]:
            Path(found["file"]).write_text(out, encoding="utf-8")
            return done.stderr
        if not found["variable"]:
            return done.output
        self.variables[found["variable"]] = out.strip()
        return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader is: a store of the digits, named, and some photographs in class folders."""
    place = tmp_path_factory.mktemp("reader")
    words = f"extract --backbone test_resnet --weights shipped --data digits --root {place / 'demo'}"
    uri = CliRunner().invoke(app, words.split()).stdout.strip()
    assert CliRunner().invoke(app, ["alias", str(place / "demo"), "digits", uri]).exit_code == 0
    rng = np.random.default_rng(0)
    for name, shade in (("cat", 60), ("dog", 180)):
        (place / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(shade - 50, shade + 50, (48, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{number}.png")
    shutil.copytree(ROOT / "configs", place / "configs")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_shows_works(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page.endswith("tutorial.md"):  # which begins with nothing
        folder = tmp_path
    monkeypatch.chdir(folder)
    session = Session()
    for block in (each for each in BLOCKS if each.page == page):
        if block.mark == "output":
            expect(block, session.printed)
        elif not block.mark and block.language in ("bash", "python"):
            session.run(block, capsys)


def expect(block: Block, printed: str) -> None:
    """Find the lines that a page shows among those printed, in order."""
    there = iter(printed.splitlines())
    gap = False
    for line in filter(str.strip, block.text.splitlines()):
        if line.strip() == "…":
            gap = True
            continue
        for found in there:
            if not found.strip():
                continue
            if same(line, found):
                break
            assert gap, f"{block} shows\n{line}\nbut what is printed is\n{found}"
        else:
            pytest.fail(f"{block} shows\n{line}\nwhich is not printed:\n{printed}")
        gap = False


def same(shown: str, printed: str) -> bool:
    """Whether two lines are the same but for their digests and numbers, and accuracies within three points."""
    percent = re.compile(r"([\d.]+) %")
    accuracies = [percent.findall(line) if "accuracy" in line else [] for line in (shown, printed)]
    near = all(abs(float(a) - float(b)) <= 3 for a, b in zip(*accuracies, strict=False))

    def bare(line: str) -> str:
        line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{4,20}\b", "#", line)
        return re.sub(r"[\s━─═]+", " ", re.sub(r"\d[\d.,:e-]*", "#", line)).strip()

    return near and bare(shown) == bare(printed)


# ---------------------------------------------------------------- the site


class Page(html.parser.HTMLParser):
    """What a built page refers to, and what may be referred to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.resources.append(given.get("href", ""))
        self.resources += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    if shutil.which("mkdocs", path=Path(sys.executable).parent) is None:
        pytest.skip("mkdocs is not installed; it is in the extra 'dev'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in folder.rglob("*.html")}


@pytest.mark.slow
def test_the_site_has_every_page_and_asks_nobody_else_for_anything(site: dict[Path, Page]) -> None:
    names = {path.name for path in site}
    assert {path.with_suffix(".html").name for path in PAGES} - {"README.html", "results-notes.html"} <= names
    for path, page in site.items():
        assert page.resources, path
        for resource in page.resources:
            assert not re.match(r"(?:\w+:)?//", resource), f"{path.name} asks for {resource}"
    [root] = [path.parent for path in site if path.name == "404.html"]
    for sheet in root.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import)\s*[\"']?(?:\w+:)?//[^)\"']+", sheet.read_text(encoding="utf-8"))
        assert not outside, f"{sheet.name} asks for {outside}"


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        if path.name == "404.html":  # its links are from the root of a server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "http", "mailto"), f"{path.name} links to {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name} links to {link}"
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].anchors, f"{path.name} links to {link}"


@pytest.mark.slow
def test_formulas_are_drawn_and_every_command_and_public_name_is_in_the_reference(site: dict[Path, Page]) -> None:
    text = {path.name: path.read_text(encoding="utf-8") for path in site}
    assert text["method.html"].count("<math") > 40
    assert not [name for name, page in text.items() if "arithmatex" in page]
    for name in typer.main.get_command(app).commands:
        assert f">head2toe {name}<" in text["commands.html"], f"{name} is not in the reference"
    import pipeline.estimators
    import pipeline.group_lasso
    import pipeline.methods
    import pipeline.prediction
    import store

    known = set().union(*(page.anchors for page in site.values()))
    for module in (store, pipeline.group_lasso, pipeline.estimators, pipeline.prediction, pipeline.methods):
        for name in module.__all__:
            places = {module.__name__, getattr(getattr(module, name), "__module__", "")}
            assert known & {f"{place}.{name}" for place in places}, (
                f"{name} of {module.__name__} is not in the reference"
            )
