"""Stores are found by short names, listed whatever state they are in, and removed only if they are stores."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from store import ActivationStore, create_store, open_store
from store.aliases import list_aliases, remove_alias, resolve_store, set_alias, split_uri
from store.catalogue import count_results, describe_results, list_stores
from store.errors import ConflictError, DamagedStoreError, InvalidInputError, StoreNotFoundError
from store.removal import remove_store
from store.results import write_result


def make(root: str | Path, seed: int = 0, *, complete: bool = True) -> ActivationStore:
    """Return a store under the root, named by its fingerprint."""
    values, manifests = synthetic(seed)
    shape = {"manifests": manifests, "class_names": CLASSES, "block_samples": 32}
    scratch = create_store("memory://scratch/s.zarr", LAYERS, SPLITS, **shape)
    fingerprint = scratch.store.fingerprint
    scratch.store.objects.remove()
    writer = create_store(f"{root}/{fingerprint}.zarr", LAYERS, SPLITS, **shape)
    if complete:
        write_all(writer, values)
    return open_store(writer.uri, allow_incomplete=True)


def with_results(store: ActivationStore, selections: int = 0, heads: int = 0) -> None:
    for kind, number in (("selections", selections), ("heads", heads)):
        for n in range(number):
            write_result(store, kind, {"n": n}, {"a": (np.ones(3), ("x",))}, {"seconds": 1.0})


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "stores") if request.param == "local" else f"memory://catalogue/{tmp_path.name}"


# -------------------------------------------------------------------- names


def test_a_store_is_found_by_its_place_its_alias_and_the_beginning_of_its_fingerprint(root) -> None:
    one, other = make(root, 0), make(root, 1)
    set_alias(root, "digits", one.uri)
    for meant in (one.uri, f"{root}/digits", f"{root}/{one.fingerprint}", f"{root}/{one.fingerprint[:6]}"):
        assert open_store(resolve_store(meant)).fingerprint == one.fingerprint
    assert open_store(resolve_store(f"{root}/{other.fingerprint[:6]}/")).fingerprint == other.fingerprint


def test_a_store_of_the_exact_name_wins_over_an_alias(root) -> None:
    set_alias(root, "mine", make(root, 1).uri)
    create_store(f"{root}/mine", {"a": 1}, {"train": 1})
    assert resolve_store(f"{root}/mine") == f"{root}/mine"


def test_an_alias_that_reads_like_a_fingerprint_is_refused(root) -> None:
    """Otherwise ``remove ROOT/<beginning>`` could remove another store than the one listed under it."""
    one, other = make(root, 0), make(root, 1)
    with pytest.raises(InvalidInputError, match="reads like the beginning of a fingerprint"):
        set_alias(root, one.fingerprint[:6], other.uri)
    assert resolve_store(f"{root}/{one.fingerprint[:6]}") == one.uri


def test_a_name_that_means_nothing_is_answered_with_near_matches(root) -> None:
    set_alias(root, "digits", make(root).uri)
    with pytest.raises(StoreNotFoundError, match=r"no activation store at .*did you mean 'digits'\?"):
        resolve_store(f"{root}/digit")
    for nothing in ("nowhere", "no/such/place", "", "/", f"{root}/..", "memory://"):
        with pytest.raises(StoreNotFoundError, match="no activation store at"):
            resolve_store(nothing)


def test_fewer_than_four_digits_and_an_ambiguous_beginning_are_refused(tmp_path) -> None:
    store = make(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no activation store"):
        resolve_store(f"{tmp_path}/{store.fingerprint[:3]}")
    shutil.copytree(store.uri, tmp_path / f"{store.fingerprint[:10]}{'0' * 10}.zarr")
    with pytest.raises(StoreNotFoundError, match="ambiguous: 2 fingerprints begin so; give more digits"):
        resolve_store(f"{tmp_path}/{store.fingerprint[:8]}")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("a/b.zarr", ("a", "b.zarr")),
        ("b.zarr/", (".", "b.zarr")),
        ("/b", ("/", "b")),
        ("s3://bucket/x/y", ("s3://bucket/x", "y")),
        ("s3://bucket", (None, "bucket")),
        ("memory://stores/x/", ("memory://stores", "x")),
    ],
)
def test_a_uri_is_divided_into_root_and_name(uri, parts) -> None:
    assert split_uri(uri) == parts


def test_a_name_in_the_current_folder_is_found(tmp_path, monkeypatch) -> None:
    store = make(tmp_path)
    set_alias(tmp_path, "digits", store.uri)
    monkeypatch.chdir(tmp_path)
    assert open_store(resolve_store("digits")).fingerprint == store.fingerprint
    monkeypatch.chdir(store.uri)
    assert resolve_store(".") == "."


# -------------------------------------------------------------------- aliases


def test_an_alias_is_one_small_object_that_may_be_set_again_but_moves_only_by_force(root) -> None:
    one, other = make(root, 0), make(root, 1)
    made = set_alias(root, "digits", one.fingerprint[:8])
    assert (made.fingerprint, made.store) == (one.fingerprint, f"{one.fingerprint}.zarr")
    assert set_alias(root, "digits", one.uri) == made
    with pytest.raises(ConflictError, match=rf"names {one.fingerprint}.zarr already; --force moves it"):
        set_alias(root, "digits", other.uri)
    assert list_aliases(root) == {"digits": made}
    assert set_alias(root, "digits", other.uri, force=True).fingerprint == other.fingerprint
    remove_alias(root, "digits")
    assert list_aliases(root) == {}
    assert len(list_stores(root)) == 2
    with pytest.raises(StoreNotFoundError, match="has no alias 'digits'"):
        remove_alias(root, "digits")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", ".hidden", "-x", "a b", "x" * 101, "a\n", "ü", "a.zarr"]
)
def test_names_that_cannot_be_an_alias_are_refused_before_anything_is_written(tmp_path, name) -> None:
    store = make(tmp_path)
    for call in (lambda: set_alias(tmp_path, name, store.uri), lambda: remove_alias(tmp_path, name)):
        with pytest.raises(InvalidInputError, match="cannot be used"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == [Path(store.uri).name]


def test_an_alias_names_a_store_of_its_own_root_that_is_there(tmp_path) -> None:
    inside, outside = make(tmp_path / "a"), make(tmp_path / "b", 1)
    with pytest.raises(InvalidInputError, match="does not lie in root"):
        set_alias(tmp_path / "a", "x", outside.uri)
    with pytest.raises(StoreNotFoundError):
        set_alias(tmp_path / "a", "x", "nothing")
    set_alias(tmp_path / "a", "x", os.path.relpath(inside.uri))
    shutil.rmtree(inside.uri)
    with pytest.raises(DamagedStoreError, match=r"alias 'x' names store .*, which is not there"):
        resolve_store(tmp_path / "a/x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b'{"name":"other","fingerprint":"f","store":"s","created":"c"}',
        b'{"name":"x","fingerprint":"f","store":"../../etc","created":"c"}',
        b'{"name":"x","fingerprint":"f","store":"..","created":"c"}',
        b"\xff",
    ],
)
def test_a_damaged_or_hostile_alias_is_never_followed_and_does_not_hide_the_list(tmp_path, raw) -> None:
    store = make(tmp_path)
    (tmp_path / "aliases").mkdir()
    (tmp_path / "aliases/x.json").write_bytes(raw)
    with pytest.raises(DamagedStoreError, match=r"alias 'x' .*is damaged"):
        resolve_store(tmp_path / "x")
    assert [row["aliases"] for row in list_stores(tmp_path)] == [[]]
    set_alias(tmp_path, "x", store.uri, force=True)
    assert resolve_store(tmp_path / "x") == store.uri


# -------------------------------------------------------------------- listing


def test_stores_in_any_state_are_rows_and_never_a_crash(tmp_path) -> None:
    good, open_end = make(tmp_path, 0), make(tmp_path, 1, complete=False)
    set_alias(tmp_path, "good", good.uri)
    reasons = {"text": "damaged", "list": "damaged", "version": "unreadable", "other": "no store", "folder": "no store"}
    for name in reasons:
        shutil.copytree(good.uri, tmp_path / f"{name}.zarr")
    document = json.loads((tmp_path / "version.zarr/zarr.json").read_text())
    document["attributes"]["format_version"] = 9
    (tmp_path / "text.zarr/zarr.json").write_bytes(b"\xff{")
    (tmp_path / "list.zarr/zarr.json").write_text("[1]")
    (tmp_path / "version.zarr/zarr.json").write_text(json.dumps(document))
    shutil.rmtree(tmp_path / "other.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    (tmp_path / "folder.zarr/zarr.json").unlink()
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "notes.txt").write_text("not listed")
    rows = {Path(row["uri"]).stem: row for row in list_stores(tmp_path)}
    assert rows[good.fingerprint]["state"] == "complete"
    assert rows[good.fingerprint]["aliases"] == ["good"]
    assert rows[open_end.fingerprint]["state"] == "incomplete"
    for name, state in (reasons | {"file": "no store"}).items():
        assert rows[name]["state"] == state, name
        assert rows[name]["reason"]
    assert len(rows) == 2 + len(reasons) + 1


def test_a_root_that_is_not_there_or_is_a_store_itself_is_explained(root, tmp_path) -> None:
    with pytest.raises(StoreNotFoundError, match="does not exist or is empty"):
        list_stores(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotFoundError, match="does not exist or is empty"):
        list_stores(tmp_path / "file")
    store = make(root)
    with pytest.raises(StoreNotFoundError, match="is a store itself"):
        list_stores(store.uri)
    assert list_aliases(f"{root}/nowhere") == {}


def test_results_are_described_without_their_numbers_and_a_damaged_one_says_so(tmp_path) -> None:
    store = make(tmp_path)
    with_results(store, selections=2, heads=1)
    broken = sorted((Path(store.uri) / "results/selections").iterdir())[0]
    (broken / "zarr.json").write_text("{")
    for chunk in Path(store.uri).glob("results/heads/*/a/c/0"):
        chunk.unlink()
    found = describe_results(store)
    assert [set(r) for r in found["selections"]] == [
        {"digest", "damaged"},
        {"digest", "inputs", "facts", "created"},
    ]
    assert found["heads"][0]["facts"] == {"seconds": 1.0}
    assert found["statistics"] == []


def test_points_are_counted_and_not_described(root) -> None:
    store = make(root)
    for n in range(3):
        write_result(store, "points", {"n": n}, {}, {"hits": n})
    write_result(store, "protocols", {"method": "Linear"}, {"hits": (np.ones(3, bool), ("sample",))}, {"accuracy": 1.0})
    assert count_results(store.objects, "points") == 3
    assert count_results(store.objects, "heads") == 0
    found = describe_results(store)
    assert "points" not in found
    assert [r["facts"] for r in found["protocols"]] == [{"accuracy": 1.0}]


# -------------------------------------------------------------------- removing


def test_removing_takes_the_whole_store_and_the_aliases_that_name_it_and_nothing_else(root) -> None:
    one, other = make(root, 0), make(root, 1)
    for name, store in (("a", one), ("b", one), ("c", other)):
        set_alias(root, name, store.uri)
    removed = remove_store(one.uri)
    assert (removed.fingerprint, removed.selections, removed.heads) == (one.fingerprint, 0, 0)
    assert removed.aliases == ("a", "b")
    assert [row["uri"] for row in list_stores(root)] == [other.uri]
    assert set(list_aliases(root)) == {"c"}
    with pytest.raises(StoreNotFoundError):
        resolve_store(one.uri)


def test_a_store_with_selections_or_heads_is_removed_only_by_force(root) -> None:
    store = make(root)
    with_results(store, selections=2, heads=1)
    write_result(store, "statistics", {"split": "train"}, {}, {})
    with pytest.raises(ConflictError, match="has 2 selections and 1 head; nothing was removed: --force"):
        remove_store(store.uri)
    assert open_store(store.uri).fingerprint == store.fingerprint
    removed = remove_store(store.uri, force=True)
    assert (removed.selections, removed.heads) == (2, 1)
    assert not store.objects.names("")


@pytest.mark.parametrize(("kind", "counted"), [("protocols", "1 protocol"), ("points", "1 point")])
def test_what_folds_computed_keeps_a_store(tmp_path, kind, counted) -> None:
    store = make(tmp_path)
    write_result(store, kind, {"method": "Linear"}, {}, {})
    with pytest.raises(ConflictError, match=f"has {counted}; nothing was removed"):
        remove_store(store.uri)
    assert remove_store(store.uri, force=True).protocols == (kind == "protocols")
    assert not Path(store.uri).exists()


def test_statistics_alone_do_not_keep_a_store(tmp_path) -> None:
    store = make(tmp_path)
    write_result(store, "statistics", {"split": "train"}, {}, {})
    remove_store(store.uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "folder", "file", "zarr", "text", "json", "number", "root"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_an_activation_store_is_never_removed(tmp_path, what, force) -> None:
    place = tmp_path / "x"
    if what == "file":
        place.write_text("mine")
    elif what == "zarr":
        zarr.create_group(place, attributes={"format": "something else"})
    elif what == "root":
        make(place)
    elif what != "nothing":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
        content = {"text": "{ zarr", "json": '{"attributes": {}}', "number": "3"}
        if what in content:
            (place / "zarr.json").write_text(content[what])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreNotFoundError, match="nothing was removed"):
        remove_store(place, force=force)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_whose_metadata_is_damaged_can_be_removed_since_its_records_prove_what_it_is(tmp_path) -> None:
    store = make(tmp_path)
    (Path(store.uri) / "zarr.json").write_bytes(b"\x00" * 100)
    assert remove_store(store.uri).fingerprint is None
    assert list(tmp_path.iterdir()) == []


def test_what_speaks_against_a_removal_is_said_and_force_overrides_it(tmp_path) -> None:
    store = make(tmp_path)
    root = Path(store.uri)
    (root / "claims/train/000000").mkdir(parents=True)
    (root / "claims/train/000000/000000.json").write_text("{}")
    with pytest.raises(ConflictError, match="may be being written, 1 block of it claimed"):
        remove_store(store.uri)
    shutil.rmtree(root / "claims")
    (root / "photos").mkdir()
    with pytest.raises(ConflictError, match="holds 'photos', which is no part of it"):
        remove_store(store.uri)
    document = json.loads((root / "zarr.json").read_text())
    document["attributes"]["format_version"] = 2
    (root / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(ConflictError, match="format version 2"):
        remove_store(store.uri)
    assert (root / "photos").is_dir()
    remove_store(store.uri, force=True)
    assert not root.exists()


def test_a_link_to_a_store_is_not_followed(tmp_path) -> None:
    store = make(tmp_path / "real")
    (tmp_path / "link.zarr").symlink_to(store.uri)
    with pytest.raises(InvalidInputError, match="symbolic link"):
        remove_store(tmp_path / "link.zarr", force=True)
    assert open_store(store.uri).missing() == {}


@pytest.mark.parametrize("survives", range(1, 8))
def test_a_removal_interrupted_anywhere_leaves_no_store_and_is_finished_by_the_same_call(
    tmp_path, monkeypatch, survives
) -> None:
    """The process dies at the n-th removal of an object: what is left is not opened, is listed, and can be removed."""
    store = make(tmp_path)
    with_results(store, selections=1)
    set_alias(tmp_path, "digits", store.uri)
    kind, calls = type(store.objects), []
    whole = kind.remove

    def dying(self, prefix: str = "") -> None:
        calls.append(prefix)
        if len(calls) == survives:
            raise KeyboardInterrupt
        whole(self, prefix)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "remove", dying)
        with pytest.raises(KeyboardInterrupt):
            remove_store(store.uri, force=True)
    assert calls[0] == "zarr.json"
    if survives == 1:
        assert open_store(store.uri).missing() == {}
    else:
        with pytest.raises(StoreNotFoundError):
            open_store(store.uri)
        (row,) = list_stores(tmp_path)
        assert row["state"] == "half removed"
        assert resolve_store(store.uri) == store.uri
    removed = remove_store(store.uri, force=survives == 1)
    assert removed.fingerprint == store.fingerprint
    assert not Path(store.uri).exists()
    assert list_aliases(tmp_path) == {}


def test_a_full_disk_does_not_keep_anyone_from_making_room(tmp_path, monkeypatch) -> None:
    store = make(tmp_path)

    def full(self, key: str, parts: object) -> None:
        raise InvalidInputError("no space") from OSError(28, "no space left on device")

    monkeypatch.setattr(type(store.objects), "write", full)
    remove_store(store.uri)
    assert list(tmp_path.iterdir()) == []
