"""Write docs/results.md: methods on the offline benchmark, the paper's experiments, and the figures to reach.

Everything is kept in the stores, so that a run that was stopped goes on, and a second run only writes the page. What
an evaluation lacks is named on the page. `docs/results-notes.md`, if it is there, is taken over as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks import experiments, pictures
from benchmarks.experiments import Evaluations, Stores
from benchmarks.results_page import (
    Found,
    accuracy_table,
    comparison_table,
    cost_table,
    goals,
    race_table,
)
from flows.console import say
from flows.reading import read_model
from pipeline.affinity import HEAD2TOE
from pipeline.evaluation import EvaluationConfig, Results, evaluate, load_results
from pipeline.methods import Settings
from pipeline.plots import plot_affinity
from pipeline.protocol import Evaluation
from store import open_store
from store.errors import Head2ToeError

DOCS = Path(__file__).parent.parent / "docs"
NOTES = "results-notes.md"
LONG_TASKS = 3
"""Tasks, one of each group if possible, on which Adam also takes its longer recipe."""
PACKAGES = ("torch", "timm", "numpy", "scikit-learn", "zarr", "dask")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DOCS.parent / "configs" / "offline.yaml")
    parser.add_argument("--root", help="where the stores lie, if not where the configuration says")
    parser.add_argument("--jobs", type=int, help="processes, each on a task of its own")
    parser.add_argument("--tasks", nargs="+", default=(), help="only these")
    parser.add_argument("--methods", nargs="+", default=(), help="only these")
    parser.add_argument("--stored", action="store_true", help="extract and evaluate nothing: report what is stored")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where results.md and images/ are written")
    options = parser.parse_args()
    given = {"root": options.root, "jobs": options.jobs}
    changes = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    try:
        whole = read_model(options.config, EvaluationConfig, str(options.config), changes)
        config = whole.only(options.tasks, options.methods)
        results = load_results(config) if options.stored else evaluate(config, say)
    except Head2ToeError as error:
        parser.exit(2, f"{error}\n")
    for failure in results.errors:
        say(f"error: {failure}")
    found = collect(results)
    if not found.evaluations:
        parser.exit(2, "there are no results to report.\n")
    build(found, options.docs, list_missing(whole, found))
    say(f"wrote {options.docs / 'results.md'}")


class Page:
    """The page's sections, and the pictures beside it.

    Parameters
    ----------
    docs : Path
        Folder of the page.
    found : Found
        What it reports.
    """

    def __init__(self, docs: Path, found: Found) -> None:
        self.docs, self.found = docs, found
        self.sections: list[str] = []
        self.start = time.perf_counter()
        (docs / "images").mkdir(parents=True, exist_ok=True)

    def add(self, title: str, *paragraphs: str) -> None:
        self.sections.append("\n\n".join([f"## {title}", *paragraphs]))

    def picture(self, name: str, axes: Axes, what: str) -> str:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(self.docs / "images" / f"results-{name}.png", dpi=110)
        return f"![{what}](images/results-{name}.png)"

    def say(self, what: str) -> None:
        print(f"{time.perf_counter() - self.start:6.0f} s  {what}", flush=True)

    def write(self, head: str) -> None:
        (self.docs / "results.md").write_text("\n\n".join([head, *self.sections]) + "\n", encoding="utf-8")


def build(found: Found, docs: Path, missing: Sequence[str]) -> None:
    """Run the experiments on what was evaluated, and write the page."""
    page = Page(docs, found)
    exact = _of_first_seed(found, HEAD2TOE)
    adam_name = _adam(found)
    adam = _of_first_seed(found, adam_name) if adam_name else {}
    both = {task: found.stores[task] for task in exact if task in adam}
    races = experiments.racing(both, exact, adam, page.say)
    page.add("Figures to reach", goals(found, races))
    notes = docs / NOTES
    if notes.exists():
        page.add("What we found", notes.read_text(encoding="utf-8").strip())
    page.add("Accuracy", "Percent of the test images, with the settings that the folds chose.", accuracy_table(found))
    if exact:
        _methods(page)
        _selected(page, exact)
    if races:
        _race(page, races, both, exact, adam)
    page.write(_head(found, missing))


def _methods(page: Page) -> None:
    found = page.found
    page.add(
        "Head2Toe against the others",
        "Differences of accuracy on the same test images: their mean over tasks ± its standard error, the least and "
        "the most; then on how many tasks they are told apart by McNemar's exact test at 5 %, of the first seed and "
        "without a correction for asking about several tasks.",
        comparison_table(found),
    )
    page.add(
        "Cost",
        "Seconds were measured while each method ran, `jobs` tasks at a time, each with its share of the cores. The "
        "search tries every setting on five folds; the final fit is one setting on all training images, with the "
        "test. Features come from stores, which cost "
        f"{_extraction(found.stores)} once for all methods that use them, and are not counted here; Fine-tuning and "
        "Scratch read images instead. *Read* is what the final fit and test read of the store. *To keep* is what a "
        "task adds to the backbone, in float32.",
        cost_table(found),
    )
    if found.affinities:
        page.add(
            "Domain affinity",
            "The less the source task has to do with a task, the more there is to gain from other layers.",
            page.picture("affinity", plot_affinity(found.affinities), "Gain against domain affinity"),
        )


def _selected(page: Page, exact: Evaluations) -> None:
    """Add the experiments on which features are kept."""
    stores = {task: page.found.stores[task] for task in exact}
    groups = [page.found.groups[task] for task in exact]
    tried = experiments.fractions(list(exact.values()))
    settings = experiments.common(exact)
    page.add(
        "How many features",
        "Accuracy on the folds by the fraction F of features kept, all other settings chosen for each F.",
        page.picture(
            "fractions", pictures.plot_fractions(tried, experiments.by_fraction(exact), groups), "Accuracy by fraction"
        ),
    )
    points = experiments.skipping(stores, settings, page.say)
    means = ", ".join(f"{mean:.1f}" for mean in points.mean(0))
    fixed = (
        "Settings are the same for all tasks, those that the folds of all tasks together like best: "
        f"{_shown(settings)}."
    )
    page.add(
        "Skipping the best features",
        f"Features are divided by rank into {experiments.GROUPS} groups of equal size, and a head is fitted on one "
        f"group alone. {fixed} Mean accuracy after {', '.join(map(str, experiments.OFFSETS))} groups: {means} %.",
        page.picture("offsets", pictures.plot_offsets(points, groups), "Accuracy as the best features are skipped"),
    )
    if len(stores) > 1:
        page.add("Features of another task", *_donors(page, stores, settings))
    points = experiments.by_layers(stores, settings, tried, page.say)
    page.add(
        "Features or whole layers",
        "The same number of features is kept either by their own relevance, or layer by layer in the order of mean "
        "relevance, whole but for the last. The same settings. Mean accuracy by features and by layers: "
        + "; ".join(f"{a:.1f} and {b:.1f} % at F = {f:g}" for f, (a, b) in zip(tried, points.mean(0), strict=True))
        + ".",
        page.picture("layers", pictures.plot_layers(tried, points), "Features against whole layers"),
    )


def _donors(page: Page, stores: Stores, settings: Settings) -> tuple[str, str]:
    points = experiments.donating(stores, settings, page.say)
    lost = (points - np.diagonal(points)[:, None])[~np.eye(len(points), dtype=bool)]
    text = (
        f"Each task with the features selected on each other task, F = {settings['fraction']:g}, and the same settings "
        f"as above. Another task's selection changes accuracy by {lost.mean():+.1f} points on average, from "
        f"{lost.min():+.1f} to {lost.max():+.1f}; it is worse than the task's own in {(lost < 0).sum()} of {lost.size} "
        "pairs."
    )
    return text, page.picture("donors", pictures.plot_donors(points, list(stores)), "Selections of other tasks")


def _race(page: Page, races: Sequence[experiments.Race], stores: Stores, exact: Evaluations, adam: Evaluations) -> None:
    first = {page.found.groups[task]: task for task in reversed(list(stores))}
    few = {task: stores[task] for task in list(dict.fromkeys([*first.values(), *stores]))[:LONG_TASKS]}
    longer = experiments.racing_long(few, exact, adam, page.say)
    page.add(
        "Exact or Adam selection",
        "The same F, the same T, and the same kind of head, that of exact selection; each ranks features as its own "
        "folds chose. Seconds are those of ranking all features once on all training images, mean over tasks, from a "
        "store that the operating system may hold in memory.",
        race_table(races),
        f"Adam of {experiments.LONG:,} steps, on {', '.join(few)}, at the F that Adam's folds chose:",
        race_table(longer),
    )


def collect(results: Results) -> Found:
    """Return what the page reports of an evaluation."""
    tasks = {result.task.name: result for result in results.tasks if result.store}
    evaluations = {
        method: {name: found for name, result in tasks.items() if (found := results.evaluations(result, method))}
        for method in results.config.methods
    }
    return Found(
        {name: result.task.group for name, result in tasks.items()},
        {name: open_store(result.store["uri"]) for name, result in tasks.items()},
        {method: by_task for method, by_task in evaluations.items() if by_task},
    )


def list_missing(config: EvaluationConfig, found: Found) -> list[str]:
    """Return what of a configuration there is no result of, a phrase per task or method."""
    tasks = [task.name for task in config.all_tasks if task.name not in found.groups]
    phrases = [f"tasks {', '.join(tasks)}"] if tasks else []
    for method in config.methods:
        lacking = [task for task in found.groups if task not in found.evaluations.get(method, {})]
        if lacking:
            where = "" if len(lacking) == len(found.groups) else f" on {', '.join(lacking)}"
            phrases.append(f"{method}{where}")
    return phrases


def _of_first_seed(found: Found, method: str) -> dict[str, Evaluation]:
    known = found.evaluations.get(method, {})
    return {task: known[task][0] for task in found.groups if task in known}


def _adam(found: Found) -> str | None:
    """Return the method that selects by the paper's recipe, which is the one whose ranking has steps."""
    for method, by_task in found.evaluations.items():
        if any("steps" in seeds[0].settings.get("ranking", {}) for seeds in by_task.values()):
            return method
    return None


