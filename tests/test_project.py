"""What the project says about itself is so: documentation, configuration and deployments."""

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
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)
TOOLS = Path(sys.executable).parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Return a document's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)


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
                if not command.startswith("COMMAND"):  # which stands for any
                    yield name, shlex.split(command)


def test_commands_shown_in_documents_exist() -> None:
    group = typer.main.get_command(app)
    known, anywhere = group.commands, {option for parameter in group.params for option in parameter.opts}
    shown = list(shown_commands())
    assert {words[0] for _, words in shown} >= {"taps", "extract", "select", "refit", "list", "show", "verify", "run"}
    for name, (command, *words) in shown:
        if command in anywhere:
            continue
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
    assert flow.validate_parameters(deployment["parameters"])["config"]


def test_the_nightly_deployment_is_the_demo() -> None:
    [nightly] = [d for d in deployments() if d["name"] == "head2toe"]
    config = Head2ToeConfig.model_validate(nightly["parameters"]["config"])
    assert config == load_config(ROOT / "configs" / "demo.yaml")
    assert nightly["concurrency_limit"] == 1
    assert [schedule["slug"] for schedule in nightly["schedules"]] == ["nightly"]


def test_hooks_run_installed_tools() -> None:
    repos = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert hooks
    for hook in hooks:
        tool = Path(hook["entry"].split()[0])
        assert tool.parent == Path(".venv/bin")
        assert (TOOLS / tool.name).exists(), f"hook {hook['id']} runs {tool.name}, which is not installed"
