"""Memory, clusters and several stores from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from store import ActivationStore, create_store
from store.spec import Manifest


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture
def twin(store: ActivationStore, tmp_path) -> str:
    """Another layer of the same samples, in reverse order."""
    manifests, values = {}, {}
    rng = np.random.default_rng(5)
    for split in store.splits:
        labels = store.labels(split)[::-1]
        manifests[split] = Manifest(store.ids(split)[::-1], labels, [f"other {i}" for i in store.ids(split)])
        values[split] = (2 * (labels == 2) + rng.standard_normal((11, len(labels)))).astype(np.float16)
    sizes = {split: len(v.T) for split, v in values.items()}
    writer = create_store(
        tmp_path / "twin.zarr", {"tail": 11}, sizes, manifests=manifests, class_names=store.class_names, provenance={}
    )
    for split, blocks in writer.missing().items():
        for block in blocks:
            part = slice(*writer.store.splits[split].block_range(block))
            writer.write_block(split, block, {"tail": values[split][:, part]})
    return writer.uri


def test_two_stores_are_selected_from_and_refitted_together(store, twin) -> None:
    out, err = run("select", store.uri, "--join", twin, "--keep", "12", "--memory", "1GiB", "--json")
    assert "memory: " in err
    assert "projected of 1.00 GiB allowed" in err
    chosen = json.loads(out)
    assert chosen["of"] == 127 + 11
    assert chosen["certificate"]["certified"] is True
    assert 0 < chosen["certificate"]["projected_bytes"] < chosen["certificate"]["process_peak_bytes"]
    assert chosen["per_layer"]["2:tail"] > 0
    head = json.loads(run("refit", store.uri, "--join", twin, "--selection", chosen["selection"], "--json")[0])
    assert head["accuracy"]["test"] > 0.6
    assert json.loads(run("refit", store.uri, "--join", twin, "--json")[0])["head"] == head["head"]
    _, err = run("refit", store.uri, "--selection", chosen["selection"], code=2)
    assert "was made on the joined stores" in err
    assert "Traceback" not in err
    assert "has no selection of its own yet" in run("refit", store.uri, code=2)[1]
    _, err = run("refit", twin, "--join", store.uri, code=2)
    assert f"`head2toe select {twin} --join {store.uri}` makes one" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "1kB"), "memory=1000 bytes is too small"),
        (("--memory", "lots"), "memory='lots' is not a size"),
        (("--dask-address", "fax://here"), "no Dask scheduler answers at 'fax://here'"),
        (("--join", "no/such/place"), "no activation store at 'no/such/place'"),
    ],
)
def test_what_cannot_work_is_one_sentence(store, options, message) -> None:
    out, err = run("select", store.uri, *options, code=2)
    assert message in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err
