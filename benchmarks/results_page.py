"""Tables and figures of the result page, as Markdown, from evaluations of methods on tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.experiments import Race
from pipeline.affinity import HEAD2TOE, LINEAR, SCRATCH, TaskAffinity, correlate_affinity, domain_affinity
from pipeline.comparison import compare
from pipeline.protocol import Evaluation, mean_and_deviation
from store.activations import ActivationStore

FINE_TUNING = "Fine-tuning"
FOREIGN = 5.0
"""Points of domain affinity below which a task is far from the source task."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Found:
    """What methods achieve on tasks.

    Attributes
    ----------
    groups : dict of str to str
        Group of every task, in the page's order.
    stores : dict of str to ActivationStore
        Of every task.
    evaluations : dict
        By method, then by task: one per seed. A task may be missing.
    """

    groups: Mapping[str, str]
    stores: Mapping[str, ActivationStore]
    evaluations: Mapping[str, Mapping[str, Sequence[Evaluation]]]

    def accuracy(self, method: str, task: str) -> float:
        """Return the mean over seeds, in percent; not a number if it is missing."""
        found = self.evaluations.get(method, {}).get(task)
        return 100 * mean_and_deviation(found)[0] if found else float("nan")

    @property
    def affinities(self) -> list[TaskAffinity]:
        """Affinity and gain of every task that has them."""
        needed = (LINEAR, SCRATCH, HEAD2TOE)
        known = {task: {m: self.accuracy(m, task) / 100 for m in needed} for task in self.groups}
        whole = {task: by for task, by in known.items() if not np.isnan(list(by.values())).any()}
        return domain_affinity(whole, self.groups)

    def less(self, a: str, b: str) -> dict[str, float]:
        """Return by how many points one method is above another, for every task that both have."""
        both = {task: self.accuracy(a, task) - self.accuracy(b, task) for task in self.groups}
        return {task: points for task, points in both.items() if not np.isnan(points)}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns but for the first are to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(found: Found) -> str:
    """Return tasks × methods, the means of the groups, and both kinds of mean over all tasks."""
    methods = list(found.evaluations)

    def cell(method: str, task: str) -> str:
        known = found.evaluations[method].get(task)
        if not known:
            return "–"
        mean, deviation = mean_and_deviation(known)
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")

    def mean(method: str, tasks: Sequence[str]) -> float:
        return float(np.mean([found.accuracy(method, task) for task in tasks]))

    def shown(values: Iterable[float]) -> list[str]:
        return ["–" if np.isnan(value) else f"**{value:.1f}**" for value in values]

    rows, members = [], {}
    for group in dict.fromkeys(found.groups.values()):
        members[group] = [task for task in found.groups if found.groups[task] == group]
        rows += [[task, *(cell(method, task) for method in methods)] for task in members[group]]
        rows.append([f"**{group}, mean**", *shown(mean(method, members[group]) for method in methods)])
    rows.append(["**mean of tasks**", *shown(mean(method, list(found.groups)) for method in methods)])
    of_groups = (float(np.mean([mean(method, tasks) for tasks in members.values()])) for method in methods)
    rows.append(["**mean of group means**", *shown(of_groups)])
    return table(["test accuracy, %", *methods], rows)


def comparison_table(found: Found) -> str:
    """Return Head2Toe against each other method, on the same test images."""
    rows = []
    for method in found.evaluations:
        points = np.array(list(found.less(HEAD2TOE, method).values()))
        if method == HEAD2TOE or not len(points):
            continue
        tasks = [task for task in found.groups if task in found.less(HEAD2TOE, method)]
        pairs = [(found.evaluations[HEAD2TOE][task][0].hits, found.evaluations[method][task][0].hits) for task in tasks]
        told = [c for c in (compare(a, b) for a, b in pairs) if c.p_value < SIGNIFICANT]
        better = sum(c.difference > 0 for c in told)
        spread = f" ± {points.std(ddof=1) / np.sqrt(len(points)):.1f}" if len(points) > 1 else ""
        counts = [str(n) for n in (better, len(told) - better, len(points) - len(told))]
        rows.append([method, f"{points.mean():+.1f}{spread}", f"{points.min():+.1f}", f"{points.max():+.1f}", *counts])
    head = ["Head2Toe less …", "mean, points", "least", "most", "better on", "worse on", "not told apart"]
    return table(head, rows)


def cost_table(found: Found) -> str:
    """Return what each method costs, as a mean over its tasks."""
    rows = []
    for method, by_task in found.evaluations.items():
        every = [evaluation for seeds in by_task.values() for evaluation in seeds]

        def mean(of: Callable[[Evaluation], float | None], shown: str, every: Sequence[Evaluation] = every) -> str:
            values = [of(evaluation) for evaluation in every]
            known = [value for value in values if value is not None]
            return format(float(np.mean(known)), shown) if len(known) == len(values) and known else "–"

        rows.append(
            [
                method,
                mean(lambda e: len(e.points), ",.0f"),
                mean(lambda e: e.seconds["search"], ",.1f"),
                mean(lambda e: e.seconds["final"], ",.2f"),
                mean(lambda e: _megabytes(e.facts.get("bytes_read")), ",.1f"),
                mean(lambda e: e.facts.get("features"), ",.0f"),
                mean(lambda e: e.facts.get("parameters"), ",.0f"),
                mean(lambda e: _megabytes(_kept(e)), ",.3f"),
            ]
        )
    head = ["mean over tasks", "settings tried", "search, s", "final fit and test, s"]
    return table([*head, "read, MB", "features", "parameters trained", "to keep, MB"], rows)


