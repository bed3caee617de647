"""Extraction writes what the backbone computes, once, and survives being stopped anywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pipeline.backbones import load_backbone
from pipeline.datasets import load_data
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.planning import plan_extraction
from pipeline.verification import verify_store
from store import open_store
from store.errors import InterruptedExtractionError, InvalidInputError, NotFiniteError

SMALL = ExtractionParameters(
    backbone="test_resnet", weights="random:0", data="digits", image_size=32, batch_size=50, block_size=200
)


def contents(uri: str) -> dict[str, bytes]:
    """Return every chunk of a store by its key."""
    root = Path(uri)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("c/*/*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """An undisturbed extraction."""
    done = extract(SMALL, str(tmp_path_factory.mktemp("whole")))
    assert done.extracted == 1797
    return done.uri


def test_the_embedding_and_logits_are_the_backbones_own(whole) -> None:
    store = open_store(whole)
    backbone = load_backbone("test_resnet", "random:0", input_size=32)
    images = load_data("digits").splits["train"]
    batch = torch.stack([backbone.transform(images.image(i)) for i in range(50)])
    with torch.inference_mode():
        features = backbone.model.forward_features(batch)
        embedding = backbone.model.forward_head(features, pre_logits=True)
        logits = backbone.model(batch)
    for name, expected in ((store.embedding, embedding), ("logits", logits)):
        got = store.columns("train", store.layer_indices(name), slice(0, 50))
        np.testing.assert_allclose(got, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_the_plan_predicts_layers_and_bytes(whole, tmp_path) -> None:
    plan, store = plan_extraction(SMALL, str(tmp_path)), open_store(whole)
    assert plan.n_features == store.n_features
    assert plan.n_bytes == store.n_bytes
    assert [layer.name for layer in plan.layers] == list(store.layers)
    assert Path(plan.uri).name == Path(whole).name


def test_labels_and_ids_are_those_of_the_data(whole) -> None:
    store, data = open_store(whole), load_data("digits")
    for split, images in data.splits.items():
        assert store.ids(split) == list(images.ids)
        np.testing.assert_array_equal(store.labels(split), images.labels)


def test_a_second_extraction_extracts_nothing_and_knows_what_it_saved(whole) -> None:
    before = contents(whole)
    again = extract(SMALL, str(Path(whole).parent))
    assert (again.extracted, again.reused, again.uri) == (0, 1797, whole)
    assert again.seconds_saved > 0
    assert contents(whole) == before


@pytest.mark.slow
def test_other_batch_size_or_blocks_are_the_same_extraction_but_other_weights_are_not(tmp_path) -> None:
    def uri(**changes: object) -> str:
        return plan_extraction(SMALL.model_copy(update=changes), str(tmp_path)).uri

    assert uri() == uri(batch_size=7, block_size=9, device="cpu")
    assert len({uri(), uri(weights="random:1"), uri(image_size=64), uri(target_sizes=(8,)), uri(taps=("act1",))}) == 5


@pytest.mark.slow
def test_killed_extraction_resumes_to_identical_bytes(whole, tmp_path) -> None:
    """SIGKILL at growing delays after the first block; each run resumes what the one before left."""
    code = (
        "import sys; from pipeline.extraction import extract;"
        "from pipeline.extraction_parameters import ExtractionParameters as P;"
        f"extract(P.model_validate_json({SMALL.model_dump_json()!r}), sys.argv[1],"
        "lambda stage, done, total: print(stage, done, flush=True))"
    )
    uri, committed = tmp_path / Path(whole).name, []
    for delay in (0.0, 0.02, 0.05):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("extracting"):
                break
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        committed.append(len(list(uri.glob("blocks/*/*.json"))))
    assert committed == sorted(committed)
    assert committed[0] >= 1
    done = extract(SMALL, str(tmp_path))
    assert 0 < done.extracted < 1797
    assert contents(done.uri) == contents(whole)
    assert verify_store(open_store(done.uri)) == []


@pytest.mark.slow
def test_interrupted_extraction_keeps_committed_blocks_and_says_how_to_resume(tmp_path, whole) -> None:
    def stop_after_two_blocks(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting") and done >= 400:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedExtractionError, match=r"of 9 blocks are committed in .* and stay"):
        extract(SMALL, str(tmp_path), stop_after_two_blocks)
    done = extract(SMALL, str(tmp_path))
    assert 0 < done.reused < 1797
    assert contents(done.uri) == contents(whole)


@pytest.mark.slow
def test_a_resumed_store_keeps_the_batch_size_it_was_begun_with(tmp_path, whole) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting"):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedExtractionError):
        extract(SMALL, str(tmp_path), stop)
    done = extract(SMALL.model_copy(update={"batch_size": 64}), str(tmp_path))
    assert contents(done.uri) == contents(whole)


@pytest.mark.slow
def test_overflow_names_the_layer_and_offers_float32(tmp_path) -> None:
    model = timm.create_model("test_resnet")
    with torch.no_grad():
        model.get_classifier().weight.mul_(1e7)
    torch.save(model.state_dict(), tmp_path / "large.pth")
    large = SMALL.model_copy(update={"weights": str(tmp_path / "large.pth")})
    with pytest.raises(NotFiniteError, match=r"overflow float16 in layer 'logits'.*--dtype float32"):
        extract(large, str(tmp_path / "root"))
    done = extract(large.model_copy(update={"dtype": "float32"}), str(tmp_path / "root"))
    assert open_store(done.uri).dtype == np.float32


def test_a_store_without_an_embedding_has_no_linear_baseline_and_says_so(tmp_path) -> None:
    done = extract(SMALL.model_copy(update={"taps": ("act1",)}), str(tmp_path))
    with pytest.raises(InvalidInputError, match="no Linear baseline"):
        _ = open_store(done.uri).embedding


def test_roots_that_cannot_be_written_are_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="it is a file"):
        extract(SMALL, str(tmp_path / "file"))


def test_an_unusable_device_is_explained(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="device 'nonsense' cannot be used here"):
        extract(SMALL.model_copy(update={"device": "nonsense"}), str(tmp_path))


@pytest.mark.slow
def test_two_extractions_at_once_share_the_work_and_end_with_the_same_bytes(whole, tmp_path) -> None:
    code = (
        "import sys; from pipeline.extraction import extract;"
        "from pipeline.extraction_parameters import ExtractionParameters as P;"
        f"print(extract(P.model_validate_json({SMALL.model_dump_json()!r}), sys.argv[1]).extracted)"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = [int(child.communicate(timeout=300)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(counts) == 1797, "no sample went through the backbone twice"
    uri = str(tmp_path / Path(whole).name)
    assert contents(uri) == contents(whole)
    assert verify_store(open_store(uri)) == []


def test_bad_images_are_all_named_before_a_store_is_begun(tmp_path) -> None:
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "data/train/ant/0.png").write_text("no image")
    (tmp_path / "data/test/bee/1.png").write_bytes(b"")
    bad = SMALL.model_copy(update={"data": str(tmp_path / "data")})
    with pytest.raises(InvalidInputError) as caught:
        extract(bad, str(tmp_path / "root"))
    assert "2 images cannot be used" in str(caught.value)
    assert "train/ant/0.png" in str(caught.value)
    assert "test/bee/1.png" in str(caught.value)
    assert not list((tmp_path / "root").glob("*.zarr"))
