"""What a user of the group lasso is promised: proof, invariance, repeatability, bounded memory, clear refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.group_lasso import ArraySource, GroupLassoResult, group_lasso, path
from pipeline.group_lasso.budget import plan_memory
from pipeline.group_lasso.certificate import optimality
from pipeline.group_lasso.losses import SoftmaxLoss, residual
from pipeline.group_lasso.solver import Point
from pipeline.memory import format_memory, parse_memory
from store.errors import InvalidInputError

Array = NDArray[np.float64]


def planted(n: int = 150, p: int = 600, n_classes: int = 4, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """Correlated features, of which every 60th decides the label."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 8))
    X = np.maximum(latent @ rng.normal(size=(8, p)) / 3 + rng.normal(size=(n, p)), 0)
    logits = X[:, ::60] @ rng.normal(size=(X[:, ::60].shape[1], n_classes)) * 2
    return X, (logits - logits.mean(axis=0) + rng.gumbel(size=logits.shape)).argmax(axis=1)


def probabilities(result: GroupLassoResult, X: Array) -> Array:
    logits = result.decision_function(X)
    odds: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return odds


def violation(result: GroupLassoResult, X: Array, y: NDArray[Any]) -> float:
    """Worst violation of the conditions, in units of λ, straight from their definition."""
    R = np.eye(len(result.intercept))[np.unique(y, return_inverse=True)[1]] - probabilities(result, X)
    gradient, penalty, coef = X.T @ R / len(X), result.certificate.penalty, result.coef
    lengths = np.linalg.norm(coef, axis=1)
    on = lengths > 0
    inside = np.linalg.norm(gradient[on] - penalty * coef[on] / lengths[on, None], axis=1).max(initial=0)
    outside = np.linalg.norm(gradient[~on], axis=1).max(initial=0)
    assert np.abs(R.sum(axis=0)).max() < 1e-8 * len(X)
    return float(max(inside, outside - penalty) / penalty)


def objective(result: GroupLassoResult, X: Array, y: NDArray[Any]) -> float:
    p = probabilities(result, X)
    penalty = result.certificate.penalty * np.linalg.norm(result.coef, axis=1).sum()
    return float(-np.log(p[np.arange(len(y)), np.unique(y, return_inverse=True)[1]]).mean() + penalty)


def test_every_point_of_a_path_meets_the_optimality_conditions() -> None:
    X, y = planted()
    result = group_lasso(X, y, penalty_ratio=[0.8, 0.5, 0.3, 0.1])
    ratios = [point.certificate.penalty / point.certificate.penalty_max for point in result.path]
    assert ratios == pytest.approx([0.8, 0.5, 0.3, 0.1])
    for point in result.path:
        assert point.certificate.certified
        assert point.certificate.relative_gap <= 1e-4
        assert violation(point, X, y) <= 1.1e-3
        assert point.certificate.kkt_violation == pytest.approx(violation(point, X, y), abs=1e-5)
        assert point.certificate.objective == pytest.approx(objective(point, X, y), rel=1e-6)
    np.testing.assert_array_equal(result.coef, result.path[-1].coef)


def test_penalty_max_selects_nothing_and_slightly_less_selects_something() -> None:
    X, y = planted()
    source = ArraySource(X)
    empty = group_lasso(source, y, penalty_ratio=1.0)
    assert len(empty.support) == 0
    assert not empty.coef.any()
    assert source.passes == 1
    assert empty.certificate.certified
    assert empty.certificate.duality_gap == pytest.approx(0, abs=1e-12)
    assert "no feature is active" in empty.certificate.note
    assert empty.relevance.max() == 0
    assert len(np.unique(empty.relevance)) > 500
    below = group_lasso(X, y, penalty_ratio=0.99)
    assert below.support.tolist() == [int(empty.relevance.argmax())]
    R = np.eye(4)[y] - np.eye(4)[y].mean(axis=0)
    assert empty.certificate.penalty_max == pytest.approx(np.linalg.norm(X.T @ R, axis=1).max() / len(X))


def test_relevance_orders_support_first_then_by_score() -> None:
    X, y = planted()
    result = group_lasso(X, y, penalty_ratio=0.3)
    off = np.setdiff1d(np.arange(X.shape[1]), result.support)
    np.testing.assert_allclose(result.relevance[result.support], np.linalg.norm(result.support_coef, axis=1))
    assert result.relevance[result.support].min() > 0
    assert result.relevance[off].max() <= 0
    R = np.eye(4)[y] - probabilities(result, X)
    scores = np.linalg.norm(X.T @ R, axis=1) / len(X)
    np.testing.assert_allclose(
        result.relevance[off], np.minimum(scores[off] / result.certificate.penalty - 1, 0), atol=1e-5
    )


