"""Weights for a timm model: shipped with this package, from the hub by way of timm, or from a local file."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from store.errors import InvalidInputError, suggest

SHIPPED = "shipped"
PACKAGED = Path(__file__).parent / "packaged"
PICKLED = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model")
MOST_NAMED = 3
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ShippedWeights:
    """Weights inside this package, and what loading them needs to know.

    Attributes
    ----------
    path : Path
        A ``.safetensors`` file.
    num_classes : int
        Of the source task.
    preprocessing : dict
        What the network was trained with, by the keys of `timm.data.resolve_model_data_config`.
    """

    path: Path
    num_classes: int
    preprocessing: dict[str, Any]


def shipped_backbones() -> tuple[str, ...]:
    """Return the timm names whose weights are inside this package."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.safetensors")))


def shipped_weights(name: str) -> ShippedWeights:
    """Return the weights inside this package for a backbone.

    Parameters
    ----------
    name : str
        timm name without tag.

    Raises
    ------
    InvalidInputError
        If none ship for it, or the file is not the one that was recorded when it was trained.
    """
    known = shipped_backbones()
    if name not in known:
        raise InvalidInputError(
            f"no weights ship for backbone {name!r}; those that do are {', '.join(map(repr, known)) or 'none'}."
        )
    path = PACKAGED / f"{name}.safetensors"
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
        raise InvalidInputError(
            f"the shipped weights {str(path)!r} are not the recorded ones; install the package again."
        )
    preprocessing = {key: tuple(v) if isinstance(v, list) else v for key, v in record["preprocessing"].items()}
    return ShippedWeights(path, record["num_classes"], preprocessing)


def download_weights(name: str, structure: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model with its pretrained weights, from the local cache or the hub.

    Parameters
    ----------
    name : str
        timm name.
    structure : Module
        The model without weights; it knows where they are kept.
    arguments : mapping
        Keyword arguments of `timm.create_model`.

    Returns
    -------
    Module
        The model with weights.

    Raises
    ------
    InvalidInputError
        If there are no such weights or they cannot be fetched.
    """
    source = getattr(structure, "pretrained_cfg", None) or {}
    if not any(source.get(key) for key in ("hf_hub_id", "url", "file")):
        raise InvalidInputError(
            f"timm has no pretrained weights for {name!r}; choose a name or tag that has, "
            f"or give a weights file or 'random:0'."
        )
    repository = source.get("hf_hub_id")
    if repository and not hub_is_reachable() and not is_cached(repository):
        raise InvalidInputError(_unreachable(name))
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        if isinstance(error, RuntimeError):  # torch's, for keys and shapes
            message = f"the pretrained weights for {name!r} do not fit it: {reason[0].rstrip('.: ')}."
        else:
            message = f"{_unreachable(name)[:-1]} ({type(error).__name__})."
        raise InvalidInputError(message) from error
    return model


def hub_is_reachable() -> bool:
    """Whether the hub's name resolves or a proxy does so for us; asking it directly would be retried for a minute."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def read_weights(model: nn.Module, name: str, path: Path) -> None:
    """Fill `model` with the weights in a local file; every key and shape must agree.

    Parameters
    ----------
    model : Module
        The model to fill.
    name : str
        Its name, for messages.
    path : Path
        A ``.safetensors`` file or a ``.pth``, ``.pt`` or ``.bin`` file that holds tensors only, possibly below
        ``"state_dict"`` or ``"model"``, with or without the prefixes of data parallelism (``"module."``) and
        compilation (``"_orig_mod."``). timm's own conversions of other projects' checkpoints apply.

    Raises
    ------
    InvalidInputError
        If there is no such file, it cannot be read, or its contents do not fit the model.
    """
    state = _read(path)
    problem = _mismatch(model, state)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if problem and convert is not None:
        try:
            converted = convert(dict(state), model)
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError):
            converted = state  # not a checkpoint this family knows how to convert
        if not _mismatch(model, converted):
            state, problem = converted, None
    if problem:
        raise InvalidInputError(f"weights {str(path)!r} do not fit {name!r}: {problem}.")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        near = suggest(str(path), ("pretrained", SHIPPED, "random:0"))
        if path.suffix or not near.startswith("did"):
            near = "valid choices are 'pretrained', 'shipped', 'random:<seed>' or a path."
        raise InvalidInputError(f"weights {str(path)!r} are no existing file; {near}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif path.suffix in PICKLED:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            known = ", ".join((".safetensors", *PICKLED))
            raise InvalidInputError(f"weights {str(path)!r} end in {path.suffix!r}; valid endings are {known}.")
    except pickle.UnpicklingError as error:
        raise InvalidInputError(
            f"weights {str(path)!r} are damaged or hold objects other than tensors, which may run code when read; "
            f"save the model's state_dict alone."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise InvalidInputError(f"weights {str(path)!r} cannot be read; the file is damaged or truncated.") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> Mapping[str, Tensor]:
    entries = [key for key, value in content.items() if isinstance(value, Mapping)] if _maps(content) else []
    wrapped = [key for key in entries if str(key).removesuffix("_ema") in WRAPPERS]
    if len(wrapped) > 1:
        raise InvalidInputError(
            f"weights {str(path)!r} hold {len(wrapped)} models, {', '.join(map(repr, wrapped))}; "
            f"save the one that is meant in a file of its own."
        )
    if wrapped:
        return _unwrap(content[wrapped[0]], path)
    if not _maps(content) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        found = f"; its entries are {', '.join(map(repr, entries[:MOST_NAMED]))}" if entries else ""
        raise InvalidInputError(f"weights {str(path)!r} hold no state_dict, a mapping of names to tensors{found}.")
    cleaned: dict[str, Tensor] = clean_state_dict({str(key): value for key, value in content.items()})
    return cleaned


def _maps(content: Any) -> bool:
    return isinstance(content, Mapping)


def _mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Say how the keys and shapes of `state` differ from the model's, or None."""
    own = model.state_dict()
    # Checkpoints older than this counter lack it, and it plays no part in evaluation.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = {
        key: f"{key} is {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    }
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", list(reshaped.values())))
    parts = [
        f"{len(found)} {what} ({', '.join(found[:MOST_NAMED])}{', …' if len(found) > MOST_NAMED else ''})"
        for what, found in kinds
        if found
    ]
    if not parts:
        return None
    near = {key: difflib.get_close_matches(key, unexpected, n=1, cutoff=0.7) for key in missing[:MOST_NAMED]}
    text = "; ".join([", ".join(parts), *(f"{key} may be its {match[0]}" for key, match in near.items() if match)])
    if not missing and not unexpected and all(key.startswith(_head(model)) for key in reshaped):
        text += "; the file's head was trained for another number of classes"
    return f"of {len(own)} tensors {text}"


def _head(model: nn.Module) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def is_cached(repository: str) -> bool:
    """Whether a hub repository's weights were downloaded before."""
    name, _, revision = repository.partition("@")
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(name, file, revision=revision or None), str)
        for file in _HUB_FILES
    )


def _unreachable(name: str) -> str:
    return (
        f"pretrained weights for {name!r} cannot be fetched from the hub; connect to the network, "
        f"or use --weights PATH with a local file, or --weights random:0."
    )
