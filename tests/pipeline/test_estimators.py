"""scikit-learn's own checks, its tools around the estimators, and the same result as the stages give."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from pipeline.estimators import Head2ToeEstimator, Head2ToeSelector, StoreSamples
from pipeline.heads import RefitParameters
from pipeline.refit import refit
from pipeline.selection import SelectionParameters, select_features
from store import ActivationStore, create_store

SIZES = (7, 40, 64, 16)
QUICK = RefitParameters(max_iterations=20)


def checks() -> list[object]:
    """Return every check of scikit-learn for both estimators, each a test of its own."""
    found = []
    for number, estimator in enumerate((Head2ToeSelector(), Head2ToeEstimator(), Head2ToeEstimator(fraction=1.0))):
        for subject, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            # With all features the score of its toy problems is asked for, too; all else is as before.
            if number < 2 or name == "check_classifiers_train":
                found.append(pytest.param(subject, check, id=f"{type(estimator).__name__}-{name}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "check"), checks())
def test_scikit_learn_accepts_the_estimators(subject, check) -> None:
    check(subject)


# ---------------------------------------------------------------- the same as the stages


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standardize", "unit_norm", "none"])
def test_store_and_array_give_what_select_and_refit_give(store, values, normalization) -> None:
    chosen = select_features(store, SelectionParameters(keep=12, normalization=normalization))
    head = refit(store, chosen.indices, features={"selection": chosen.digest}, normalization=normalization)
    lazy = Head2ToeEstimator(keep=12, normalization=normalization).fit(store)
    eager = Head2ToeEstimator(keep=12, normalization=normalization, layer_sizes=SIZES)
    eager.fit(values["train"], store.labels("train"))
    for estimator, test in ((lazy, StoreSamples(store, "test")), (eager, values["test"])):
        np.testing.assert_array_equal(np.sort(estimator.indices_), np.sort(chosen.indices))
        assert estimator.certificate_["certified"]
        np.testing.assert_allclose(estimator.coef_.T, head.coef, rtol=2e-2, atol=1e-3)
        assert estimator.score(test, store.labels("test")) == head.accuracy["test"]
        np.testing.assert_allclose(estimator.predict_proba(test).sum(axis=1), 1)
    np.testing.assert_array_equal(lazy.relevance_, chosen.relevance)


def test_a_bare_store_means_its_training_samples(store) -> None:
    train = StoreSamples(store, "train")
    selector = Head2ToeSelector(keep=5)
    np.testing.assert_array_equal(selector.fit_transform(store), selector.fit(train, train.labels).transform(train))
    np.testing.assert_array_equal(selector.transform(store), store.columns("train", selector.get_support(indices=True)))
    assert Head2ToeEstimator(keep=5, refit=QUICK).fit(store).score(train) > 1 / 3


def test_only_the_given_samples_of_a_store_are_learnt_from_whatever_their_order(store, values) -> None:
    rows = np.random.default_rng(0).permutation(90)[:50]
    lazy = Head2ToeSelector(keep=9).fit(StoreSamples(store)[rows])
    x, y = values["train"][np.sort(rows)], store.labels("train")[np.sort(rows)]
    eager = Head2ToeSelector(keep=9, layer_sizes=SIZES).fit(x, y)
    np.testing.assert_array_equal(np.sort(lazy.indices_), np.sort(eager.indices_))
    wanted = values["train"][rows][:, lazy.get_support()]
    np.testing.assert_array_equal(lazy.transform(StoreSamples(store)[rows]), wanted)
    with pytest.raises(ValueError, match="split 'train' occurs twice"):
        lazy.fit(StoreSamples(store)[[3, 3, 4]])


# ---------------------------------------------------------------- scikit-learn's tools


def test_in_a_pipeline_and_a_grid_search_over_an_array(values, store) -> None:
    pipeline = make_pipeline(Head2ToeSelector(scorer="f_classif"), LogisticRegression(max_iter=200))
    grid = GridSearchCV(pipeline, {"head2toeselector__keep": np.array([1, 30])}, cv=2, error_score="raise")
    grid.fit(values["train"], store.labels("train"))
    assert grid.best_params_ == {"head2toeselector__keep": 30}
    assert grid.best_estimator_[0].get_support().sum() == 30


@pytest.mark.slow
def test_cross_validation_and_grid_search_over_a_store(store) -> None:
    train = StoreSamples(store, "train")
    search = GridSearchCV(Head2ToeEstimator(refit=QUICK), {"fraction": [0.01, 0.2]}, cv=3, error_score="raise")
    search.fit(train, train.labels)
    assert search.best_params_ == {"fraction": 0.2}
    assert search.score(StoreSamples(store, "test"), store.labels("test")) > 0.5
    assert cross_val_score(clone(search.best_estimator_), train, train.labels, cv=3).mean() > 0.5


def test_a_fitted_estimator_survives_pickling(values, store) -> None:
    fitted = Head2ToeEstimator(keep=6, refit=QUICK).fit(values["train"], store.labels("train"))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(values["test"]), fitted.predict_proba(values["test"]))


def test_two_classes_have_one_decision_of_the_sign_of_the_prediction(values, store) -> None:
    kept = store.labels("train") < 2
    names = np.array(["ant", "bee"])[store.labels("train")[kept]]
    fitted = Head2ToeEstimator(keep=6, refit=QUICK).fit(values["train"][kept], names)
    decision = fitted.decision_function(values["test"])
    assert decision.shape == (len(values["test"]),)
    np.testing.assert_array_equal(fitted.predict(values["test"]) == "bee", decision > 0)
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(values["test"])), fitted.predict_proba(values["test"]))


@pytest.mark.slow
def test_the_page_on_scikit_learn_runs(tmp_path, monkeypatch, capsys) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "demo" / "digits", LAYERS, SPLITS, manifests=manifests, class_names=CLASSES)
    write_all(writer, values)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "scikit-learn.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/scikit-learn.md", "exec"), {})
    assert "True" in capsys.readouterr().out


# ---------------------------------------------------------------- errors


WRONG = [
    ({"keep": 128}, "cannot keep 128 features: the store has 127"),
    ({"keep": 2, "fraction": 0.5}, "either fraction or keep"),
    ({"scorer": "f_clasif"}, "scorer 'f_clasif' is unknown; did you mean 'f_classif'"),
    ({"scorer": "variance", "penalty": 1.0}, "penalty does not apply to scorer variance"),
    ({"normalization": "unit"}, "normalization is 'unit' but should be 'unit_norm', 'standardize' or 'none'"),
    ({"fraction": 2}, "fraction is 2 but should be less than or equal to 1"),
    ({"layer_sizes": (7, 8)}, r"layer_sizes \[7, 8\] must be positive and add up to 127"),
    ({"memory": "2 pounds"}, "2 pounds"),
]


def test_wrong_parameters_are_value_errors_of_fit(values, store) -> None:
    for parameters, message in WRONG:
        with pytest.raises(ValueError, match=message):
            Head2ToeSelector(**parameters).fit(values["train"], store.labels("train"))


def test_wrong_samples_are_named(values, store: ActivationStore) -> None:
    selector = Head2ToeSelector(keep=3)
    with pytest.raises(NotFittedError):
        selector.transform(store)
    selector.fit(values["train"][:, :20], store.labels("train"))
    with pytest.raises(ValueError, match="X has 127 features, but Head2ToeSelector is expecting 20"):
        selector.transform(store)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        selector.fit(StoreSamples(store), [0, 1])
    with pytest.raises(ValueError, match="y has one class only, '0'"):
        selector.fit(StoreSamples(store), np.zeros(90, int))
    with pytest.raises(TypeError, match="let a Head2ToeSelector choose features first"):
        LogisticRegression().fit(StoreSamples(store), store.labels("train"))
