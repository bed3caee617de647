"""Files and folders of images are classified in batches; what cannot be used is named and the rest goes on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import CLASSES, DATA, batch, classifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.prediction import Head2ToeClassifier, predict_images
from pipeline.prediction.images import find_images
from store.errors import InvalidInputError


def write_images(folder: Path, n: int = 7) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.png" for i in range(n)]
    for i, path in enumerate(paths):
        DATA.splits["train"].image(i).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def paths(tmp_path) -> list[str]:
    return write_images(tmp_path / "images")


def test_files_get_the_probabilities_of_their_images_in_their_order(paths) -> None:
    one = classifier()
    want = one(batch(7)).softmax(1).numpy()
    seen: list[tuple[int, int]] = []
    found = predict_images(one, paths[::-1], batch_size=3, progress=lambda _, *counts: seen.append(counts))
    assert [p.image for p in found.predictions] == paths[::-1]
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert found.problems == []
    for prediction, row in zip(found.predictions, want[::-1], strict=True):
        np.testing.assert_allclose(prediction.probabilities, row, rtol=1e-3, atol=1e-5)
        assert prediction.label == CLASSES[row.argmax()]
        assert prediction.probability == prediction.probabilities.max()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.integers(0, 6)), batch_size=st.integers(1, 8), workers=st.integers(1, 3))
def test_whatever_is_unreadable_is_named_and_the_others_go_on(tmp_path, bad, batch_size, workers) -> None:
    good = write_images(tmp_path / "good")
    (tmp_path / "broken.png").write_bytes(Path(good[0]).read_bytes()[:60])
    given_paths = [str(tmp_path / "broken.png") if i in bad else path for i, path in enumerate(good)]
    found = predict_images(classifier(), given_paths, batch_size=batch_size, workers=workers)
    assert [p.image for p in found.predictions] == [path for i, path in enumerate(good) if i not in bad]
    assert len(found.problems) == len(bad)
    assert all(name.endswith("broken.png") and "damaged or truncated" in reason for name, reason in found.problems)


def test_what_is_wrong_with_a_file_is_said(tmp_path, paths) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["empty.png", "text.jpg", "missing.png", "nothing", "pipe.png"]
    found = predict_images(classifier(), [*(tmp_path / name for name in names), paths[0]])
    reasons = {Path(name).name: reason for name, reason in found.problems}
    assert len(found.predictions) == 1
    assert "empty file" in reasons["empty.png"]
    assert "not an image" in reasons["text.jpg"]
    assert "No such file" in reasons["missing.png"]
    assert "folder without images" in reasons["nothing"]
    assert "not a regular file" in reasons["pipe.png"]


def test_folders_give_their_images_in_order_and_nothing_hidden(tmp_path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "b/notes.txt", ".hidden/3.png", "b/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    names, problems = find_images([tmp_path, tmp_path / "b" / "notes.txt"])
    assert [os.path.relpath(name, tmp_path) for name in names] == ["a.webp", "b/1.jpg", "b/2.PNG", "b/notes.txt"]
    assert not problems
    with pytest.raises(InvalidInputError, match="no image is given"):
        find_images([])


def test_names_of_any_bytes_can_be_printed(tmp_path, paths) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(Path(paths[0]).read_bytes())
    found = predict_images(classifier(), [os.fsdecode(odd)])
    assert found.predictions[0].image.encode().endswith("\N{REPLACEMENT CHARACTER}.png".encode())


def test_a_batch_too_large_for_memory_is_halved(paths, monkeypatch) -> None:
    want = predict_images(classifier(), paths).predictions
    forward, sizes = Head2ToeClassifier.forward, []

    def scarce(self: Head2ToeClassifier, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("no memory")
        return forward(self, images)

    monkeypatch.setattr(Head2ToeClassifier, "forward", scarce)
    most = 2
    found = predict_images(classifier(), paths, batch_size=7).predictions
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert [p.label for p in found] == [p.label for p in want]
    most = 0
    with pytest.raises(InvalidInputError, match="not even one image"):
        predict_images(classifier(), paths)


def test_features_that_overflow_the_type_of_the_store_are_a_problem_of_their_image(paths) -> None:
    one = classifier("none")
    one.backbone = torch.nn.Sequential()  # never run
    one.features = lambda images: images.mean((2, 3)).repeat(1, 4) + torch.tensor([0.0, *[torch.inf] * 11])
    found = predict_images(one, paths[:2])
    assert found.problems == [(path, "gives features that float16 cannot hold") for path in paths[:2]]


def test_a_device_that_is_not_there_is_refused(paths) -> None:
    with pytest.raises(InvalidInputError, match="abacus"):
        predict_images(classifier(), paths, device="abacus")
