"""The two-pass scheme: score all features, solve in memory, score all features again, repair, certify."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.budget import LEAST_COLUMNS, MemoryPlan
from pipeline.group_lasso.certificate import Certificate, Optimality
from pipeline.group_lasso.losses import Array, Loss
from pipeline.group_lasso.screening import ColumnCache, spectral_norm
from pipeline.group_lasso.solver import Accuracy, Point, allowed_excess, approach, measure, minimise, null_point
from pipeline.group_lasso.source import ColumnSource, single_threaded_blas
from pipeline.memory import peak_bytes
from store.errors import InvalidInputError

Progress = Callable[[str, int, int], None]

_WARM_RATIO = 0.6  # between the penalties visited on the way to the one asked for
_WARM_ACCURACY = Accuracy(gap=np.inf, kkt=0.1)
_KEEP_RATIO = 0.85
_KEEP_FLOOR = 1e-3
_NEAR = 0.05  # fetched with the violators: scores above (1 − 0.05) λ
_FETCH_AT_ONCE = 2048  # rather than scan all features once more
_MOST_PASSES = 40
_PROBES = 3


@dataclass(frozen=True)
class Solution:
    """One certified point of the path.

    Attributes
    ----------
    support : ndarray of shape (m,), int64
        Selected features, sorted.
    coef : ndarray of shape (m, K), float64
        Their rows.
    intercept : ndarray of shape (K,), float64
        With respect to the normalised columns as the source gives them.
    relevance : ndarray of shape (p,), float64
        Positive on the support, not positive off it.
    certificate : Certificate
        Evidence.
    """

    support: NDArray[np.int64]
    coef: Array
    intercept: Array
    relevance: Array
    certificate: Certificate


@dataclass(frozen=True)
class _Checked:
    """A point measured against all features."""

    point: Point
    state: Optimality
    certified: bool
    intercept: Array
    relevance: Array
    score_slack: float
    note: str


class TwoPassSolver:
    """Solves one data set for any number of penalties.

    Parameters
    ----------
    source : ColumnSource
        The features.
    loss : Loss
        Targets, weights and the kind of loss.
    tol : float
        Largest duality gap, relative to the objective of the intercept alone.
    kkt_tol : float
        Largest violation of the optimality conditions, in units of λ.
    plan : MemoryPlan
        What may be held.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    InvalidInputError
        If no feature varies with the targets.
    """

    def __init__(
        self,
        source: ColumnSource,
        loss: Loss,
        *,
        tol: float,
        kkt_tol: float,
        plan: MemoryPlan,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._before = source.passes, source.bytes_read
        self._loss = loss
        self._progress = progress or (lambda stage, done, total: None)
        self._seconds: dict[str, float] = defaultdict(float)
        self._kkt_tol = kkt_tol
        self._null = null_point(loss, np.inf)
        self._null_objective = loss.value(self._null.logits)
        self._accuracy = Accuracy(gap=tol * self._null_objective, kkt=kkt_tol)
        with self._stage("first pass", 0, 1), single_threaded_blas():
            scores, self._norms = source.first_pass(self._null.residual)
        self._null_scores = scores / source.n_samples
        self.penalty_max = float(self._null_scores.max())
        reach = float((self._norms * np.linalg.norm(self._null.residual)).max()) / source.n_samples
        if not np.isfinite(reach):
            raise InvalidInputError("X has values that are not finite; remove or replace them.")
        if self.penalty_max <= 1e-12 * reach or reach == 0:
            message = (
                f"X has {source.n_features} features but none varies with the targets (the largest score is "
                f"{self.penalty_max:.3g}): all are constant over the samples, or unrelated to the targets."
            )
            raise InvalidInputError(message)
        best = np.sort(np.argsort(-self._null_scores, kind="stable")[: plan.fill])
        with self._stage("fetch", 0, 1), single_threaded_blas():
            self._cache = ColumnCache(source, loss.weights, self._norms, plan)
            self._cache.require(best)

    def solve(self, penalties: Sequence[float]) -> list[Solution]:
        """Solve for every penalty.

        Parameters
        ----------
        penalties : sequence of float
            Positive, in any order.

        Returns
        -------
        list of Solution
            In the order of `penalties`.

        Raises
        ------
        InvalidInputError
            If memory is too small for the support.
        """
        ordered = sorted(set(penalties), reverse=True)
        with single_threaded_blas():
            rough = self._probe(ordered) if self._cache.size < self._source.n_features else []
            # Of several penalties some were left out; and with what was fetched, the way along them is a better one.
            points = self._exact(rough if len(ordered) == 1 and rough else self._approach(ordered), len(ordered))
            solutions = dict(zip(ordered, map(self._solution, self._check(points)), strict=True))
        return [solutions[penalty] for penalty in penalties]

    def solve_for_size(self, keep: int) -> Solution:
        """Lower the penalty until at least `keep` features are selected.

        Parameters
        ----------
        keep : int
            Number of features wanted.

        Returns
        -------
        Solution
            At the first penalty of a geometric sequence whose support is large enough; if there is none above
            0.001 λ_max, at the last one, and the certificate says so.

        Raises
        ------
        InvalidInputError
            If memory is too small for the support.
        """
        point = replace(self._null, penalty=self.penalty_max)
        with single_threaded_blas():
            while True:
                penalty = point.penalty * _KEEP_RATIO
                last = penalty * _KEEP_RATIO < _KEEP_FLOOR * self.penalty_max
                with self._stage("solve", min(len(point.support), keep - 1), keep):
                    point = approach(self._cache, self._loss, point, penalty, _WARM_ACCURACY)
                    if len(point.support) >= keep or last:
                        point = minimise(self._cache, self._loss, point, self._accuracy)
                if len(point.support) < keep and not last:
                    continue
                checked = self._check([point])[0]
                point = checked.point
                size = len(point.support)
                if size >= keep:
                    return self._solution(checked)
                if last:
                    note = f"Only {size} features can be selected, {keep} were asked for; relevance orders the rest."
                    return self._solution(replace(checked, note=note))

    def _approach(self, penalties: Sequence[float]) -> Iterator[Point]:
        """Yield a rough solution for each of some falling penalties, every one of which leads to the next."""
        point = replace(self._null, penalty=self.penalty_max)
        for penalty in penalties:
            point = self._advance(replace(point, newton_steps=0, sweeps=0), penalty)
            # Scores are computed here once for two: the next step along the path, and whoever continues from here.
            self._cache.above(point.residual, point.penalty)
            yield point

    def _advance(self, point: Point, penalty: float) -> Point:
        if penalty >= self.penalty_max:
            return replace(self._null, penalty=penalty)
        steps = max(1, int(np.ceil(np.log(penalty / min(point.penalty, self.penalty_max)) / np.log(_WARM_RATIO))))
        for between in np.geomspace(min(point.penalty, self.penalty_max), penalty, steps + 1)[1:]:
            point = approach(self._cache, self._loss, point, float(between), _WARM_ACCURACY)
        return point

    def _probe(self, penalties: Sequence[float]) -> list[Point]:
        """Return rough solutions for a few of falling penalties, and fetch what these lack, in one scan.

        What scores highest without any feature is not what the solutions need: to find that out from rough ones spares
        a scan for all penalties, and solving them twice.
        """
        below = [penalty for penalty in penalties if penalty < self.penalty_max]
        if not below:
            return []
        some = sorted({round(at) for at in np.linspace(len(below) - 1, 0, _PROBES + 1)[:-1]})
        with self._stage("solve", 0, 0):
            rough = [
                minimise(self._cache, self._loss, point, _WARM_ACCURACY)
                for point in self._approach([below[at] for at in some])
            ]
        with self._stage("scan", 0, 1):
            residuals = np.stack([point.residual for point in rough], axis=2)
            scores = self._source.correlate(residuals) / self._source.n_samples
        with self._stage("fetch", 0, 1):
            closeness = (scores / [point.penalty for point in rough]).max(axis=1)
            closeness[self._cache.slots(np.arange(len(closeness))) >= 0] = 0.0
            wanted = np.flatnonzero(closeness > 1 - _NEAR)
            wanted = wanted[np.argsort(-closeness[wanted], kind="stable")]
            self._cache.require(np.sort(wanted[: self._cache.capacity - self._cache.size]))
        return rough

    def _exact(self, points: Iterable[Point], count: int) -> list[Point]:
        """Continue from rough solutions, by threads, to the optimum over the columns held.

        Every thread bounds scores on its own, so that no result depends on which other is finished first.
        """
        pool = ThreadPoolExecutor(self._cache.plan.threads, "solver")
        found: list[Point] = []
        try:
            with self._stage("solve", 0, 0):
                solving = [
                    pool.submit(minimise, self._cache.snapshot(), self._loss, point, self._accuracy) for point in points
                ]
            for future in solving:
                with self._stage("solve", len(found), count):
                    found.append(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _check(self, points: Sequence[Point]) -> list[_Checked]:
        """Scan, repair and measure until every point is certified, or no more passes are allowed."""
        checked: dict[int, _Checked] = {}
        pending = []
        for at, point in enumerate(points):
            if point.penalty >= self.penalty_max:
                note = (
                    "The penalty is at least penalty_max: no feature is active, exactly; the order is that of entering."
                )
                checked[at] = self._judge(point, self._null_scores, np.zeros_like(self._norms), note)
            else:
                pending.append(at)
        current = list(points)
        while pending:
            residuals = np.stack([current[at].residual for at in pending], axis=2)
            with self._stage("scan", 0, 1):
                scores = self._source.correlate(residuals) / self._source.n_samples
            with self._stage("repair", 0, len(pending)):
                self._fetch_violators(current, pending, scores)
            limits = [current[at].penalty * (1 + allowed_excess(current[at], self._accuracy)) for at in pending]
            violated = [at for at, limit, most in zip(pending, limits, scores.max(axis=0), strict=True) if most > limit]
            moved = dict(zip(violated, self._exact([current[at] for at in violated], len(violated)), strict=True))
            for done, at in enumerate(pending):
                with self._stage("repair", done, len(pending)):
                    own = np.ascontiguousarray(scores[:, done])
                    checked[at] = self._repair(current[at], moved.get(at, current[at]), own)
                current[at] = checked[at].point
            # What was not repaired was measured exactly: another scan would tell the same.
            pending = [at for at in pending if not checked[at].certified and checked[at].score_slack > 0]
            if self._passes >= _MOST_PASSES:
                break
        return [checked[at] for at in range(len(points))]

    def _fetch_violators(self, points: Sequence[Point], pending: Sequence[int], scores: Array) -> None:
        """Fetch at once what all points will ask for, if it fits."""
        wanted = np.zeros(self._source.n_features, dtype=np.bool_)
        for column, at in enumerate(pending):
            wanted[self._suspects(points[at], scores[:, column])[: self._cache.plan.fill]] = True
            wanted[points[at].support] = True
        features = np.flatnonzero(wanted)
        if len(features) <= self._cache.capacity:
            self._cache.require(features)

    def _suspects(self, point: Point, upper: Array) -> NDArray[np.int64]:
        """Return features not held, the highest first, down to (1 − δ) λ if any of them may violate the conditions."""
        outside = self._cache.slots(np.arange(self._source.n_features)) < 0
        limit = point.penalty * (1 + allowed_excess(point, self._accuracy))
        if not (upper[outside] > limit).any():
            return np.empty(0, dtype=np.int64)
        near = np.flatnonzero(outside & (upper > (1 - _NEAR) * point.penalty))
        return near[np.argsort(-upper[near], kind="stable")]

    def _repair(self, start: Point, point: Point, scores: Array) -> _Checked:
        """Let violators in; bound the scores of features not held by how far the residual moves since the scan."""
        slack = np.zeros_like(scores)
        while True:
            if point is not start:
                slack = self._norms * (spectral_norm(point.residual - start.residual) / self._source.n_samples)
            suspects = self._suspects(point, scores + slack)
            room = self._cache.capacity - len(point.support)
            if len(suspects) and room == 0:
                raise self._cache.plan.too_small(len(point.support) + LEAST_COLUMNS)
            if (point is not start and not 0 < len(suspects) <= min(room, _FETCH_AT_ONCE)) or not len(suspects):
                break
            self._cache.require(np.union1d(point.support, suspects[: min(room, self._cache.plan.fill)]))
            further = minimise(self._cache, self._loss, point, self._accuracy)
            if further is point:
                break
            point = further
        if point is not start:
            held = self._cache.held
            features = self._cache.features(held)
            scores[features] = np.linalg.norm(self._cache.correlate(held, point.residual), axis=1)
            slack[features] = 0.0
        return self._judge(point, scores, slack)

    def _judge(self, point: Point, scores: Array, slack: Array, note: str = "") -> _Checked:
        state = measure(self._cache, self._loss, point, float((scores + slack).max()))
        certified = state.gap <= self._accuracy.gap and state.kkt <= self._accuracy.kkt
        if not certified:
            note = f"Not certified after {self._passes} passes: the tolerances are not met over all features."
        relevance = np.minimum(scores / point.penalty - 1, 0.0)
        relevance[point.support] = np.linalg.norm(point.coef, axis=1)
        means = self._cache.means(self._cache.slots(point.support))
        widest = float(slack.max()) / point.penalty
        return _Checked(point, state, certified, point.intercept - means @ point.coef, relevance, widest, note)

    def _solution(self, checked: _Checked) -> Solution:
        point, state = checked.point, checked.state
        certificate = Certificate(
            certified=checked.certified,
            note=checked.note,
            penalty=point.penalty,
            penalty_max=self.penalty_max,
            objective=state.objective,
            null_objective=self._null_objective,
            duality_gap=state.gap,
            relative_gap=state.gap / self._null_objective,
            kkt_violation=state.kkt,
            score_slack=checked.score_slack,
            support_size=len(point.support),
            n_features=self._source.n_features,
            n_samples=self._source.n_samples,
            passes=self._passes,
            bytes_read=self._source.bytes_read - self._before[1],
            cached_columns=self._cache.size,
            cached_bytes=self._cache.size * self._cache.columns.itemsize * self._source.n_samples,
            projected_bytes=self._cache.plan.projected,
            process_peak_bytes=peak_bytes(),
            newton_steps=point.newton_steps,
            sweeps=point.sweeps,
            seconds={stage: round(seconds, 6) for stage, seconds in self._seconds.items()},
        )
        return Solution(point.support, point.coef, checked.intercept, checked.relevance, certificate)

    @property
    def _passes(self) -> int:
        return self._source.passes - self._before[0]

    @contextmanager
    def _stage(self, name: str, done: int, total: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began
        if total:
            self._progress(name, done + 1, total)