def test_planted_support_is_recovered() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 1000))
    true = np.array([17, 250, 601, 998])
    y = (X[:, true] * 3).argmax(axis=1)
    result = group_lasso(X, y, penalty_ratio=0.5)
    assert result.support.tolist() == true.tolist()


def test_order_of_features_samples_and_names_of_classes_do_not_matter() -> None:
    X, y = planted()
    base = group_lasso(X, y, penalty_ratio=0.2, tol=1e-7, kkt_tol=1e-6)
    rng = np.random.default_rng(1)
    features, samples = rng.permutation(X.shape[1]), rng.permutation(len(X))
    names = np.array(["d", "b", "a", "c"])  # class k of `base` comes at position order[k]
    order = np.argsort(np.argsort(names))
    shuffled = group_lasso(X[samples][:, features], names[y[samples]], penalty_ratio=0.2, tol=1e-7, kkt_tol=1e-6)
    assert shuffled.certificate.objective == pytest.approx(base.certificate.objective, rel=1e-8)
    np.testing.assert_allclose(shuffled.coef[:, order], base.coef[features], atol=1e-5)
    np.testing.assert_allclose(shuffled.intercept[order], base.intercept, atol=1e-5)
    assert shuffled.classes is not None
    assert shuffled.classes.tolist() == ["a", "b", "c", "d"]


def test_same_bits_from_run_to_run_and_for_any_number_of_threads() -> None:
    X, y = planted()
    first = group_lasso(X.astype(np.float16), y, penalty_ratio=0.1)
    with threadpool_limits(1):
        second = group_lasso(X.astype(np.float16), y, penalty_ratio=0.1)
    np.testing.assert_array_equal(first.relevance, second.relevance)
    np.testing.assert_array_equal(first.coef, second.coef)


def test_a_path_is_the_same_to_the_last_bit_however_many_threads_solve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = planted()
    found = []
    for n_threads in (1, 2, 5):
        monkeypatch.setattr(os, "cpu_count", lambda n=n_threads: n)
        found.append(group_lasso(X, y, penalty_ratio=[0.7, 0.5, 0.3, 0.2, 0.1]))
    for other in found[1:]:
        for one, same in zip(found[0].path, other.path, strict=True):
            np.testing.assert_array_equal(one.support_coef, same.support_coef)
            np.testing.assert_array_equal(one.relevance, same.relevance)


def test_two_passes_in_the_ordinary_case_and_the_bytes_of_both_are_counted() -> None:
    X, y = planted()
    source = ArraySource(X.astype(np.float32), "standardize")
    stages: list[tuple[str, int, int]] = []
    result = group_lasso(source, y, penalty_ratio=0.2, progress=lambda *stage: stages.append(stage))
    assert result.certificate.passes == source.passes == 2
    assert result.certificate.bytes_read == source.bytes_read == 3 * X.size * 4
    again = group_lasso(source, y, penalty_ratio=0.2)
    assert (again.certificate.passes, again.certificate.bytes_read) == (2, 3 * X.size * 4)
    assert [stage for stage, _, _ in stages] == ["first pass", "fetch", "solve", "scan", "repair", "repair"]
    assert all(0 < done <= total for _, done, total in stages)
    assert set(result.certificate.seconds) == {stage for stage, _, _ in stages}


def fixed_bytes(X: Array, n_outputs: int = 4) -> int:
    """What a solve needs besides the columns it holds."""
    return plan_memory(ArraySource(X), n_outputs, 1, 0, 2**40).fixed


def test_cache_far_smaller_than_the_data_gives_the_same_certified_solution() -> None:
    X, y = planted(p=3000)
    ample = group_lasso(X, y, penalty_ratio=0.4, tol=1e-7, kkt_tol=1e-5)
    column = 4 * len(X)
    allowed = fixed_bytes(X) + 60 * column
    small = group_lasso(X, y, penalty_ratio=0.4, tol=1e-7, kkt_tol=1e-5, memory=allowed)
    assert 5 < len(ample.support) < 50
    assert small.certificate.certified
    assert small.certificate.cached_bytes <= 60 * column
    assert small.certificate.projected_bytes <= allowed
    assert small.support.tolist() == ample.support.tolist()
    np.testing.assert_allclose(small.coef, ample.coef, atol=1e-3)
    assert violation(small, X, y) <= 1.2e-5


