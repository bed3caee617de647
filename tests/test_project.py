"""What the project says about itself is so: documentation, configuration, deployments and containers."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli import app
from flows.config import Head2ToeConfig, load_config
from flows.demo import demo_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/operations.md",
    "docs/backbones.md",
    "docs/data.md",
    "docs/selection.md",
    "docs/refit.md",
    "docs/protocol.md",
    "docs/tasks.md",
    "docs/evaluation.md",
    "docs/baselines.md",
)
TOOLS = Path(sys.executable).parent
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
"""A variable without which compose refuses to start, as ``${NAME:?message}``."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Return a document's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(text("docker-compose.yml"))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(text("prefect.yaml"))["deployments"]
    return found


# ---------------------------------------------------------------- documents


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every `head2toe …` of the documents, in code blocks and in the line, as document and words."""
    for name in DOCUMENTS:
        inline = re.findall(r"`(head2toe [^`\n]+)`", text(name))
        lines = [line for block in blocks(name, "bash") for line in block.splitlines()]
        for line in [*inline, *lines]:
            for command in re.findall(r"(?:^|\$\()head2toe ([^|)#\n]+)", line):
                yield name, shlex.split(command)


def test_commands_shown_in_documents_exist() -> None:
    known = typer.main.get_command(app).commands
    shown = list(shown_commands())
    assert {words[0] for _, words in shown} >= {"taps", "extract", "select", "refit", "list", "show", "verify", "run"}
    for name, (command, *words) in shown:
        assert command in known, f"{name} shows `head2toe {command}`, which does not exist"
        options = {option for parameter in known[command].params for option in parameter.opts}
        unknown = {word for word in words if word.startswith("--")} - options
        assert not unknown, f"{name} shows `head2toe {command}` with {unknown}"


def test_every_command_is_shown_in_the_readme() -> None:
    missing = [name for name in typer.main.get_command(app).commands if f"head2toe {name} " not in text("README.md")]
    assert [name for name in missing if name != "demo"] == []


def test_make_verbs_shown_in_documents_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for name in DOCUMENTS:
        shown = set(re.findall(r"`make ([a-z-]+)`", text(name))) | set(
            re.findall(r"^make ([a-z-]+)", text(name), re.MULTILINE)
        )
        assert shown <= verbs, f"{name} shows make {shown - verbs}"


def test_relative_links_lead_somewhere() -> None:
    for name in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(name)):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size <= 150_000 for picture in pictures)


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.extraction import extract
    from pipeline.planning import ExtractionParameters

    parameters = ExtractionParameters(backbone="test_resnet", weights="random:0", data="digits", image_size=32)
    extract(parameters, str(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path)
    examples = blocks("README.md", "python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_no_file_names_a_place_of_one_machine_or_a_package_index() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    # The second part of each name is apart so that this file does not find itself.
    index = "|".join(f"{name}\\.{end}" for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org")))
    place = re.compile(
        rf"(?<![\w.\-}}])/(?:work|root|tmp|mnt|Users|home/(?!head2toe\b))\b|{index}|--(?:extra-)?index-url"
    )
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            assert not place.search(line), f"{name}:{number} names a place outside the project: {line.strip()}"


# ---------------------------------------------------------------- configuration and deployments


@pytest.mark.parametrize("name", ["demo.yaml", "position.yaml"])
def test_configurations_of_runs_load(name: str) -> None:
    assert isinstance(load_config(ROOT / "configs" / name), Head2ToeConfig)


def test_demo_configuration_is_the_demo() -> None:
    assert load_config(ROOT / "configs" / "demo.yaml") == demo_config("demo")


def test_demo_configuration_explains_every_key_of_extraction_and_refit() -> None:
    document = yaml.safe_load(text("configs/demo.yaml"))
    for part in ("extraction", "refit"):
        assert document[part].keys() == Head2ToeConfig.model_fields[part].annotation.model_fields.keys()


def test_prefect_understands_the_deployments() -> None:
    from prefect.cli.deploy._models import PrefectYamlModel

    # Prefect ignores keys that it does not know, so a misspelt one has to be looked for.
    read = PrefectYamlModel.model_validate(yaml.safe_load(text("prefect.yaml")))
    assert read.deployments
    for model, written in zip(read.deployments, deployments(), strict=True):
        assert written.keys() <= type(model).model_fields.keys()
        assert written["work_pool"].keys() <= type(model.work_pool).model_fields.keys()


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_deployments_name_flows_and_valid_parameters(deployment: dict[str, Any]) -> None:
    from prefect import Flow

    path, name = deployment["entrypoint"].split(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert (ROOT / path).samefile(module.__file__ or "")
    flow = getattr(module, name)
    assert isinstance(flow, Flow)
    flow.validate_parameters(deployment["parameters"])
    config = Head2ToeConfig.model_validate(deployment["parameters"]["config"])
    assert config == load_config(ROOT / "configs" / "demo.yaml")
    assert deployment["concurrency_limit"] == 1


def test_hooks_run_installed_tools() -> None:
    repos = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert hooks
    for hook in hooks:
        tool = Path(hook["entry"].split()[0])
        assert tool.parent == Path(".venv/bin")
        assert (TOOLS / tool.name).exists(), f"hook {hook['id']} runs {tool.name}, which is not installed"


# ---------------------------------------------------------------- containers


@pytest.mark.parametrize("name", services())
def test_services_are_pinned(name: str) -> None:
    service = services()[name]
    _, colon, tag = service["image"].rpartition(":")
    assert colon
    assert re.search(r"\d+\.\d+|\d{4}-\d\d-\d\d", tag), f"{name} has no pinned image: {service['image']}"
    assert ("build" in service) == service["image"].startswith("head2toe-store:")


def test_bases_of_the_image_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", text("Dockerfile"), re.MULTILINE)
    assert len(bases) > 1
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert re.findall(r"^USER (\S+)", text("Dockerfile"), re.MULTILINE)[-1] != "root"
    assert "--constraint constraints.txt" in text("Dockerfile")


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|ACCESS_KEY|_USER$", variable) and value != "prefect":
                assert REQUIRED.fullmatch(value), f"{name} has a literal {variable}"
            assert "PASSWORD" not in variable or value != "prefect"
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), f"{name} has a password in {variable}"
    assert not re.search(r"\$\{\w+:?[-+]", text("docker-compose.yml"))


def test_environment_example_has_every_variable_and_no_value() -> None:
    lines = [line for line in text(".env.example").splitlines() if line and not line.startswith("#")]
    assert all(line.endswith("=") for line in lines)
    assert {line.removesuffix("=") for line in lines} == set(REQUIRED.findall(text("docker-compose.yml")))


def test_services_wait_for_what_they_need() -> None:
    every = services()
    for name, service in every.items():
        ends = service.get("restart") == "no"
        assert ends or "healthcheck" in service, f"{name} has no health check"
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if every[other].get("restart") == "no" else "service_healthy"
            assert how["condition"] == expected, f"{name} waits for {other} to be {how['condition']}"


def test_volumes_are_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert used == compose()["volumes"].keys()


def test_services_of_our_image_run_installed_commands_with_known_settings() -> None:
    from prefect.settings import Settings

    known = {name.upper() for name in _setting_names(Settings)}
    assert "PREFECT_API_URL" in known
    for name, service in services().items():
        if "build" not in service:
            continue
        lines = [service["command"], service.get("healthcheck", {}).get("test", ["CMD", "python"])[1:]]
        for program, *arguments in lines:
            programs = [part.split()[0] for part in arguments[-1].split("&&")] if program == "sh" else [program]
            for each in programs:
                assert (TOOLS / each).exists(), f"{name} runs {each}, which is not installed"
            if program == "python" and arguments:
                compile(arguments[-1], name, "exec")
        for variable in service.get("environment", {}):
            assert not variable.startswith("PREFECT_") or variable in known, f"{name} sets {variable}"


def _setting_names(model: Any) -> Iterator[str]:
    prefix = model.model_config["env_prefix"]
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _setting_names(field.annotation)
        else:
            yield f"{prefix}{name}"


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
