"""What a person sees of a store: everything that matters, as text and as HTML, whatever its names contain."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from store import ActivationStore, create_store, open_store
from store.html_summary import LISTED, human_bytes
from store.results import write_result

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'
VOID = {"img", "br", "meta"}


class Page(HTMLParser):
    """Rows of all tables, the text, and every element; fails on elements that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        [found] = [row[1:] for row in self.rows if row and row[0] == name]
        return found


def page(store: ActivationStore) -> Page:
    return Page(store._repr_html_())


def add_selection(store: ActivationStore, keep: int) -> str:
    inputs = {"ranking": {"scorer": "group_lasso", "normalization": "unit_norm"}, "keep": keep}
    arrays = {"indices": (np.arange(keep), ("rank",))}
    return write_result(store, "selections", inputs, arrays, {"support": 3}).digest


def test_html_says_what_the_store_is_without_styles(store) -> None:
    shown = page(store)
    assert shown.row("data") == ["synthetic, 3 classes: ant, bee, cat"]
    assert shown.row("samples") == ["train 90, test 37"]
    assert shown.row("activations") == ["127 features, float16, 32.3 kB"]
    assert shown.row("place") == [store.uri]
    assert shown.row("state") == ["complete"]
    assert "results: none yet" in shown.text
    assert {tag for tag, _ in shown.elements}.isdisjoint({"style", "script", "link", "img"})


def test_every_layer_has_features_bytes_and_a_bar_of_that_length(store) -> None:
    shown = page(store)
    layers = [row for row in shown.rows if row and row[0] in LAYERS]
    assert [(row[0], row[1]) for row in layers] == [(name, str(n)) for name, n in LAYERS.items()]
    assert [row[2] for row in layers] == [human_bytes(2 * n * sum(SPLITS.values())) for n in LAYERS.values()]
    styles = [attrs.get("style") or "" for tag, attrs in shown.elements if tag == "div"]
    widths = [float(style.rpartition("width:")[2].rstrip("%")) for style in styles if "width:" in style]
    np.testing.assert_allclose(widths, [100 * n / max(LAYERS.values()) for n in LAYERS.values()], atol=0.06)


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    values, manifests = synthetic()
    notes = {"data": HOSTILE, "weights": HOSTILE}
    classes = (HOSTILE, *CLASSES[1:])
    writer = create_store(
        tmp_path / "a&<b>.zarr", LAYERS, SPLITS, manifests=manifests, class_names=classes, provenance=notes
    )
    write_all(writer, values)
    opened = open_store(writer.uri)
    accuracy = {"accuracy": {"train": 1.0, "test": 0.5}}
    write_result(opened, "heads", {"features": {HOSTILE: HOSTILE}, "normalization": HOSTILE}, {}, accuracy)
    shown = page(opened)
    assert {tag for tag, _ in shown.elements}.isdisjoint({"script", "img", "b>"})
    assert shown.row("data") == [f"{HOSTILE}, 3 classes: {HOSTILE}, bee, cat"]
    assert shown.row("place") == [opened.uri]
    assert HOSTILE in shown.row("head")[1]


def test_html_lists_results_as_they_are_now(store) -> None:
    selection = add_selection(store, 12)
    features = {"selection": selection}
    facts = {"accuracy": {"train": 1.0, "test": 0.756}}
    write_result(store, "heads", {"features": features, "normalization": "unit_norm"}, {}, facts)
    write_result(store, "heads", {"features": "?"}, {}, {})
    shown = page(store)
    assert "results: 1 selection, 2 heads" in shown.text
    assert shown.row("selection") == [selection[:8], "12 features by group_lasso, unit_norm", ""]
    heads = sorted(row[2:] for row in shown.rows if row and row[0] == "head")
    assert heads == [
        ["damaged; `head2toe verify` says how", ""],
        [f"on selection {selection[:8]}, unit_norm", "train 100.0 %, test 75.6 %"],
    ]


@pytest.mark.slow
def test_many_results_are_counted_and_not_read(store, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep in range(1, LISTED + 2):
        add_selection(store, keep)
    monkeypatch.setattr("store.html_summary.describe_results", lambda _: pytest.fail("results were read"))
    shown = page(store)
    assert f"results: {LISTED + 1} selections" in shown.text
    assert f"head2toe show {store.uri} lists them" in shown.text


def test_an_incomplete_store_says_which_blocks_are_missing(tmp_path: Path) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    writer.write_block("train", 1, {name: v[:, 30:60] for name, v in values["train"].items()})
    opened = open_store(writer.uri, allow_incomplete=True)
    assert page(opened).row("state") == [
        "incomplete, blocks missing in train: 0, 2 of 3; test: 0–1 of 2; the same extraction again writes only these"
    ]
    write_all(writer, values)
    assert page(opened).row("state") == ["complete"]


def test_joined_stores_and_views_of_layers_show_themselves(tmp_path: Path, store) -> None:
    from pipeline.joined_store import join_stores
    from pipeline.layer_view import LayerView

    values, manifests = synthetic()
    writer = create_store(tmp_path / "other.zarr", {"stem": 7}, SPLITS, manifests=manifests, class_names=CLASSES)
    write_all(writer, {split: {"stem": layers["stem"]} for split, layers in values.items()})
    joined = page(join_stores([store, open_store(writer.uri)]))
    assert (joined.row("2:stem")[0], joined.row("state")) == ("7", ["complete"])
    shown = page(LayerView(store, ["stem"]))
    assert shown.row("activations") == ["7 features, float16, 1.8 kB"]
    assert [row[0] for row in shown.rows if row and row[0] in LAYERS] == ["stem"]


def test_a_line_says_what_matters(store) -> None:
    assert repr(store) == (
        "<ActivationStore imported (none) on synthetic: 4 layers, 127 features, train 90, test 37 samples, float16, "
        f"32.3 kB at {store.uri}>"
    )


def test_the_tree_names_samples_and_classes(store) -> None:
    tree = store.xarray()
    assert tree.attrs["class_names"] == list(CLASSES)
    train = tree["train"]
    assert train["blocks.0"].dims == ("blocks.0_feature", "sample")
    np.testing.assert_array_equal(train["label"].values, store.labels("train"))
    chosen = train["stem"].isel(stem_feature=3).values
    np.testing.assert_array_equal(chosen, store.columns("train", [3])[:, 0])


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (12_300_000, "12.3 MB"), (5e15, "5,000.0 TB")])
def test_sizes_are_rounded_to_their_unit(size: float, text: str) -> None:
    assert human_bytes(size) == text