def test_memory_that_cannot_work_is_refused_before_the_first_pass_with_the_least_that_can() -> None:
    X, y = planted(p=3000)
    source = ArraySource(X)
    with pytest.raises(InvalidInputError, match=r"memory=1000 bytes is too small.*32 columns of 600 bytes") as refusal:
        group_lasso(source, y, memory=1000)
    assert source.passes == 0
    least = int(str(refusal.value).rsplit("memory=", 1)[1].split()[0])
    assert least == fixed_bytes(X) + 32 * 600
    assert group_lasso(X, y, penalty_ratio=0.8, memory=least).certificate.certified
    with pytest.raises(InvalidInputError, match=f"memory={least - 1} bytes is too small"):
        group_lasso(X, y, memory=least - 1)


def test_a_support_that_does_not_fit_is_refused_with_what_would_do() -> None:
    X, y = planted(p=3000)
    with pytest.raises(InvalidInputError, match=r"the least that works here is memory=\d+") as refusal:
        group_lasso(X, y, penalty_ratio=0.02, memory=fixed_bytes(X) + 4 * len(X) * 40)
    least = int(str(refusal.value).rsplit("memory=", 1)[1].split()[0])
    assert least > fixed_bytes(X) + 4 * len(X) * 40


def test_projected_use_is_announced_before_the_work() -> None:
    X, y = planted()
    said: list[str] = []
    source = ArraySource(X)
    result = group_lasso(source, y, memory="1.5 GiB", announce=lambda text: said.append(f"{source.passes} {text}"))
    assert len(said) == 1
    assert said[0].startswith("0 memory: ")
    assert "projected of 1.50 GiB allowed: 600 columns of 600 B" in said[0]
    assert 0 < result.certificate.projected_bytes < result.certificate.process_peak_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2GiB", 2**31), ("1.5 GiB", 1610612736), ("500 MB", 500_000_000), (123, 123), ("64", 64)]
)
def test_sizes_are_numbers_of_bytes_or_text(text: int | str, n_bytes: int) -> None:
    assert parse_memory(text) == n_bytes


def test_a_printed_size_never_says_less_than_it_is() -> None:
    for n_bytes in (1, 1023, 1025, 18413216, 2**30 + 1):
        assert parse_memory(format_memory(n_bytes).replace(" ", "")) >= n_bytes


def test_certificate_is_withheld_from_a_wrong_solution() -> None:
    X, y = planted()
    result = group_lasso(X, y, penalty_ratio=0.2)
    loss = SoftmaxLoss(np.eye(4)[y], np.ones(len(y)))
    penalty = result.certificate.penalty

    def judged(coef: Array, intercept: Array) -> tuple[float, float]:
        logits = X @ coef + intercept
        gradient = X.T @ residual(loss, loss.predict(logits)) / len(X)
        scores = np.linalg.norm(gradient, axis=1)
        state = optimality(loss, penalty, coef, logits, gradient, float(scores.max()))
        return state.gap, state.kkt

    right = judged(result.coef, result.intercept)
    assert right[0] <= 1e-4 * result.certificate.null_objective
    assert right[1] <= 1.1e-3
    weakest = result.coef.copy()
    weakest[result.support[np.linalg.norm(result.support_coef, axis=1).argmin()]] = 0
    for coef, intercept in [
        (weakest, result.intercept),
        (1.05 * result.coef, result.intercept),
        (result.coef, result.intercept + np.array([0.05, 0, 0, -0.05])),
        (0 * result.coef, result.intercept),
    ]:
        assert judged(coef, intercept)[1] > 1.1e-3


