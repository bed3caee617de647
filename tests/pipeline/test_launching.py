"""Several processes on one store: the bytes of one alone, and nothing lost when one of them, or all, are stopped.

Policy: whatever happens to a process, blocks it committed stay, nothing unfinished is committed, no process outlives
the one that started it, and the next run writes just what is missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import timm
import torch
from noise import N_BLOCKS, N, contents, noise

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.launching import Order
from pipeline.verification import verify_store
from store import open_store
from store.errors import Head2ToeError, InterruptedExtractionError, InvalidInputError, NotFiniteError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ExtractionParameters:
    return noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(small) -> ExtractionParameters:
    return small.model_copy(update={"device": "cpu,cpu"})


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> str:
    """An undisturbed extraction by one process."""
    return extract(small, str(tmp_path_factory.mktemp("whole"))).uri


@pytest.fixture
def children(monkeypatch) -> list[subprocess.Popen]:
    """The processes that an extraction starts."""
    started: list[subprocess.Popen] = []
    start = subprocess.Popen

    def popen(*args, **kwargs) -> subprocess.Popen:
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return started


def committed(root: Path) -> int:
    return len(list(root.glob("*.zarr/blocks/*/*.json")))


def check_whole(small: ExtractionParameters, root: Path, whole: str) -> None:
    """Resume and compare with an undisturbed store."""
    before = committed(root)
    done = extract(small, str(root))
    assert done.extracted == N - 8 * before
    assert contents(done.uri) == contents(whole)
    assert verify_store(open_store(done.uri)) == []


@pytest.mark.slow
def test_two_processes_make_the_store_of_one_and_their_progress_adds_up(two, whole, tmp_path, children) -> None:
    seen: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting"):
            seen.append((done, total))

    done = extract(two, str(tmp_path), progress)
    assert [child.returncode for child in children] == [0, 0]
    assert (done.extracted, done.left_to_others) == (N, 0)
    assert seen == [(8 * (n + 1), N) for n in range(N_BLOCKS)]
    assert contents(done.uri) == contents(whole)
    assert open_store(done.uri).provenance["device"] == "cpu, cpu"


@pytest.mark.slow
def test_a_killed_process_is_named_with_its_reason_and_what_is_committed_stays(
    small, two, whole, tmp_path, children
) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting"):
            children[1].kill()

    with pytest.raises(Head2ToeError, match=r"device cpu was killed by SIGKILL.*what was committed stays"):
        extract(two, str(tmp_path), kill)
    assert children[0].returncode in (0, 130), "the other process was stopped, not killed"
    assert 0 < committed(tmp_path) < N_BLOCKS
    check_whole(small, tmp_path, whole)


@pytest.mark.slow
def test_an_error_of_a_process_is_the_error_of_the_extraction(two, tmp_path, children) -> None:
    model = timm.create_model("test_resnet")
    with torch.no_grad():
        model.get_classifier().weight.mul_(1e7)
    torch.save(model.state_dict(), tmp_path / "large.pth")
    large = two.model_copy(update={"weights": str(tmp_path / "large.pth")})
    with pytest.raises(NotFiniteError, match=r"^device cpu: values overflow float16 in layer 'logits'"):
        extract(large, str(tmp_path / "root"))
    assert None not in [child.returncode for child in children]


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_what_they_have_begun(small, two, whole, tmp_path, children) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("extracting"):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedExtractionError, match=r"of 8 blocks are committed"):
        extract(two, str(tmp_path), stop)
    assert {child.returncode for child in children} <= {0, 130}
    check_whole(small, tmp_path, whole)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(two, tmp_path) -> None:
    code = (
        "import sys; from pipeline.extraction import extract;"
        "from pipeline.extraction_parameters import ExtractionParameters as P;"
        f"extract(P.model_validate_json({two.model_dump_json()!r}), sys.argv[1],"
        "lambda stage, done, total: print(stage, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    next(line for line in parent.stdout if line.startswith("extracting"))
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_a_process_that_sees_another_extraction_refuses_to_write(small, whole) -> None:
    order = Order(parameters=small, root=str(Path(whole).parent), uri=whole, folder=str(Path.cwd()))
    assert order.plan().uri == whole
    other = order.model_copy(update={"parameters": small.model_copy(update={"weights": "random:1"})})
    with pytest.raises(InvalidInputError, match="sees another extraction than the one begun"):
        other.plan()


def test_a_process_that_cannot_start_is_explained(two, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Head2ToeError, match="the process of device cpu ended with code 1"):
        extract(two, str(tmp_path))
    assert committed(tmp_path) == 0
