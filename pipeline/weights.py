"""Weights for a timm model: from the hub by way of timm, or from a local file, checked key by key."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from store.errors import InvalidInputError

PICKLED = (".pth", ".pt", ".bin")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


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
    if repository and not hub_is_reachable() and not _is_cached(repository):
        raise InvalidInputError(_unreachable(name))
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
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
        ``"state_dict"`` or ``"model"``. timm's own conversions of other projects' checkpoints apply.

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
        except (KeyError, ValueError, RuntimeError, AttributeError):
            converted = state  # not a checkpoint this family knows how to convert
        if not _mismatch(model, converted):
            state, problem = converted, None
    if problem:
        raise InvalidInputError(f"weights {str(path)!r} do not fit {name!r}: {problem}.")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InvalidInputError(
            f"weights {str(path)!r} are no existing file; valid choices are 'pretrained', 'random:<seed>' or a path."
        )
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
            f"weights {str(path)!r} are damaged or hold more than tensors; save the model's state_dict."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise InvalidInputError(f"weights {str(path)!r} cannot be read; the file is damaged or truncated.") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> Mapping[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InvalidInputError(f"weights {str(path)!r} hold no state_dict, a mapping of names to tensors.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Say how the keys and shapes of `state` differ from the model's, or None."""
    own = model.state_dict()
    # Checkpoints older than this counter lack it, and it plays no part in evaluation.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if reshaped:
        shown = [f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in reshaped[:3]]
        parts.append(f"{len(reshaped)} of another shape ({', '.join(shown)}{', …' if len(reshaped) > 3 else ''})")
    if not parts:
        return None
    text = ", ".join(parts)
    if reshaped and not missing and not unexpected and all(key.startswith(_head(model)) for key in reshaped):
        text += "; the file's head was trained for another number of classes"
    return f"of {len(own)} tensors {text}"


def _head(model: nn.Module) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def _is_cached(repository: str) -> bool:
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
