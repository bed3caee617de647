"""What the images and services are made of is there, pinned and closed; nothing here needs a container engine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
"""A variable without which compose refuses to start, as ``${NAME:?message}``."""
OURS = "head2toe-store:"
PROFILES = {"cpu", "gpu"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(text("docker-compose.yml"))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def our_services() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services().items() if service["image"].startswith(OURS)}


def command_lines(service: dict[str, Any]) -> list[list[str]]:
    """Return what a service and its health check run."""
    checks = [service["healthcheck"]["test"]] if "healthcheck" in service else []
    assert all(check[0] == "CMD" for check in checks)
    return [service["command"], *(check[1:] for check in checks)]


# ---------------------------------------------------------------- the files are what they should be


def test_compose_file_follows_the_specification() -> None:
    # check-jsonschema carries the specification's schema.
    schema = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    jsonschema.validate(compose(), json.loads(schema.read_text(encoding="utf-8")))


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    found = subprocess.run([TOOLS / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0


# ---------------------------------------------------------------- the image


def test_bases_of_the_image_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", text("Dockerfile"), re.MULTILINE)
    assert len(bases) > 1
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert "--constraint constraints.txt" in text("Dockerfile")


def test_image_runs_as_a_user_of_its_own() -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", text("Dockerfile"), re.MULTILINE)[-1]
    assert user != "0"
    assert f"groupadd --gid {group} head2toe && useradd --uid {user} --gid head2toe" in text("Dockerfile")


def test_image_is_built_from_files_that_reach_the_builder() -> None:
    let_in = {line[1:].rstrip("/") for line in text(".dockerignore").splitlines() if line.startswith("!")}
    sources = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", text("Dockerfile"), re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)


def test_image_has_what_its_services_import() -> None:
    """The extras in the image bring Dask's workers, s3fs and JupyterLab."""
    (extras,) = re.findall(r"--editable '\.\[([\w,]+)\]'", text("Dockerfile"))
    assert {"notebook", "s3", "cluster"} <= set(extras.split(","))


# ---------------------------------------------------------------- the services


@pytest.mark.parametrize("name", services())
def test_services_are_pinned(name: str) -> None:
    service = services()[name]
    _, colon, tag = service["image"].rpartition(":")
    assert colon
    assert re.search(r"\d+\.\d+|\d{4}-\d\d-\d\d", tag), f"{name} has no pinned image: {service['image']}"
    assert ("build" in service) == service["image"].startswith(OURS)


def test_image_has_the_version_of_the_project() -> None:
    (version,) = re.findall(r'^version = "(.+)"', text("pyproject.toml"), re.MULTILINE)
    assert {service["image"] for service in our_services().values()} == {f"{OURS}{version}"}


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("AUTH_STRING"):
                assert REQUIRED.fullmatch(value.removeprefix("prefect:")), f"{name} has a literal {variable}"
            elif re.search("PASSWORD|TOKEN|SECRET|ACCESS_KEY|_USER$", variable) and value != "prefect":
                assert REQUIRED.fullmatch(value), f"{name} has a literal {variable}"
            assert "PASSWORD" not in variable or value != "prefect"
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), f"{name} has a password in {variable}"
    assert not re.search(r"\$\{\w+:?[-+]", text("docker-compose.yml"))


