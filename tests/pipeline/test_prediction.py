"""New images get the logits they would get by way of the store, from as little of the backbone as that takes."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import CLASSES, DATA, backbone, batch, classifier, extracted, planned
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.normalization import fit_normalizer
from pipeline.prediction import load_classifier
from pipeline.prediction.early_stop import EarlyStop
from pipeline.refit import refit
from pipeline.taps import Capture
from store import ActivationStore
from store.errors import InvalidInputError, StoreNotFoundError

SETTINGS = settings(max_examples=15, deadline=None)
LAYERS = st.deferred(lambda: st.sets(st.sampled_from(range(len(planned()))), min_size=1))

# ---------------------------------------------------------------- only as deep as needed


def modules_run(model: torch.nn.Module, call) -> list[str]:
    """Return the names of the modules that begin to run during a call, in order."""
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: names.append(name), prepend=True)
        for name, module in model.named_modules()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return names


@SETTINGS
@given(chosen=LAYERS)
def test_the_backbone_runs_only_as_deep_as_the_deepest_layer_asked_for(chosen) -> None:
    model, images = backbone().model, batch(2)
    layers = [planned()[i] for i in sorted(chosen)]
    whole = modules_run(model, lambda: model(images))
    with EarlyStop(model, layers) as capture:
        ran = modules_run(model, lambda: capture(images))
    last = layers[-1].tap
    assert ran == whole[: len(ran)]
    if last.module:  # the logits are the whole model's
        assert last.module in ran
        inside = whole[len(ran) :]
        # Whatever is begun after the last tap, be it as its input or after its output, is not begun.
        assert not any(name == last.module or name.startswith(f"{last.module}.") for name in inside)
        assert ran[-1] == last.module or ran[-1].startswith(f"{last.module}.")


@SETTINGS
@given(chosen=LAYERS)
def test_what_is_captured_is_what_a_whole_pass_captures(chosen) -> None:
    model, images = backbone().model, batch(2)
    layers = [planned()[i] for i in sorted(chosen)]
    with EarlyStop(model, layers) as capture:
        early = capture(images)
    with Capture(model, layers) as capture:
        whole = capture(images)
    assert list(early) == list(whole)
    assert all(torch.equal(early[name], whole[name]) for name in whole)


def test_fewer_modules_run_for_an_early_selection() -> None:
    short, deep = classifier(n_layers=2), classifier(n_layers=len(planned()))
    images = batch(2)
    counts = [len(modules_run(one.backbone, lambda one=one: one(images))) for one in (short, deep)]
    assert counts[0] < counts[1] / 3


# ---------------------------------------------------------------- a module like others


def test_a_classifier_is_frozen_and_stays_in_evaluation_mode() -> None:
    one = classifier()
    before = one(batch())
    one.train()
    assert not any(module.training for module in one.modules())
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert torch.equal(one(batch()), before)


def test_a_copy_is_independent_of_the_original() -> None:
    one = classifier()
    other = copy.deepcopy(one)
    other.coef.zero_()
    assert torch.equal(other(batch()), other.intercept.expand(4, -1))
    assert not torch.equal(one(batch()), other(batch()))


def test_threads_that_share_a_classifier_get_their_own_results() -> None:
    one, images = classifier(), batch(12)
    alone = [one(image[None]) for image in images]
    barrier = threading.Barrier(4)

    def call(start: int) -> list[torch.Tensor]:
        barrier.wait()
        return [one(image[None]) for image in images[start::4]]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, range(4)))
    for start, found in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(found, alone[start::4], strict=True))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(1, 3, 16, 16\) instead of \(batch, 3, 32, 32\)\."):
        classifier()(torch.zeros(1, 3, 16, 16))


def test_unit_norm_leaves_a_layer_of_zeros_at_zero() -> None:
    one = classifier("unit_norm")
    features = torch.randn(2, one.recipe.n_selected)
    features[0, :3] = 0
    zeroed = features.clone()
    zeroed[0, :3] = 0
    want = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in features.split(3, dim=1)], dim=1)
    torch.testing.assert_close(one.logits(features), want @ one.coef + one.intercept)


# ---------------------------------------------------------------- the same as by way of the store


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def noise_store(request, tmp_path_factory) -> ActivationStore:
    return extracted(request.param, tmp_path_factory.mktemp("stores"))


def chosen_columns(store: ActivationStore, which: str) -> tuple[np.ndarray, dict[str, str]]:
    """Return columns to read, and what names them: of the first third of the layers, of all, or the embedding's."""
    if which == "linear":
        return store.layer_indices(store.embedding), {"layer": store.embedding}
    layers = list(store.layers.values())
    rng = np.random.default_rng(0)
    used = layers[: len(layers) // 3] if which == "early" else layers
    parts = [one.offset + rng.choice(one.n_features, min(8, one.n_features), replace=False) for one in used]
    return np.sort(np.concatenate(parts)), {"selection": which}


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standardize", "unit_norm", "none"])
@pytest.mark.parametrize("which", ["early", "all", "linear"])
def test_logits_are_those_of_the_store_and_the_head(noise_store, which, normalization) -> None:
    store = noise_store
    columns, features = chosen_columns(store, which)
    head = refit(store, columns, features=features, normalization=normalization)
    one = load_classifier(store.uri, head.digest)
    images = torch.stack([one.transform(DATA.splits["test"].image(i)) for i in range(9)])
    raw = store.columns("test", head.indices)
    # One unit in the last place of half precision: the batches differ, and with them the last bits before rounding.
    np.testing.assert_allclose(one.features(images), raw, rtol=2**-10, atol=2**-24)
    x = fit_normalizer(store, head.indices, normalization, store.columns("train", head.indices))(raw)
    want = x @ head.coef + head.intercept
    np.testing.assert_allclose(one(images), want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    hits = one(images).argmax(1).numpy() == store.labels("test")
    assert hits.mean() == pytest.approx(head.accuracy["test"])
    assert one.class_names == CLASSES
    if which == "early":
        assert len(modules_run(one.backbone, lambda: one(images))) < len(list(one.backbone.modules())) / 2
        assert one.recipe.layers[-1].name == list(store.layers)[len(store.layers) // 3 - 1]


@pytest.mark.slow
def test_the_newest_head_on_a_selection_is_taken_if_none_is_named(tmp_path: Path) -> None:
    store = extracted("test_resnet", tmp_path)
    with pytest.raises(StoreNotFoundError, match="has no head on a selection yet; `head2toe refit"):
        load_classifier(store.uri)
    columns = chosen_columns(store, "all")[0]
    said: list[str] = []
    for features in ({"selection": "1"}, {"selection": "2"}):
        head = refit(store, columns, features=features, normalization="none")
        assert load_classifier(store.uri, announce=said.append).recipe.lineage["head"] == head.digest
        assert f"{head.digest}: {len(columns):,} features of selection {features['selection']};" in said[-1]
    assert load_classifier(store.uri, head.digest, announce=said.append).recipe.lineage["head"] == head.digest
    assert len(said) == 2
    with pytest.raises(InvalidInputError, match=r"weights 'random:1' .* was trained on"):
        load_classifier(store.uri, head.digest, weights="random:1")


def test_a_store_of_imported_activations_has_no_backbone(store) -> None:
    refit(store, np.arange(7), features={"layer": "stem"}, normalization="none")
    with pytest.raises(InvalidInputError, match="imported activations, so there is no backbone"):
        load_classifier(store.uri)


@pytest.mark.slow
def test_a_head_on_joined_stores_is_refused(tmp_path: Path) -> None:
    from pipeline.joined_store import join_stores

    stores = [extracted(name, tmp_path) for name in ("test_resnet", "test_vit")]
    joined = join_stores(stores)
    head = refit(joined, np.arange(20), features={"selection": "x"}, normalization="none")
    with pytest.raises(InvalidInputError, match="several joined stores"):
        load_classifier(stores[0].uri, head.digest)