def _shown(settings: Settings) -> str:
    ranking = ", ".join(f"{k} {v:g}" for k, v in settings["ranking"].items() if v is not None and k != "tolerance")
    size = "" if settings["target_size"] is None else f"T = {settings['target_size']}, "
    return f"{size}{settings['normalization']}, {ranking}"


def _extraction(stores: Stores) -> str:
    seconds = [
        sum(sum(store.record(split.name, block).seconds.values()) for block in range(split.n_blocks))
        for store in stores.values()
        for split in store.splits.values()
    ]
    size = np.mean([store.n_bytes for store in stores.values()]) / 1e6
    return f"{sum(seconds) / len(stores):.0f} s and {size:.0f} MB a task"


def _head(found: Found, missing: Sequence[str]) -> str:
    seeds = max((len(s) for by_task in found.evaluations.values() for s in by_task.values()), default=0)
    lines = [
        "# Results",
        f"{len(found.evaluations)} methods on {len(found.groups)} tasks of [the offline benchmark](tasks.md), by "
        f"[the protocol](protocol.md): five folds of the training images choose all settings, and test images are "
        f"asked once. {seeds} seed{'s' if seeds != 1 else ''}. `make results` writes this page from what lies in the "
        "stores, and computes what does not.",
        f"{datetime.now(UTC).date().isoformat()}; {_processor()}; Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        + ".",
    ]
    if missing:
        lines.append("**Not run, so not on this page:** " + "; ".join(missing) + ".")
    return "\n\n".join(lines)


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    models = (
        [line for line in known.read_text().splitlines() if line.startswith("model name")] if known.exists() else []
    )
    name = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{os.cpu_count()} cores of {name}"


if __name__ == "__main__":
    main()