def test_environment_example_has_every_variable_and_no_secret() -> None:
    lines = [line for line in text(".env.example").splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=") for line in lines)
    assert values.pop("COMPOSE_PROFILES") in PROFILES
    assert set(values.values()) == {""}
    assert values.keys() == set(REQUIRED.findall(text("docker-compose.yml")))
    assert ".env" in text(".gitignore").splitlines()


def test_prefect_is_behind_a_password() -> None:
    every = services()
    secret = every["prefect-server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    clients = [service.get("environment", {}) for service in every.values()]
    reached = [client["PREFECT_API_AUTH_STRING"] for client in clients if "PREFECT_API_URL" in client]
    assert len(reached) == 5
    assert set(reached) == {secret}


def test_services_wait_for_what_they_need() -> None:
    every = services()
    for name, service in every.items():
        ends = service.get("restart") == "no"
        assert ends or "healthcheck" in service, f"{name} has no health check"
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if every[other].get("restart") == "no" else "service_healthy"
            assert how["condition"] == expected, f"{name} waits for {other} to be {how['condition']}"
        # A service that names another by its host waits for it, or for one that did.
        hosts = set(re.findall(r"//([\w-]+):\d+", json.dumps([service.get("command"), service.get("environment")])))
        assert hosts & every.keys() <= _before(name), f"{name} does not wait for {hosts - _before(name)}"


def _before(name: str) -> set[str]:
    needed = set(services()[name].get("depends_on", {}))
    return needed.union(*(_before(other) for other in needed))


def test_volumes_are_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert used == compose()["volumes"].keys()


def test_volumes_lie_where_the_user_may_write() -> None:
    """A named volume takes its owner from the folder in the image below it, which must therefore be there."""
    made = {f"/app/{name}" for name in re.findall(r"^RUN mkdir (.+)$", text("Dockerfile"), re.MULTILINE)[0].split()}
    made.add("/home/head2toe/.cache")
    for name, service in our_services().items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[1] in made, f"{name} mounts {volume}"


def test_every_service_is_limited() -> None:
    for name, service in services().items():
        assert service["deploy"]["resources"]["limits"]["memory"], f"{name} may use all memory"
        assert service["restart"] == "no" or service["logging"]["options"]["max-size"], f"{name} logs without end"


def test_a_laptop_without_a_gpu_runs_every_pool() -> None:
    """Either profile has one worker for each pool; nothing outside the profile `gpu` asks for a GPU."""
    for profile in PROFILES:
        running = [s for s in services().values() if profile in s.get("profiles", [profile])]
        lines = [service.get("command", []) for service in running]
        assert sorted(line[line.index("--pool") + 1] for line in lines if "--pool" in line) == ["cpu", "gpu"]
        reserved = [s for s in running if "reservations" in s["deploy"]["resources"]]
        assert bool(reserved) == (profile == "gpu")


def test_workers_serve_the_pools_of_the_deployments() -> None:
    deployed = {each["work_pool"]["name"] for each in yaml.safe_load(text("prefect.yaml"))["deployments"]}
    lines = [service["command"] for service in our_services().values()]
    served = {line[line.index("--pool") + 1] for line in lines if "--pool" in line}
    assert deployed <= served


# ---------------------------------------------------------------- commands and settings exist


@pytest.mark.parametrize("name", our_services())
def test_services_of_our_image_run_installed_commands(name: str) -> None:
    for program, *arguments in command_lines(our_services()[name]):
        assert (TOOLS / program).exists(), f"{name} runs {program}, which is not installed"
        if program == "python":
            assert arguments[0] == "-c"
            compile(arguments[1], name, "exec")


def known_options(program: str, words: list[str]) -> str:
    """Return the help of a command, which lists its options."""
    return subprocess.run([TOOLS / program, *words], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_commands_of_services_have_the_options_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    lines = {tuple(service["command"]) for service in our_services().values()}
    asked: dict[tuple[str, ...], set[str]] = {}
    for program, *arguments in lines:
        if program == "python":
            continue
        first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
        # An address is an argument, not a subcommand.
        words = [word for word in arguments[:first] if "://" not in word]
        options = {word for word in arguments if word.startswith("--")}
        asked.setdefault((program, *words), set()).update(options)
    assert ("prefect", "worker", "start") in asked
    assert ("dask", "worker") in asked
    for (program, *words), options in asked.items():
        shown = known_options(program, [*words, "--help-all" if program == "jupyter" else "--help"])
        for option in options:
            assert re.search(rf"{option}\b", shown), f"`{shlex.join([program, *words])}` has no {option}"


def test_settings_of_services_are_known_to_prefect() -> None:
    from prefect.settings import Settings

    known = {name.upper() for name in setting_names(Settings)}
    assert "PREFECT_API_URL" in known
    given = {name for service in our_services().values() for name in service.get("environment", {})}
    assert {name for name in given if name.startswith("PREFECT_")} <= known
    assert {name for name in given if not name.startswith(("PREFECT_", "AWS_"))} == {
        "DASK_SCHEDULER_ADDRESS",
        "JUPYTER_TOKEN",
    }


def setting_names(model: Any) -> Iterator[str]:
    prefix = model.model_config["env_prefix"]
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from setting_names(field.annotation)
        else:
            yield f"{prefix}{name}"
