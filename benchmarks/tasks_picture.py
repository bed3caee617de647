"""Draw docs/images/tasks.jpg: images of every task of the offline benchmark, and of the source task."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from pipeline.datasets import load_data
from pipeline.offline.drawing import SIDE
from pipeline.offline.source import N_CLASSES, SEED, shape_classes
from pipeline.offline.tasks import STREAMS, TASKS, Task

EACH = 6
WHERE = Path(__file__).parent.parent / "docs" / "images" / "tasks.jpg"
Row = tuple[str, list[np.ndarray], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WHERE)
    parser.add_argument("--split", choices=[split for split in STREAMS if split != "test"], default="train")
    options = parser.parse_args()
    shown = [source(), *(target(task, options.split) for task in TASKS.values())]
    height = (len(shown) + 1) // 2
    figure = plt.figure(figsize=(11, height * 0.84))
    for number, row in enumerate(shown):
        left, top = 0.093 + 0.502 * (number // height), 1 - (number % height + 0.2) / height
        draw(figure, row, left, top - 0.78 / height, 0.4 / EACH, 0.78 / height)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Noise takes ten times as much room in a file without loss.
    figure.savefig(options.out, dpi=96, pil_kwargs={"quality": 80})


def source() -> Row:
    labels = list(range(0, N_CLASSES, N_CLASSES // EACH))[:EACH]
    images = shape_classes(SEED).images(labels, labels, 0)
    return f"source task\n{N_CLASSES} classes", list(images), [str(label + 1) for label in labels]


def target(task: Task, split: str) -> Row:
    """Return images of classes spread over all, first ones of their classes, and further ones if there are few."""
    classes = len(task.class_names)
    wanted = [i * max(1, classes // EACH) for i in range(EACH)]
    if task.draw is None:
        data = load_data(f"offline/{task.name}").splits["train"]
        found = [int(np.flatnonzero(data.labels == label)[0]) for label in wanted]
        images, labels = [np.asarray(data.image(i).resize((SIDE, SIDE))) for i in found], data.labels[found]
    else:
        drawn, labels = task.images(split, wanted)
        images = list(drawn)
    return f"{task.name}\n{task.group}, {classes}", images, [task.class_names[label] for label in labels]


def draw(figure: plt.Figure, row: Row, left: float, bottom: float, width: float, height: float) -> None:
    title, images, labels = row
    figure.text(left - 0.005, bottom + height / 2, title, ha="right", va="center", fontsize=8)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        axis = figure.add_axes((left + i * width, bottom, width * 0.96, height * 0.96))
        axis.imshow(image)
        axis.axis("off")
        axis.set_title(label, fontsize=7, pad=1.5)


if __name__ == "__main__":
    main()
