"""`list`, `show`, `verify`, `remove`, `alias` and `import` from the outside."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic
from typer.testing import CliRunner

from flows.catalogue_commands import _age
from flows.cli import app
from store import ActivationStore, open_store
from store.results import write_result

RUNNER = CliRunner()


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = RUNNER.invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    if code:
        assert result.stderr.splitlines()[-1].startswith("error: ")
    return result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Activations made elsewhere."""
    values, manifests = synthetic()
    arrays = {f"{s}/{name}": values[s][name].T for s in SPLITS for name in LAYERS}
    labels = {f"{s}/labels": manifests[s].labels for s in SPLITS}
    np.savez(tmp_path / "made.npz", **arrays, **labels)
    return tmp_path / "made.npz"


@pytest.fixture
def root(tmp_path: Path, file: Path) -> Path:
    """A root with one store that has the alias `digits`."""
    run("import", file, "--root", tmp_path / "root", "--name", "digits", "--class-names", ",".join(CLASSES))
    return tmp_path / "root"


@pytest.fixture
def imported(root: Path) -> ActivationStore:
    """The store under the root."""
    return open_store(next(root.glob("*.zarr")))


def with_lineage(store: ActivationStore) -> tuple[str, str, str]:
    """Write a selection with a head, and a head without; returns their digests."""
    inputs = {"ranking": {"normalization": "standardize", "scorer": "group_lasso"}, "keep": 1234}
    write_result(store, "statistics", {"split": "train"}, {}, {"constant_features": 2})
    selection = write_result(store, "selections", inputs, {}, {"support": 7}).digest
    facts = {"accuracy": {"train": 1.0, "test": 0.875}}
    above = write_result(store, "heads", {"features": {"selection": selection}}, {}, facts).digest
    alone = write_result(store, "heads", {"features": {"layer": "pre_logits"}}, {}, facts).digest
    return selection, above, alone


# -------------------------------------------------------------------- import


