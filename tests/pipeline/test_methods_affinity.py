"""Affinity is Linear − Scratch, gain is Head2Toe − Linear, and their rank correlation says for how many tasks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.affinity import Correlation, TaskAffinity, correlate_affinity, domain_affinity
from pipeline.plots import plot_affinity
from pipeline.protocol import Evaluation
from store.errors import InvalidInputError


def evaluation(accuracy: float) -> Evaluation:
    return Evaluation("m", "", {}, 0.0, accuracy, np.zeros(1, bool), [], {}, {}, False)


def test_affinity_and_gain_are_differences_of_test_accuracies_in_points() -> None:
    results = {
        "pets": {"Linear": 0.9, "Scratch": 0.2, "Head2Toe": 0.89},
        "location": {name: evaluation(a) for name, a in {"Linear": 0.3, "Scratch": 0.7, "Head2Toe": 0.6}.items()},
    }
    first, second = domain_affinity(results, {"pets": "natural"})
    assert (first.task, first.group) == ("pets", "natural")
    assert (first.affinity, first.gain) == pytest.approx((70, -1))
    assert second.group == ""
    assert (second.affinity, second.gain) == pytest.approx((-40, 30))


def test_a_task_without_one_of_the_methods_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"task 'pets' has no result of method 'Scratch'.* 'Scrtch'"):
        domain_affinity({"pets": {"Linear": 0.9, "Scrtch": 0.2, "Head2Toe": 0.89}})


def test_the_papers_figure_has_the_papers_correlation() -> None:
    """Figure 1, digitised: mean gain +8.5 points, Spearman −0.87 over 19 tasks."""
    affinity = [40.9, 50.4, 43.7, 42.7, 74.4, -8.8, 32.5, 7.6, 7.0, 31.6, 2.2, 2.2, -16.6, 1.0, 30.8, -45.2, -0.6]
    gain = [-4.5, 0.7, 0.7, 3.4, -0.7, 34.1, -4.3, 1.3, 2.9, 3.4, 9.4, 11.3, 19.4, 7.1, 9.0, 23.7, 8.6]
    affinity, gain = [*affinity, -0.8, -11.3], [*gain, 19.7, 16.3]
    tasks = [TaskAffinity(str(i), "", a, g) for i, (a, g) in enumerate(zip(affinity, gain, strict=True))]
    found = correlate_affinity(tasks)
    assert found.n == 19
    assert found.rho == pytest.approx(-0.87, abs=0.005)
    assert found.p_value < 1e-5
    assert str(found) == "Spearman -0.87, n = 19"
    assert np.mean(gain) == pytest.approx(8.5, abs=0.05)


def test_few_or_equal_tasks_have_no_correlation() -> None:
    tasks = [TaskAffinity(str(i), "", 5.0, float(i)) for i in range(4)]
    assert correlate_affinity(tasks) == Correlation(None, None, 4)
    assert correlate_affinity(tasks[:2]) == Correlation(None, None, 2)
    assert str(correlate_affinity(tasks)) == "Spearman undefined, n = 4"


@pytest.mark.slow
def test_the_picture_has_a_named_point_per_task_and_the_groups() -> None:
    tasks = [TaskAffinity(f"t{i}", "ab"[i % 2], 10.0 * i, -3.0 * i) for i in range(6)]
    axes = plot_affinity(tasks)
    assert sorted(text.get_text() for text in axes.texts) == [task.task for task in tasks]
    drawn = np.concatenate([points.get_offsets() for points in axes.collections])
    assert sorted(map(tuple, drawn.tolist())) == sorted((task.affinity, task.gain) for task in tasks)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert "Spearman -1.00, n = 6" in axes.get_title()
    assert plot_affinity(tasks[:1]).get_legend() is not None
    assert plot_affinity([TaskAffinity("alone", "", 1.0, 1.0)], axes) is axes
