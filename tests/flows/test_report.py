"""The report in a real browser: whole without a network, readable for everybody, and text from data stays text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from browser import Browser
from samples import LAYERS, SPLITS, synthetic, write_all
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Head2ToeConfig
from pipeline.refit import RefitParameters, refit
from pipeline.report import read_rows
from pipeline.report.classes import class_tables, classify
from pipeline.report.page import headline
from pipeline.selection import SelectionParameters, read_selection, select_features
from store import ActivationStore, create_store, open_store
from store.results import read_result
from store.spec import Manifest

pytestmark = pytest.mark.slow
SCRIPT = "<script>document.title='run'</script>"
CLASSES = (SCRIPT, 'b"ee & <b>wasp</b>', "c'at")
WIDE, NARROW = {"width": 1100, "height": 900}, {"width": 360, "height": 740}


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def report(store: ActivationStore, *options: str) -> Path:
    return Path(run("report", store.uri, *options)[0].strip())


def head(store: ActivationStore, selection: Any, **parameters: Any) -> Any:
    chosen = RefitParameters(max_iterations=20, **parameters)
    features = {"selection": selection.digest}
    how = {"normalization": selection.normalization, "parameters": chosen, "train": selection.split}
    return refit(store, selection.indices, features=features, **how)


def made(place: Path, classes: tuple[str, ...] = CLASSES, **provenance: Any) -> ActivationStore:
    values, manifests = synthetic()
    writer = create_store(place, LAYERS, SPLITS, manifests=manifests, class_names=classes, provenance=provenance)
    write_all(writer, values)
    return open_store(place)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """A store whose names are markup, with several selections, heads and the baseline."""
    place = tmp_path_factory.mktemp("reports") / "<img src=x onerror=alert(1)>" / "made.zarr"
    store = made(
        place, embedding="pre_logits", data=f"birds {SCRIPT}", weights="random:0", data_note="half <u>are</u> bees"
    )
    for keep in (3, 40, 12):
        selection = select_features(store, SelectionParameters(keep=keep))
        head(store, selection)
    linear = {"features": {"layer": "pre_logits"}, "normalization": "standardize"}
    refit(store, store.layer_indices("pre_logits"), parameters=RefitParameters(max_iterations=20), **linear)
    return store


@pytest.fixture(scope="module")
def page(hostile: ActivationStore) -> Path:
    return report(hostile, "--selection", select_features(hostile, SelectionParameters(keep=12)).digest)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.close()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- what is on it


def test_the_page_tells_result_certificate_lineage_and_classes(hostile: ActivationStore, page: Path) -> None:
    selection = read_selection(hostile, page.stem.rpartition("-")[2])
    linear, ours = read_rows(hostile, selection)
    said = unescape(text(page))
    assert f"Head2Toe {100 * ours.accuracy['test']:.1f} % against Linear {100 * linear.accuracy['test']:.1f} %" in said
    assert "Yes: over all 127 features this is the optimum" in said
    for digest in (hostile.fingerprint, selection.digest, linear.digest, ours.digest):
        assert f"<dd><code>{digest}</code></dd>" in said
    assert "The backbone has random weights" in said
    assert said.count("<svg") == 3, "depth, relevance, and accuracy by fraction"
    assert "95\u00a0% interval" in said


def test_a_stored_head_says_of_each_sample_what_it_was_measured_by(hostile: ActivationStore) -> None:
    truth = hostile.labels("test")
    for normalization in ("standardize", "unit_norm", "none"):
        selection = select_features(
            hostile, SelectionParameters(keep=30, scorer="variance", normalization=normalization)
        )
        stored = head(hostile, selection)
        said = classify(hostile, read_result(hostile, "heads", stored.digest), "test")
        assert (said == truth).mean() == stored.accuracy["test"]


def test_of_many_classes_the_hardest_come_first_and_what_is_confused_is_counted() -> None:
    names = tuple(map(str, range(30)))
    truth = np.repeat(np.arange(30), 4)
    said = truth.copy()
    said[truth == 7] = 3
    said[np.flatnonzero(truth == 9)[:1]] = 2
    tables = class_tables(names, truth, said)
    assert [row.name for row in tables.rows[:2]] == ["7", "9"]
    assert [tuple(c) for c in tables.confusions] == [("7", "3", 4), ("9", "2", 1)]
    assert not tables.matrix


def test_what_to_type_makes_the_same_results_again(hostile: ActivationStore, page: Path) -> None:
    heads = len(list(Path(hostile.uri, "results", "heads").iterdir()))
    commands = unescape(re.findall(r'aria-label="Command"[^>]*><code>(.*?)</code>', text(page))[0]).split(" && ")
    assert [shlex.split(line)[1] for line in commands] == ["select", "refit", "refit"]
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "head2toe"
        assert json.loads(run(*words, "--json")[0])["reused"], line
    assert len(list(Path(hostile.uri, "results", "heads").iterdir())) == heads


# ---------------------------------------------------------------- in a browser


def test_names_from_data_stay_text_and_nothing_is_asked_for(browser: Browser, page: Path) -> None:
    def look(opened: Any) -> tuple[str, list[str], int, list[bool]]:
        layers = opened.locator("#layers table")
        folded = [layers.is_visible()]
        opened.emulate_media(media="print")
        folded.append(layers.is_visible())
        headers = opened.locator("#classes tbody th[scope=row]").all_inner_texts()
        return opened.title(), headers, opened.locator("script, img, iframe, link").count(), folded

    (title, headers, foreign, folded), complaints, requests = browser.visit(page, look, viewport=WIDE)
    assert SCRIPT in title
    assert set(CLASSES) <= set(headers)
    assert foreign == 0
    assert complaints == []
    assert requests == [page.as_uri()]
    assert folded == [False, True], "what is folded on the screen is printed"


@pytest.mark.parametrize(
    ("scheme", "size", "ink", "paper"),
    [
        ("light", WIDE, "rgb(27, 35, 44)", "rgb(255, 255, 255)"),
        ("dark", NARROW, "rgb(232, 237, 242)", "rgb(21, 25, 30)"),
    ],
    ids=["light and wide", "dark and narrow"],
)
def test_everybody_can_read_it(
    browser: Browser, page: Path, scheme: str, size: dict[str, int], ink: str, paper: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    def look(opened: Any) -> tuple[dict[str, Any], int, str, list[str]]:
        opened.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        colours = opened.locator("figure svg text").evaluate_all("all => all.map(t => getComputedStyle(t).fill)")
        ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        return Axe().run(opened).response, opened.evaluate(too_wide), ground, colours

    (axe, too_wide, ground, colours), complaints, _ = browser.visit(page, look, viewport=size, color_scheme=scheme)
    assert [(v["id"], v["help"], v["nodes"][0]["html"][:200]) for v in axe["violations"]] == []
    assert {"color-contrast", "scrollable-region-focusable", "svg-img-alt"} <= {rule["id"] for rule in axe["passes"]}
    assert too_wide <= 0
    assert ground == paper
    assert len(colours) > 20, "text of pictures"
    assert set(colours) == {ink}
    assert complaints == []


def test_the_keyboard_reaches_everything(browser: Browser, page: Path) -> None:
    reachable = "a[href], summary, [tabindex='0']"

    def look(opened: Any) -> tuple[int, set[int], bool]:
        opened.evaluate(f'document.querySelectorAll("{reachable}").forEach((e, i) => e.dataset.stop = i)')
        n = opened.locator(reachable).locator("visible=true").count()
        reached = set()
        for _ in range(n + 2):
            opened.keyboard.press("Tab")
            reached.add(opened.evaluate("Number(document.activeElement.dataset?.stop ?? -1)"))
        opened.locator("summary").first.focus()
        opened.keyboard.press("Enter")
        return n, reached - {-1}, opened.locator("details").first.evaluate("d => d.open")

    (n, reached, opens), _, _ = browser.visit(page, look, viewport=NARROW)
    assert len(reached) >= n
    assert opens


def test_a_store_of_a_thousand_classes_and_one_that_lacks_all_else(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"train": 1500, "test": 1200}
    labels = {split: rng.permutation(np.arange(n) % 1000) for split, n in sizes.items()}
    manifests = {s: Manifest([f"{s}{i}" for i in range(n)], labels[s], ["d"] * n) for s, n in sizes.items()}
    names = tuple(f"class number {i}" for i in range(1000))
    writer = create_store(tmp_path / "many.zarr", {"only": 12}, sizes, manifests=manifests, class_names=names)
    for split in sizes:
        for block in range(writer.store.splits[split].n_blocks):
            start, stop = writer.store.splits[split].block_range(block)
            writer.write_block(split, block, {"only": rng.standard_normal((12, stop - start)).astype(np.float16)})
    many = open_store(tmp_path / "many.zarr")
    head(many, select_features(many, SelectionParameters(scorer="variance", keep=5)), validation_fraction=0.0)

    def look(opened: Any) -> tuple[str, int]:
        return opened.locator("main").inner_text(), opened.locator("#classes details tbody tr").count()

    (said, listed), complaints, requests = browser.visit(report(many), look, viewport=NARROW)
    assert complaints == []
    assert len(requests) == 1
    assert listed == 1000
    assert "no Linear baseline" in said.replace("There is ", "")
    assert "No certificate: variance is a heuristic." in said


# ---------------------------------------------------------------- the command


def test_mistakes_of_the_command_are_explained(tmp_path: Path, hostile: ActivationStore) -> None:
    store = made(tmp_path / "one.zarr", embedding="pre_logits", data="s3://me:hunter2@bucket/birds")
    _, error = run("report", store.uri, code=2)
    assert f"has no selection of its own yet; `head2toe select {store.uri}` makes one." in error
    digest = select_features(store, SelectionParameters(scorer="variance")).digest
    bare = report(store, "--output", str(tmp_path / "bare.html"))
    assert "No head has been trained on this selection yet" in text(bare)
    assert "***@bucket/birds" in text(bare)
    assert "hunter2" not in text(bare)
    _, error = run("report", store.uri, "--selection", digest[:-1] + "x", code=2)
    assert f"did you mean '{digest}'" in error
    _, error = run("report", store.uri, "--output", str(tmp_path / "no" / "page.html"), code=2)
    assert "cannot write" in error
    assert f"there is no folder '{tmp_path / 'no'}'" in error
    assert "classifying" not in error


@pytest.mark.parametrize("data", ["../my photos", "folder:../my photos", "/data/my photos"])
def test_a_title_names_a_folder_without_its_place(tmp_path: Path, data: str) -> None:
    store = made(tmp_path / "one.zarr", data=data)
    selection = select_features(store, SelectionParameters(scorer="variance"))
    assert headline(store, selection, "test", None, None).endswith(" features kept on my photos")


def test_a_dry_run_says_where_the_page_would_be_and_writes_nothing(tmp_path: Path) -> None:
    store = made(tmp_path / "one.zarr")
    selection = select_features(store, SelectionParameters(scorer="variance"))
    head(store, selection)
    before = sorted(tmp_path.rglob("*"))
    place = f"{tmp_path}/reports/{store.fingerprint}-{selection.digest}.html"
    assert run("report", store.uri, "--dry-run")[0] == f"{place}, on selection {selection.digest} and 1 head\n"
    document, said = run("report", store.uri, "--dry-run", "--json", "--quiet")
    assert (json.loads(document)["report"], said) == (place, "")
    assert sorted(tmp_path.rglob("*")) == before
    assert run("report", store.uri)[0] == f"{place}\n"
    assert Path(place).exists()


def test_a_selection_of_joined_stores_is_refused(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one.zarr"), made(tmp_path / "other.zarr", (*CLASSES, "none of them"))
    out, _ = run("select", one.uri, "--join", other.uri, "--scorer", "variance", "--json")
    _, error = run("report", one.uri, "--selection", json.loads(out)["selection"], code=2)
    assert f"was made on the joined stores {one.fingerprint}, {other.fingerprint}, but a report shows one" in error
    assert "has no selection of its own yet" in run("report", one.uri, code=2)[1]


def test_the_configuration_of_a_report_is_that_of_its_store(tmp_path: Path) -> None:
    from pipeline.extraction import extract
    from pipeline.extraction_parameters import ExtractionParameters
    from pipeline.planning import plan_extraction

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 16, 16, 3), np.uint8), np.arange(24) % 2
    data = tmp_path / "noise.npz"
    np.savez(data, x_train=images[:16], y_train=labels[:16], x_test=images[16:], y_test=labels[16:])
    how = {"backbone": "test_resnet", "weights": "random:0", "image_size": 32, "device": "cpu"}
    done = extract(ExtractionParameters(data=str(data), target_sizes=(16, 64), **how), str(tmp_path / "root"))
    store = open_store(done.uri)
    selection = select_features(store, SelectionParameters(scorer="variance", fraction=0.1, offset=3))
    head(store, selection)
    found = json.loads(run("report", store.uri, "--json")[0])
    said = text(Path(found["report"]))
    assert "head2toe run run.yaml" in said
    written = unescape(re.findall(r'aria-label="Configuration"[^>]*><code>(.*?)</code>', said, re.DOTALL)[0])
    config = Head2ToeConfig.model_validate(yaml.safe_load(written))
    assert plan_extraction(config.extraction, config.root).uri == store.uri
    assert select_features(store, config.selection).digest == selection.digest
    assert config.refit.chosen() == read_rows(store, selection)[-1].inputs["parameters"]


def test_a_run_is_made_again_by_its_command_or_its_configuration(page: Path) -> None:
    from flows.demo import demo_config
    from flows.tasks import reproduction

    demo = reproduction(demo_config("a b; c", "random:3"))
    assert shlex.split(demo.command) == ["head2toe", "demo", "--root", "a b; c", "--weights", "random:3"]
    given = {"root": "stores", "extraction": {"backbone": "resnet50", "data": "Vögel: x"}, "refit": {"seed": 3}}
    config = Head2ToeConfig.model_validate({**given, "selection": {"keep": 50, "penalty": 0.02}})
    again = reproduction(config)
    assert Head2ToeConfig.model_validate(yaml.safe_load(again.configuration)) == config
    known = typer.main.get_command(app)
    shown = [*map(unescape, re.findall(r"<code>(head2toe .*?)</code>", text(page))), demo.command, again.command]
    assert len(shown) == 3
    for line in " && ".join(shown).split(" && "):
        _, name, *words = shlex.split(line)
        known.commands[name].make_context(name, words)