def test_import_prints_where_the_store_is_and_a_second_time_writes_nothing(file, tmp_path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat, the\n")
    arguments = ("import", file, "--root", tmp_path, "--class-names", names, "--dtype", "float32", "--name", "mine")
    out, err = run(*arguments)
    store = open_store(out.strip())
    assert store.class_names == ("ant", "bee", "cat, the")
    assert store.dtype == np.float32
    assert "imported 127 samples; 0 were" in err
    again = json.loads(run(*arguments, "--json")[0])
    assert (again["imported"], again["reused"], again["alias"]) == (0, 127, "mine")
    assert json.loads(run("show", tmp_path / "mine", "--json")[0])["uri"] == again["uri"]


def test_import_explains_what_it_cannot_use(file, tmp_path) -> None:
    root = tmp_path / "r"
    assert "does not exist" in run("import", "no.npz", "--root", root, code=2)[1]
    (tmp_path / "empty.npz").write_bytes(b"")
    assert "is empty" in run("import", tmp_path / "empty.npz", "--root", root, code=2)[1]
    assert "'../x' cannot be used" in run("import", file, "--root", root, "--name", "../x", code=2)[1]
    assert "there are 2 class names" in run("import", file, "--root", root, "--class-names", "a,b", code=2)[1]
    assert not root.exists()
    run("import", file, "--root", file / "r", code=2)


def test_the_linear_baseline_of_an_imported_store_uses_the_layer_that_was_named(file, tmp_path) -> None:
    uri = run("import", file, "--root", tmp_path, "--embedding", "pre_logits")[0].strip()
    name = Path(uri).stem[:8]
    head = json.loads(run("refit", tmp_path / name, "--linear", "--max-iterations", "5", "--json")[0])
    assert head["features"] == LAYERS["pre_logits"]
    selected = json.loads(run("select", tmp_path / name, "--keep", "3", "--json")[0])
    assert selected["kept"] == 3


# -------------------------------------------------------------------- list


def test_list_is_a_table_of_stores_with_damaged_ones_named_and_explained(root, imported) -> None:
    broken = root / "broken.zarr"
    shutil.copytree(imported.uri, broken)
    (broken / "zarr.json").write_text("{")
    out, _ = run("list", root)
    for cell in ("alias", "digits", imported.fingerprint[:8], "imported", "127", "now", "complete", "damaged"):
        assert cell in out
    assert "broken: the metadata of" in out
    rows = {row["state"]: row for row in json.loads(run("list", root, "--json")[0])}
    assert rows["complete"]["aliases"] == ["digits"]
    assert rows["complete"]["fingerprint"] == imported.fingerprint
    assert "damaged" in rows["damaged"]["reason"]


def test_list_of_no_root_and_of_a_root_without_stores(tmp_path) -> None:
    assert "does not exist or is empty" in run("list", tmp_path / "nowhere", code=2)[1]
    (tmp_path / "notes.txt").write_text("")
    assert "no stores under" in run("list", tmp_path)[1]
    assert json.loads(run("list", tmp_path, "--json")[0]) == []


@pytest.mark.parametrize(
    ("created", "age"),
    [
        ("2026-01-02T00:00:00+00:00", "now"),
        ("2026-01-01T23:30:00+00:00", "30 min"),
        ("2026-01-01T21:00:30+00:00", "2 h"),
        ("2025-12-24T00:00:00+00:00", "9 d"),
        ("2027-01-01T00:00:00+00:00", "now"),
        ("2026-01-01", ""),
        ("yesterday", ""),
        (None, ""),
    ],
)
def test_the_age_of_a_store_is_one_number_and_a_unit(created, age) -> None:
    assert _age(created, datetime(2026, 1, 2, tzinfo=UTC)) == age


# -------------------------------------------------------------------- show


def test_show_draws_what_was_computed_from_what(root, imported) -> None:
    selection, above, alone = with_lineage(imported)
    out, _ = run("show", root / "digits")
    lines = [line.rstrip() for line in out.splitlines()]
    trunk = next(i for i, line in enumerate(lines) if line == f"store {imported.fingerprint}")
    place = {name: next(i for i, line in enumerate(lines) if name in line) for name in (selection, above, alone)}
    assert trunk < place[selection] < place[above] < place[alone]
    depth = {name: lines[i].index("── ") for name, i in place.items()}
    assert depth[above] > depth[selection]
    assert depth[alone] < depth[above]
    for text in ("1,234 features kept", "test 87.5 %", "statistics", "2 constant features"):
        assert text in out
    shown = json.loads(run("show", root / "digits", "--json")[0])
    assert shown["state"] == "complete"
    assert shown["aliases"] == ["digits"]
    assert [s["digest"] for s in shown["selections"]] == [selection]
    assert {h["digest"] for h in shown["heads"]} == {above, alone}
    assert shown["statistics"][0]["constant_features"] == 2


def test_show_lists_protocols_and_counts_their_points(root, imported) -> None:
    facts = {
        "settings": {},
        "validation_accuracy": 0.9,
        "accuracy": 0.875,
        "points": [{}, {}],
        "seconds": {},
        "fit": {},
    }
    protocol = write_result(imported, "protocols", {"method": "Linear", "folds": 5}, {}, facts).digest
    for fold in range(10):
        write_result(imported, "points", {"fold": fold}, {}, {"hits": fold})
    drawn = " ".join(run("show", root / "digits")[0].replace("│", " ").split())
    assert f"protocol {protocol}: Linear, accuracy validation 90.0 %, test 87.5 %, best of 2 settings on 5" in drawn
    assert "10 points of protocols" in drawn
    shown = json.loads(run("show", root / "digits", "--json")[0])
    assert shown["points"] == 10
    assert [p["accuracy"] for p in shown["protocols"]] == [0.875]


def test_show_names_the_parent_and_damaged_results(root, imported, monkeypatch) -> None:
    selection, *_ = with_lineage(imported)
    (Path(imported.uri) / f"results/selections/{selection}/zarr.json").write_text("{")
    original = ActivationStore.__init__

    def grown(self, *arguments: object) -> None:
        original(self, *arguments)
        self.provenance["parent"] = "0123456789abcdef0123"

    monkeypatch.setattr(ActivationStore, "__init__", grown)
    out, _ = run("show", root / "digits")
    lines = out.splitlines()
    parent = lines.index(next(line for line in lines if line.startswith("store 0123456789abcdef0123 (parent)")))
    assert f"store {imported.fingerprint}" in lines[parent + 1]
    assert f"selection {selection}: damaged" in out
    assert "damaged" in json.loads(run("show", root / "digits", "--json")[0])["selections"][0]


def test_a_name_that_means_no_store_is_answered_with_near_ones_by_every_command(root) -> None:
    for command in (["show"], ["verify"], ["remove"], ["select"], ["refit", "--linear"]):
        assert "did you mean 'digits'?" in run(*command, root / "digit", code=2)[1]


# -------------------------------------------------------------------- verify


def test_verify_names_damage_repair_marks_it_and_the_same_import_mends_it(root, imported, file) -> None:
    assert "complete and undamaged" in run("verify", root / "digits")[1]
    assert json.loads(run("verify", root / "digits", "--json")[0]) == {
        "uri": imported.uri,
        "problems": [],
        "marked": [],
    }
    (Path(imported.uri) / "train/layers/stem/c/0/0").unlink()
    out, err = run("verify", root / "digits", code=2)
    assert "block 0 of split 'train' is damaged: 'train/layers/stem/c/0/0' is missing" in out
    assert "1 problem found" in err
    out, err = run("verify", root / "digits", "--repair", code=2)
    assert "marked 1 part for rewriting: train/0; run the same extraction or import again" in err
    assert "blocks missing in train: 0 of 1" in run("select", root / "digits", code=2)[1]
    assert "imported 90 samples; 37 were" in run("import", file, "--root", root, "--class-names", ",".join(CLASSES))[1]
    assert "complete and undamaged" in run("verify", root / "digits")[1]


def test_repair_says_what_it_cannot_mend_and_leaves_it_alone(root, imported) -> None:
    labels = Path(imported.uri) / "train/labels/c/0"
    labels.write_bytes(labels.read_bytes()[::-1])
    found = json.loads(run("verify", root / "digits", "--repair", "--json", code=2)[0])
    assert [(p["what"], p["repairable"]) for p in found["problems"]] == [("labels", False)]
    assert found["marked"] == []
    out, err = run("verify", root / "digits", "--repair", code=2)
    assert "--repair cannot mend this" in out
    assert "1 of which --repair cannot mend" in err
    (Path(imported.uri) / "zarr.json").write_text("{}")
    assert "--repair cannot mend this: the metadata" in run("verify", imported.uri, "--repair", code=2)[1]
    out, _ = run("verify", imported.uri, "--json", code=2)
    assert json.loads(out)["problems"][0]["what"] == "metadata"


# -------------------------------------------------------------------- remove and alias


def test_remove_refuses_a_store_with_results_unless_forced(root, imported) -> None:
    with_lineage(imported)
    assert "has 1 selection and 2 heads; nothing was removed" in run("remove", root / "digits", code=2)[1]
    removed = json.loads(run("remove", root / "digits", "--force", "--json")[0])
    assert (removed["selections"], removed["heads"], removed["aliases"]) == (1, 2, ["digits"])
    assert not Path(imported.uri).exists()
    assert not list((root / "aliases").iterdir())


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_remove_refuses_what_is_not_a_store(tmp_path, force) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    for name in ("thesis", "nothing", "."):
        assert "no activation store" in run("remove", tmp_path / name, *force, code=2)[1]
    assert (tmp_path / "thesis/chapter1.tex").exists()


def test_alias_gives_moves_and_takes_names(root, imported, file) -> None:
    other = run("import", file, "--root", root, "--dtype", "float32")[0].strip()
    assert "names store" in run("alias", root, "nice", imported.fingerprint[:6])[1]
    assert "--force moves it" in run("alias", root, "nice", other, code=2)[1]
    made = json.loads(run("alias", root, "nice", Path(other).stem[:6], "--force", "--json")[0])
    assert made["fingerprint"] == Path(other).stem
    assert "is gone" in run("alias", root, "nice", "--delete")[1]
    assert "no alias 'nice'" in run("alias", root, "nice", "--delete", code=2)[1]
    assert "give either the STORE" in run("alias", root, "nice", code=2)[1]
    assert "'../x' cannot be used" in run("alias", root, "../x", "digits", code=2)[1]
    assert "no activation store" in run("alias", root.parent / "nowhere", "x", "digits", code=2)[1]
    assert not (root.parent / "nowhere").exists()