def _kept(evaluation: Evaluation) -> float | None:
    """Return the bytes that a task adds to the backbone: weights in float32, and 8 for the index of a feature."""
    parameters = evaluation.facts.get("parameters")
    return None if parameters is None else 4 * parameters + 8 * evaluation.facts.get("features", 0)


def _megabytes(n_bytes: float | None) -> float | None:
    return None if n_bytes is None else n_bytes / 1e6


def goals(found: Found, races: Sequence[Race]) -> str:
    """Return the figures to reach, those found, and whether they are; what cannot be said is said to be missing."""
    gain, over_tuning = found.less(HEAD2TOE, LINEAR), found.less(HEAD2TOE, FINE_TUNING)
    tasks = found.affinities
    near = [task.gain for task in tasks if task.affinity >= FOREIGN]
    far = [over_tuning[t.task] for t in tasks if t.affinity < FOREIGN and t.task in over_tuning]
    worst = -min(near) if near else None
    equal = _mean(race.exact - race.adam for race in races)
    ours, theirs = sum(race.exact_seconds for race in races), sum(race.adam_seconds for race in races)
    cheap = _cost_ratio(found)
    rows = [
        _at_least("mean gain, Head2Toe less Linear, points", _mean(gain.values()), 8.5, gain),
        _at_most("Spearman correlation of domain affinity and gain", correlate_affinity(tasks).rho, -0.7, tasks),
        _at_least("Head2Toe less Fine-tuning, mean over tasks, points", _mean(over_tuning.values()), 0, over_tuning),
        _at_least(f"the same on tasks of affinity below {FOREIGN:g}, points", _mean(far), 3, far),
        _at_most(f"worst loss against Linear on a task of affinity {FOREIGN:g} or more, points", worst, 1, near),
        _at_least("exact less Adam selection at equal F, mean accuracy, points", equal, 0, {r.task for r in races}),
        _at_most(
            "seconds of exact selection over those of Adam",
            ours / theirs if races else None,
            1 / 5,
            {r.task for r in races},
        ),
        _at_most("Head2Toe's seconds after extraction over Fine-tuning's", cheap, 1 / 20, over_tuning),
    ]
    return table(["figure", "wanted", "found", "tasks", ""], rows)


def _cost_ratio(found: Found) -> float | None:
    """Return seconds of search, final fit and test of Head2Toe over those of Fine-tuning, on tasks that both have."""
    tasks = found.less(HEAD2TOE, FINE_TUNING)
    total = {
        method: sum(sum(e.seconds.values()) for task in tasks for e in found.evaluations[method][task])
        for method in (HEAD2TOE, FINE_TUNING)
        if tasks
    }
    return total[HEAD2TOE] / total[FINE_TUNING] if total else None


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _at_least(what: str, value: float | None, bound: float, of: Iterable[object]) -> list[str]:
    return _goal(what, value, f"at least {bound:g}", value is not None and value >= bound, of)


def _at_most(what: str, value: float | None, bound: float, of: Iterable[object]) -> list[str]:
    shown = f"at most 1/{1 / bound:g}" if 0 < bound < 1 else f"at most {bound:g}"
    return _goal(what, value, shown, value is not None and value <= bound, of)


def _goal(what: str, value: float | None, wanted: str, reached: bool, of: Iterable[object]) -> list[str]:
    if value is None or np.isnan(value):
        return [what, wanted, "–", "0", "not measured"]
    places = 3 if wanted.startswith("at most 1/") else 2
    return [what, wanted, f"{value:.{places}f}", str(len(list(of))), "reached" if reached else "**not reached**"]


def race_table(races: Sequence[Race]) -> str:
    """Return exact against Adam selection by fraction, and over all of them."""
    fractions = sorted({race.fraction for race in races})
    parts = [(f"F = {f:g}", [race for race in races if race.fraction == f]) for f in fractions]
    rows = []
    for label, part in [*parts, ("**all**", list(races))]:
        exact, adam, ours, theirs = np.array([race[2:] for race in part]).mean(0)
        figures = [f"{exact:.1f}", f"{adam:.1f}", f"{exact - adam:+.1f}", f"{ours:.2f}", f"{theirs:.2f}"]
        rows.append([label, str(len({race.task for race in part})), *figures, f"{ours / theirs:.2f}"])
    head = ["", "tasks", "exact, %", "Adam, %", "difference", "exact, s", "Adam, s", "ratio of seconds"]
    return table(head, rows)
