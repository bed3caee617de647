"""Batches are computed as the store's settings say, whatever the device's memory, and what it took is told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pipeline import block_writing, tuning
from pipeline.account import Account, constant_layers
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.forwarding import Forward
from pipeline.loading import Loader
from pipeline.planning import Plan, plan_extraction
from pipeline.settings import Settings
from pipeline.taps import plan_layers, resolve_taps
from store import create_store, open_store
from store.errors import InterruptedExtractionError, InvalidInputError
from store.records import BlockRecord
from store.spec import PoolingSpec

CPU = torch.device("cpu")
N_TRAIN, N_TEST = 24, 8


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ExtractionParameters:
    """32 images of noise, in blocks of 8 and batches of 4."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_TRAIN + N_TEST, 32, 32, 3), np.uint8)
    labels = np.arange(len(images)) % 4
    data = tmp_path_factory.mktemp("data") / "data.npz"
    train, test = slice(N_TRAIN), slice(N_TRAIN, None)
    np.savez(data, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
    return ExtractionParameters(
        backbone="test_resnet", weights="random:0", data=str(data), image_size=32, batch_size=4, block_size=8
    )


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> str:
    """The store of these images."""
    return extract(small, str(tmp_path_factory.mktemp("whole"))).uri


def contents(uri: str) -> dict[str, bytes]:
    return {str(p.relative_to(uri)): p.read_bytes() for p in sorted(Path(uri).rglob("c/*/*"))}


def features(uri: str) -> np.ndarray:
    store = open_store(uri)
    return store.columns("train", np.arange(store.n_features))


def fails(monkeypatch, when: Callable[[int], bool], error: BaseException) -> None:
    """Let batches whose number, counted from 0, is such that `when` says so, fail."""
    numbers = itertools.count()

    class Failing(Forward):
        def __call__(self, batch: torch.Tensor, out: torch.Tensor) -> Callable[[], None]:
            if when(next(numbers)):
                raise error
            return super().__call__(batch, out)

    monkeypatch.setattr(block_writing, "Forward", Failing)


# ---------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_batches_that_do_not_fit_are_halved_from_that_block_on(small, whole, tmp_path, monkeypatch, error) -> None:
    """Pass 3 is the second batch of block 1: blocks before it keep their bytes, its own are of halved batches."""
    fails(monkeypatch, lambda number: number == 3, error)
    done = extract(small, str(tmp_path / "halved"))
    monkeypatch.undo()
    store = open_store(done.uri)
    sizes = [store.record(s.name, block).batch_size for s in store.splits.values() for block in range(s.n_blocks)]
    assert sizes == [4, 2, 2, 2]
    assert "batches of 4 images did not fit into memory; they were halved to 2." in done.notes
    twos = extract(small.model_copy(update={"batch_size": 2}), str(tmp_path / "twos"))
    fours, halves, halved = contents(whole), contents(twos.uri), contents(done.uri)
    for key, value in halved.items():
        first = key.endswith("/0") and key.startswith("train")
        assert value == (fours if first else halves)[key]


def test_an_image_that_does_not_fit_is_explained_and_what_is_whole_stays(small, tmp_path, monkeypatch) -> None:
    fails(monkeypatch, lambda number: number >= 2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InvalidInputError, match="not even one image at a time fits"):
        extract(small, str(tmp_path))
    monkeypatch.undo()
    assert extract(small, str(tmp_path)).reused == 8


def test_other_errors_of_the_backbone_are_not_taken_for_want_of_memory(small, tmp_path, monkeypatch) -> None:
    fails(monkeypatch, lambda number: number == 1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        extract(small, str(tmp_path))


def test_few_blocks_are_in_memory_however_slow_the_disk(small, tmp_path, monkeypatch) -> None:
    alive, most = set(), 0
    filling, commit = block_writing.Filling, block_writing._Run._commit

    class Watched(filling):
        def forward(self, *args):
            nonlocal most
            alive.add(self.key)
            most = max(most, len(alive))
            return super().forward(*args)

    def slow(run, block):
        block_writing.time.sleep(0.2)
        try:
            return commit(run, block)
        finally:
            alive.discard(block.key)

    monkeypatch.setattr(block_writing, "Filling", Watched)
    monkeypatch.setattr(block_writing._Run, "_commit", slow)
    done = extract(small, str(tmp_path))
    assert 2 <= most <= block_writing.LOOK_AHEAD + 2
    assert done.bottleneck.startswith("writing took")
    assert done.bottleneck.endswith("a smaller target size would help.")


def test_batch_sizes_are_tried_until_it_does_not_pay_or_memory_ends(small, tmp_path, monkeypatch) -> None:
    plan, gpu = plan_extraction(small, str(tmp_path)), torch.device("cuda")
    speeds = {16: 100.0, 32: 190.0, 64: 250.0, 128: 255.0, 256: 900.0}

    def found(most: int) -> int:
        def measured(plan: Plan, settings: Settings, device: torch.device) -> float:
            if settings.batch_size > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return speeds[settings.batch_size]

        monkeypatch.setattr(tuning, "images_per_second", measured)
        return tuning.find_batch_size(plan, Settings(batch_size=1), gpu)

    assert [found(most) for most in (256, 32, 1)] == [64, 32, 16]
    assert tuning.find_batch_size(plan, Settings(batch_size=1), CPU) == tuning.CPU_BATCH_SIZE
    monkeypatch.undo()
    assert tuning.images_per_second(plan, Settings(batch_size=4), CPU) > 0


# ---------------------------------------------------------------- settings


def test_the_cpu_computes_in_float32_and_a_gpu_in_half_precision_if_that_is_stored(small, tmp_path) -> None:
    plan = plan_extraction(small, str(tmp_path))

    def autocast(device: str, **changes: str) -> str:
        return tuning.settle(plan, small.model_copy(update=changes), [torch.device(device)], None).autocast

    assert autocast("cpu") == "none"
    assert autocast("cuda") == "fp16"
    assert autocast("cuda", dtype="float32") == "none"
    assert autocast("cuda", autocast="bf16") == "bf16"


@pytest.mark.slow
def test_autocast_is_no_identity_and_a_resumed_store_keeps_its_own(small, tmp_path) -> None:
    half = ExtractionParameters.model_validate(small.model_dump() | {"autocast": "bf16"})

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting"):
            raise KeyboardInterrupt

    undisturbed = extract(half, str(tmp_path / "half"))
    with pytest.raises(InterruptedExtractionError):
        extract(half, str(tmp_path / "stopped"), stop)
    resumed = extract(small, str(tmp_path / "stopped"))
    assert resumed.reused > 0
    assert contents(resumed.uri) == contents(undisturbed.uri)
    explicit = extract(half.model_copy(update={"autocast": "none"}), str(tmp_path / "stopped"))
    assert "the store was begun with autocast bf16 and keeps it" in " ".join(explicit.notes)


def test_half_precision_stays_within_its_tolerance_of_float32(small, whole, tmp_path) -> None:
    """bf16 has 8 bits: a layer's features are within 5 % of their range, far more than nothing and less than noise."""
    half = extract(small.model_copy(update={"autocast": "bf16"}), str(tmp_path))
    ours, theirs = features(half.uri), features(whole)
    error = np.abs(ours - theirs)
    scale = np.linalg.norm(theirs) / np.sqrt(theirs.size)
    assert 0 < error.mean() < 0.02 * scale
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_memory_formats_give_the_same_features(small, whole, tmp_path) -> None:
    plain = extract(small.model_copy(update={"channels_last": False}), str(tmp_path))
    np.testing.assert_allclose(features(plain.uri), features(whole), rtol=2e-3, atol=2e-3)
    assert open_store(plain.uri).provenance["channels_last"] is False


def test_layers_are_written_where_they_belong(small) -> None:
    model = timm.create_model("test_vit").eval()
    layers = plan_layers(model, resolve_taps(model), PoolingSpec(target_sizes=(64,)), (3, 160, 160))
    batch = torch.rand(3, 3, 160, 160)
    block = torch.full((sum(layer.n_features for layer in layers), 7), torch.nan)
    with Forward(model, layers, Settings(batch_size=3), CPU) as forward:
        forward(batch, block[:, 2:5])()
    assert block[:, [0, 1, 5, 6]].isnan().all()
    with torch.inference_mode():
        torch.testing.assert_close(block[-layers[-1].n_features :, 2:5].T, model(batch))


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_features(small, whole, tmp_path) -> None:
    compiled = extract(small.model_copy(update={"compile": True}), str(tmp_path))
    np.testing.assert_allclose(features(compiled.uri), features(whole), rtol=2e-3, atol=2e-3)


def test_a_backbone_that_cannot_be_compiled_is_explained(small, tmp_path, monkeypatch) -> None:
    def compiled(model: nn.Module, **options: object):
        def fail(batch: torch.Tensor) -> None:
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler was found")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(InvalidInputError, match=r"cannot be compiled here: no C.. compiler was found; leave --compile"):
        extract(small.model_copy(update={"compile": True}), str(tmp_path))


# ---------------------------------------------------------------- reading


def test_batches_hold_the_images_in_order_however_many_threads_read_them(small, tmp_path) -> None:
    plan = plan_extraction(small, str(tmp_path))
    images = plan.data.splits["train"]
    wanted = np.array([5, 3, 11, 0, 1])
    expected = torch.stack([plan.backbone.transform(images.image(i)) for i in wanted])
    for workers in (1, 3, 9):
        with Loader(plan.backbone, workers, memory_format=torch.channels_last) as loader:
            batch = loader.load(images, wanted).result()
        assert torch.equal(batch, expected)
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_image_that_vanishes_during_extraction_is_named(small, tmp_path, monkeypatch) -> None:
    plan = plan_extraction(small, str(tmp_path))
    images = plan.data.splits["train"]

    def gone(index: int) -> None:
        raise InvalidInputError(f"image {images.ids[index]!r} cannot be read: no such file; repair it or leave it out.")

    monkeypatch.setattr(type(images), "image", lambda self, index: gone(index))
    with Loader(plan.backbone, 2) as loader, pytest.raises(InvalidInputError, match=r"image .* cannot be read"):
        loader.load(images, np.arange(4)).result()


# ---------------------------------------------------------------- what is told


def record(**seconds: float) -> BlockRecord:
    return BlockRecord(
        split="train", block=0, start=0, stop=1, checksums={}, norms_checksum=0, rows_checksum=0, seconds=seconds
    )


@pytest.mark.parametrize(
    ("seconds", "sentence"),
    [
        ({"read": 7.1, "forward": 2.9}, "reading took 71 % of the time: more --workers or a faster disk would help."),
        ({"read": 1, "forward": 9, "write": 0}, "the backbone took 90 % of the time: reading and writing keep up"),
        ({"forward": 2, "wait": 8}, "writing took 80 % of the time: a faster disk, fewer taps"),
        ({"forward": 2, "write": 8}, "writing took 80 % of the time"),
    ],
)
def test_the_bottleneck_is_named(seconds, sentence) -> None:
    account = Account()
    account.add(record(**seconds))
    assert account.bottleneck().startswith(sentence)


def test_only_the_last_write_counts_as_time_that_nothing_else_was_done_in() -> None:
    account = Account()
    for _ in range(10):
        account.add(record(forward=1.0, write=0.5))
    assert account.shares["writing"] == pytest.approx(0.5 / 10.5)


def test_what_an_extraction_took_is_in_its_result_and_shown_live(small, tmp_path) -> None:
    stages = []
    done = extract(small, str(tmp_path), lambda stage, *_: stages.append(stage))
    assert sum(done.time_shares.values()) == pytest.approx(1)
    assert " took " in done.bottleneck
    assert any(stage.startswith("extracting images · ") and stage.endswith(" %") for stage in stages)
    assert json.dumps(done.time_shares)
    again = extract(small, str(tmp_path))
    assert again.bottleneck == ""


def test_constant_layers_are_named(tmp_path) -> None:
    """`same` has one value everywhere, `turned` one norm but other values, `split` differs between splits only."""
    rng = np.random.default_rng(0)
    layers = {"same": 3, "turned": 2, "split": 2, "other": 4}
    writer = create_store(tmp_path / "s.zarr", layers, {"train": 10, "test": 4}, block_samples=5)
    for split, blocks in writer.missing().items():
        for block in blocks:
            start, stop = writer.store.splits[split].block_range(block)
            n = stop - start
            turned = np.zeros((2, n), np.float16)
            turned[np.arange(n) % 2, np.arange(n)] = 1
            values = {
                "same": np.full((3, n), 0.5, np.float16),
                "turned": turned,
                "split": np.full((2, n), 1 if split == "train" else 2, np.float16),
                "other": rng.random((4, n)).astype(np.float16),
            }
            writer.write_block(split, block, values)
    assert constant_layers(open_store(writer.uri)) == ("same",)


def test_a_layer_whose_weights_are_zero_is_named(small, tmp_path) -> None:
    model = timm.create_model("test_resnet")
    with torch.no_grad():
        model.get_classifier().weight.zero_()
        model.get_classifier().bias.zero_()
    torch.save(model.state_dict(), tmp_path / "zero.pth")
    done = extract(small.model_copy(update={"weights": str(tmp_path / "zero.pth")}), str(tmp_path / "root"))
    assert done.constant_layers == ("logits",)
    assert done.remarks == (*done.notes, "constant over all images, which tells nothing of them: logits.")


# ---------------------------------------------------------------- a GPU, where there is one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("autocast", "tolerance"), [("none", 5e-3), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_a_gpu_and_the_cpu_agree(small, whole, tmp_path, autocast, tolerance) -> None:
    """Relative to a layer's norm; "none" allows for TensorFloat-32 convolutions, PyTorch's default."""
    gpu = extract(small.model_copy(update={"device": "cuda", "autocast": autocast}), str(tmp_path))
    ours, theirs = features(gpu.uri), features(whole)
    assert np.linalg.norm(ours - theirs) < tolerance * np.linalg.norm(theirs)
