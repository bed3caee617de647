"""Pictures of accuracies: by the fraction of features kept, and of gain against domain affinity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.affinity import TaskAffinity, correlate_affinity
from pipeline.plots.style import GROUPS, MARKERS, name_points, name_values, new_axes, plain
from store.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.protocol import Evaluation  # with it come all methods, and timm


def plot_fractions(
    accuracies: Mapping[str, Evaluation | Mapping[float, float] | float], axes: Axes | None = None
) -> Axes:
    """Draw accuracy by the fraction of features kept, a line for each of several variants, tasks or methods.

    Parameters
    ----------
    accuracies : mapping of str
        By name: accuracy, from 0 to 1, by fraction; or an `Evaluation`, of which the best accuracy on held-out folds at
        each fraction is drawn; or one accuracy that depends on no fraction, such as that of Linear, a horizontal line.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture, in percent; an evaluation's chosen setting, by which it is tested, is the highest point of its
        line.

    Raises
    ------
    InvalidInputError
        If nothing has a fraction.
    """
    lines = {name: _by_fraction(result) for name, result in accuracies.items()}
    fractions = sorted({fraction for line in lines.values() if isinstance(line, Mapping) for fraction in line})
    if not fractions:
        raise InvalidInputError(
            "no accuracy of any fraction is given; give at least one, as {'standardize': {0.05: 0.9}}."
        )
    axes = axes or new_axes()
    for number, (name, line) in enumerate(lines.items()):
        color, marker = GROUPS[number % len(GROUPS)], MARKERS[(number + number // len(GROUPS)) % len(MARKERS)]
        if isinstance(line, Mapping):
            x = sorted(line)
            axes.plot(x, [100 * line[f] for f in x], color=color, marker=marker, markersize=4.5, label=name)
        else:
            axes.axhline(100 * line, color=color, linewidth=1.2, linestyle="--", label=name)
    name_values(axes, fractions)
    axes.set_xlabel("fraction F of all features kept")
    folds = not any(isinstance(result, Mapping | float | int) for result in accuracies.values())
    axes.set_ylabel("accuracy on held-out folds, %" if folds else "accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return plain(axes)


def _by_fraction(result: Evaluation | Mapping[float, float] | float) -> Mapping[float, float] | float:
    """Return accuracy by fraction, or the one accuracy of what has no fractions."""
    if isinstance(result, Mapping | float | int):
        return result
    best: dict[float, float] = {}
    for point in result.points:
        if (fraction := point["settings"].get("fraction")) is not None:
            best[fraction] = max(best.get(fraction, 0.0), point["accuracy"])
    return best or result.validation_accuracy


def plot_affinity(tasks: Sequence[TaskAffinity], axes: Axes | None = None) -> Axes:
    """Draw gain against domain affinity, a named point per task, as figure 1 of the paper does.

    Parameters
    ----------
    tasks : sequence of TaskAffinity
        At least one.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture; its title gives Spearman's correlation and the number of tasks.
    """
    axes = axes or new_axes(7.0, 4.6)
    axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    for number, group in enumerate(dict.fromkeys(task.group for task in tasks)):
        own = [task for task in tasks if task.group == group]
        color, marker = GROUPS[number % len(GROUPS)], MARKERS[number % len(MARKERS)]
        axes.scatter(
            [t.affinity for t in own], [t.gain for t in own], s=26, color=color, marker=marker, label=group or None
        )
    axes.margins(0.1, 0.12)
    axes.set_xlabel("domain affinity: accuracy of Linear − Scratch, points")
    axes.set_ylabel("gain: accuracy of Head2Toe − Linear, points")
    axes.set_title(f"gain against domain affinity ({correlate_affinity(tasks)})", fontsize=10)
    if any(task.group for task in tasks):
        axes.legend(frameon=False, fontsize=8)
    name_points(axes, [task.task for task in tasks], [(task.affinity, task.gain) for task in tasks])
    return plain(axes)