@pytest.mark.parametrize("loss", ["softmax", "squared"])
@pytest.mark.parametrize("wrong", ["shrunk", "missing", "stopped early"])
def test_a_solver_that_goes_wrong_is_never_certified(wrong: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure does not trust the solver: whatever point it is handed, all features are scored against it."""
    right = path.minimise

    def minimise(cache: Any, loss: Any, start: Point, accuracy: Any) -> Point:
        if wrong == "stopped early":
            return start
        point = right(cache, loss, start, accuracy)
        coef = point.coef * 0.97
        if wrong == "missing":
            coef = point.coef.copy()
            coef[np.linalg.norm(coef, axis=1).argmax()] = 0
        logits = cache.combine(cache.slots(point.support), coef) + point.intercept
        return replace(point, coef=coef, logits=logits, residual=residual(loss, loss.predict(logits)))

    monkeypatch.setattr(path, "minimise", minimise)
    X, y = planted()
    result = group_lasso(X, y, loss=loss, penalty_ratio=0.2)
    assert not result.certificate.certified
    assert "Not certified" in result.certificate.note
    assert max(result.certificate.kkt_violation, result.certificate.relative_gap) > 1e-3


def test_source_that_hides_violators_in_the_first_pass_is_still_solved() -> None:
    class Misleading(ArraySource):
        def first_pass(self, residual: Array) -> Any:
            found = super().first_pass(residual)
            return found._replace(scores=np.where(np.arange(3000) % 2, found.scores, 0.9 * found.scores))

    X, y = planted(p=3000)
    honest = group_lasso(X, y, penalty=0.05)
    misled = group_lasso(Misleading(X), y, penalty=0.05, memory=fixed_bytes(X) + 4 * len(X) * 100)
    assert misled.certificate.certified
    assert misled.certificate.objective == pytest.approx(honest.certificate.objective, rel=1e-4)


def test_penalty_too_hard_for_the_tolerance_is_not_certified() -> None:
    X, y = planted()
    result = group_lasso(X, y, penalty_ratio=0.3, tol=1e-15, kkt_tol=1e-15)
    assert not result.certificate.certified
    assert "Not certified" in result.certificate.note
    assert violation(result, X, y) < 1e-4


def test_keep_selects_at_least_as_many() -> None:
    X, y = planted()
    result = group_lasso(X, y, keep=30)
    assert 30 <= len(result.support) < 60
    assert result.certificate.certified
    impossible = group_lasso(X[:20], y[:20], keep=590)
    assert len(impossible.support) < 590
    assert "Only" in impossible.certificate.note


def test_weights_count_samples() -> None:
    X, y = planted(n=80, p=100)
    counts = np.random.default_rng(0).integers(0, 3, size=80)
    counts[:8] = 1
    weighted = group_lasso(X, y, penalty=0.05, sample_weight=counts, tol=1e-7, kkt_tol=1e-5)
    repeated = group_lasso(np.repeat(X, counts, axis=0), np.repeat(y, counts), penalty=0.05, tol=1e-7, kkt_tol=1e-5)
    assert weighted.certificate.certified
    np.testing.assert_allclose(weighted.coef, repeated.coef, atol=1e-4)
    np.testing.assert_allclose(weighted.intercept, repeated.intercept, atol=1e-4)


def test_constant_features_are_never_selected_when_standardized() -> None:
    X, y = planted()
    X[:, :5] = [0, 1, -3, 1e4, 1e-9]
    result = group_lasso(X.astype(np.float32), y, normalization="standardize", penalty_ratio=0.1)
    assert result.support.min() >= 5
    np.testing.assert_array_equal(result.relevance[:5], -1)


def test_missing_class_indices_are_fine() -> None:
    X, y = planted()
    gaps = group_lasso(X, y * 7 + 100, penalty_ratio=0.3)
    plain = group_lasso(X, y, penalty_ratio=0.3)
    np.testing.assert_array_equal(gaps.coef, plain.coef)
    assert gaps.classes is not None
    assert gaps.classes.tolist() == [100, 107, 114, 121]


def test_certificate_is_plain_json() -> None:
    X, y = planted(n=60, p=50)
    certificate = group_lasso(X, y).certificate
    restored = json.loads(json.dumps(certificate.to_json()))
    assert restored == certificate.to_json()
    assert restored["certified"] is True


def nan_inside(X: Array) -> Array:
    out = X.copy()
    out[3, 7] = np.nan
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(60, dtype=int)}, "one class only, .*0"),
        ({"y": np.zeros(59, dtype=int)}, r"y has shape \(59,\).*60 samples"),
        ({"y": np.linspace(0, 1, 60)}, "fractional"),
        ({"y": np.full(60, np.nan)}, "not finite"),
        ({"y": np.ones((60, 2))}, "one dimension"),
        ({"y": np.ones(60), "loss": "squared"}, "constant"),
        ({"X": np.zeros((60, 4))}, "none varies with the targets"),
        ({"X": np.ones((60, 4)), "normalization": "standardize"}, "none varies with the targets"),
        ({"X": np.ones(60)}, r"shape \(60,\)"),
        ({"X": np.ones((60, 4), dtype=int)}, "dtype int64; valid choices are float16"),
        ({"X": [[1.0]]}, "X is a list"),
        ({"normalization": "max"}, "'max' is unknown.*'none', 'standardize'"),
        ({"loss": "hinge"}, "'hinge' is unknown; valid choices are 'softmax', 'squared'"),
        ({"penalty": 0.0}, "penalty=0.0 .*above 0"),
        ({"penalty_ratio": -1.0}, "penalty_ratio=-1.0"),
        ({"penalties": []}, "penalties is empty"),
        ({"penalties": [0.1, np.nan]}, "penalties=nan"),
        ({"penalty": 0.1, "keep": 3}, "choose one"),
        ({"keep": 51}, "keep=51 is impossible; valid choices are 1 to 50"),
        ({"sample_weight": -np.ones(60)}, r"contains -1.0"),
        ({"sample_weight": np.ones(3)}, r"shape \(3,\); it must be \(60,\)"),
        ({"sample_weight": np.zeros(60)}, "not all 0"),
        ({"tol": 0.0}, "tol=0.0"),
        ({"memory": 0}, "memory=0 is not a size"),
        ({"memory": "2 cups"}, "memory='2 cups' is not a size; .*'2GiB'"),
        ({"y": None}, "y is not given, and a ndarray has no labels"),
        ({"X": []}, "X is a list"),
        ({"penalty_ratio": 0.0}, "penalty_ratio=0.0 .*above 0"),
        ({"X": np.ones((60, 0))}, r"shape \(60, 0\)"),
    ],
)
def test_unusable_input_is_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    X, y = planted(n=60, p=50)
    with pytest.raises(InvalidInputError, match=message):
        group_lasso(**({"X": X, "y": y} | change))


def test_value_that_is_not_finite_is_named() -> None:
    X, y = planted(n=60, p=50)
    for bad in (nan_inside(X), nan_inside(X).astype(np.float16)):
        with pytest.raises(InvalidInputError, match=r"not finite.* feature 7"):
            group_lasso(bad, y)


def test_every_sample_a_class_of_its_own_is_solved() -> None:
    X = planted(n=12, p=40)[0]
    result = group_lasso(X, np.arange(12), penalty_ratio=0.3)
    assert result.certificate.certified
    assert result.coef.shape == (40, 12)
    assert violation(result, X, np.arange(12)) <= 1.1e-3


def test_fewer_features_than_outputs_or_fewer_samples_than_features_make_no_difference() -> None:
    X, y = planted()
    for part in (X[:, :1], X[:, :3], X[:9]):
        labels = y[: len(part)]
        result = group_lasso(part, labels, penalty_ratio=0.3)
        assert result.certificate.certified
        assert violation(result, part, labels) <= 1.1e-3


def test_infinite_and_huge_values_are_refused_or_right() -> None:
    X, y = planted(n=60, p=50)
    bad = X.copy()
    bad[1, 2] = -np.inf
    with pytest.raises(InvalidInputError, match=r"not finite.* feature 2"):
        group_lasso(bad, y)
    huge = group_lasso(X * 1e15, y, penalty_ratio=0.3)
    plain = group_lasso(X, y, penalty_ratio=0.3)
    assert huge.certificate.certified
    assert huge.support.tolist() == plain.support.tolist()


def test_class_with_no_weight_is_refused() -> None:
    X, y = planted(n=60, p=50)
    with pytest.raises(InvalidInputError, match=r"class .*2.* only where sample_weight is 0"):
        group_lasso(X, y, sample_weight=(y != 2))


def test_other_widths_are_refused_at_prediction() -> None:
    X, y = planted(n=60, p=50)
    with pytest.raises(InvalidInputError, match="50 columns"):
        group_lasso(X, y).decision_function(X[:, :49])


def test_penalties_are_solved_at_once_only_in_memory_that_scans_leave_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    small = plan_memory(ArraySource(np.zeros((1000, 5000), np.float32)), 5, 20, 0, 2**30)
    large = plan_memory(ArraySource(np.zeros((20_000, 60), np.float32)), 100, 20, 0, 2**32)
    assert (small.threads, large.threads) == (4, 1)
    assert plan_memory(ArraySource(np.zeros((1000, 5000), np.float32)), 5, 2, 0, 2**30).threads == 2
