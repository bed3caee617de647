"""`head2toe doctor`: what it finds where all is well, and what it says where something is broken."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from flows.doctor import State, checks, examine
from store.local import LocalObjects


def found(name: str, root: str = ".", dask_address: str | None = None) -> dict[str, tuple[State, str, str]]:
    """Return what one check finds, by what it looked at."""
    findings = examine(checks(root, dask_address)[name], name)
    return {finding.check: (finding.state, finding.found, finding.advice) for finding in findings}


@pytest.mark.slow
def test_a_good_installation_has_no_problem_and_nothing_stays_of_the_trial(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = CliRunner().invoke(app, ["doctor", "--root", "stores/new", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["problems"] == 0
    seen = {check["check"]: check for check in document["checks"]}
    assert seen.keys() >= {"Python", "packages", "extra s3", "cores", "memory", "root", "room", "shipped weights"}
    assert "checking: 9 of 9" in result.stderr
    assert not (tmp_path / "stores").exists()


def test_a_problem_is_exit_code_2_and_the_table_says_what_to_do(monkeypatch) -> None:
    broken = {"one": lambda: iter([doctor.problem("one", found="is broken", advice="mend it")])}
    monkeypatch.setattr("flows.doctor.checks", lambda *_: broken)
    result = CliRunner().invoke(app, ["doctor", "--quiet"])
    assert result.exit_code == 2
    assert re.split(r"  +", result.stdout.splitlines()[1].strip()) == ["one", "problem", "is broken", "mend it"]
    assert result.stderr == "error: 1 problem found; the last column says what to do.\n"


def test_packages_that_are_missing_or_old_are_named_with_what_installs_them(monkeypatch) -> None:
    wanted = ["numpy>=99", "no-such-package>=1", "zarr", "s3fs>=9999; extra == 's3'", "nowhere; extra == 'onnx'"]
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement(text) for text in wanted])
    state, what, advice = found("packages")["numpy"]
    assert state is State.problem
    assert what == f"numpy {metadata.version('numpy')} is installed, but >=99 is required"
    assert advice == "pip install --upgrade 'numpy>=99'"
    assert found("packages")["no-such-package"][1] == "no-such-package is not installed"
    assert found("extras")["extra s3"][0] is State.warning
    monkeypatch.setattr(doctor, "DISTRIBUTION", "not-there")
    assert found("packages")["installation"][0] is State.problem


def test_extras_that_are_not_there_are_optional(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement("no-such-package; extra == 's3'")])
    expected = (State.ok, "not installed, which is optional", "pip install 'head2toe-store[s3]'")
    assert found("extras")["extra s3"] == expected
    assert "extra dev" not in found("extras")


def test_a_driver_that_pytorch_cannot_use_is_a_problem_and_no_gpu_a_warning(tmp_path, monkeypatch) -> None:
    def unusable() -> bool:
        warnings.warn("the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr("torch.cuda.is_available", unusable)
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    assert found("devices")["GPU"][0] is State.warning
    (tmp_path / "version").touch()
    state, what, advice = found("devices")["GPU"]
    assert state is State.problem
    assert "cannot use it (the driver is too old)" in what
    assert "PyTorch" in advice


def test_each_gpu_is_named_and_must_compute(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(name=f"card {number}"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda number: (3 * 10**9, 8 * 10**9))
    monkeypatch.setattr(doctor, "_computes", lambda number: number == 0)
    seen = found("devices")
    assert seen["GPU cuda:0"][:1] == (State.ok,)
    assert seen["GPU cuda:0"][1].startswith("card 0, 3.0 GB of 8.0 GB free; PyTorch ")
    assert seen["GPU cuda:1"][0] is State.problem
    assert "nothing can be computed" in seen["GPU cuda:1"][1]


def test_little_memory_and_what_a_container_allows(tmp_path, monkeypatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n")
    (tmp_path / "max").write_text("1000000000\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "nothing")
    assert found("machine")["memory"] == (State.ok, "32.8 GB available", "")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "max")
    expected = (State.warning, "1.0 GB available", "give --memory 250MB to `head2toe select`")
    assert found("machine")["memory"] == expected
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "nothing")
    assert found("machine")["memory"][0] is State.warning


def test_a_root_that_cannot_be_used_is_a_problem(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    assert found("root", str(tmp_path / "file"))["root"][0] is State.problem
    assert found("root", "/proc/head2toe")["root"][0] is State.problem
    assert found("root", "s3:///no-bucket")["root"][0] is State.problem
    assert found("root", "memory://stores")["room"] == (State.ok, "no limit is known of object storage", "")
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2, 1, 1))
    assert found("root", str(tmp_path))["room"][0] is State.warning
    # As on storage that knows no conditional writes.
    monkeypatch.setattr(LocalObjects, "create", lambda self, key, data: self.write(key, [data]) is None)
    state, what, _ = found("root", str(tmp_path))["root"]
    assert state is State.problem
    assert "does not keep what is written" in what
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_shipped_weights_that_are_not_the_recorded_ones(tmp_path, monkeypatch) -> None:
    import pipeline.weights

    shutil.copytree(pipeline.weights.PACKAGED, tmp_path / "packaged")
    monkeypatch.setattr(pipeline.weights, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(pipeline.weights, "hub_is_reachable", lambda: False)
    assert found("weights")["shipped weights"][0] is State.ok
    assert found("weights")["hub"][0] is State.warning
    path = tmp_path / "packaged" / "test_resnet.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    state, what, advice = found("weights")["weights test_resnet"]
    assert state is State.problem
    assert "are not the recorded ones" in what
    assert "--force-reinstall" in advice


@pytest.mark.slow
def test_servers_that_are_named_must_answer(tmp_path, monkeypatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    monkeypatch.setattr("pipeline.compute.CONNECT_SECONDS", 0.5)
    state, what, _ = found("Dask", dask_address="tcp://127.0.0.1:9")["Dask"]
    assert state is State.problem
    assert "no Dask scheduler answers" in what
    with temporary_settings({PREFECT_API_URL: "http://user:hunter2@127.0.0.1:9/api"}):
        state, what, _ = found("Prefect")["Prefect"]
    assert state is State.problem
    assert "does not answer" in what
    assert "hunter2" not in what
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}):
        assert found("Prefect")["Prefect"][0] is State.ok


def test_a_check_that_breaks_is_a_finding() -> None:
    def breaks() -> None:
        raise ImportError("libsomething.so:\n not found")

    [finding] = examine(breaks, "pictures")  # type: ignore[arg-type]  # never returns
    assert (finding.check, finding.state) == ("pictures", State.problem)
    assert finding.found == "ImportError: libsomething.so: not found"


def test_a_cache_that_is_not_writable_is_a_warning(monkeypatch) -> None:
    monkeypatch.setattr("matplotlib.get_cachedir", lambda: str(Path("/proc/1")))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert found("pictures")["pictures"][0] is State.warning
