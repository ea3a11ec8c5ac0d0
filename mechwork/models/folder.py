"""Models in Hugging Face format: a local folder, or a name on the hub at a revision.

Weights come from safetensors only, no code of the model's author runs, and the hub is asked for named files only: first
``config.json``, by which a model is refused, then weights and tokenizer. What is in the cache is not downloaded again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import bundled
from ..errors import ArtefactError, InputError, NotFoundError
from .claims import check_claimed, check_unpacked
from .placement import check_fits

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
FILES = (
    "config.json", "generation_config.json", *WEIGHTS, *TOKENIZER,
    "merges.txt", "vocab.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
"""The only files that are asked of the hub."""


def load_folder(
    folder: Path, dtype: torch.dtype, device: torch.device | None = None, device_map: Any = None,
    weights: Path | None = None, *, with_tokenizer: bool = True,
) -> tuple[nn.Module, Any]:  # fmt: skip
    """Module and tokenizer (None where there is none, or none is wanted) of a folder in Hugging Face format, without a
    network.

    `weights` are put in place of the folder's own: parameters by name, tied ones once.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise NotFoundError(_no_config(folder))
    if not any(folder.glob("*.safetensors")):
        raise NotFoundError(
            f"weights are read from safetensors files only; {folder} has none. Convert with "
            "save_pretrained(safe_serialization=True)."
        )
    check_config(folder / "config.json", folder.name)
    config = _strict(lambda: AutoConfig.from_pretrained(folder, **LOCAL), folder)
    check_claimed(getattr(config, "architectures", None) or [])
    if device_map is None:
        check_fits(folder.name, _count_parameters(folder), dtype, device)
    placed = {} if device_map is None else {"device_map": device_map}
    with _without_bar():
        module = _strict(
            lambda: AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, attn_implementation="eager", **LOCAL, **placed
            ),
            folder,
        )
    if weights is not None:
        from safetensors.torch import load_file

        tensors = load_file(str(weights))
        with torch.no_grad():
            for parameter_name, parameter in module.named_parameters():
                parameter.copy_(tensors[parameter_name])
    has_tokenizer = with_tokenizer and any((folder / file).is_file() for file in TOKENIZER)
    tokenizer = _strict(lambda: AutoTokenizer.from_pretrained(folder, **LOCAL), folder) if has_tokenizer else None
    return module, tokenizer


LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _no_config(folder: Path) -> str:
    """What is missing, and what lies there instead."""
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if files:
        return f"{folder} has no config.json but GGUF files; name one: load_model({str(folder / files[0])!r})"
    return f"a model folder needs a config.json; {folder} has none"


def check_config(file: Path, name: str) -> None:
    """Raises for a config that cannot be read, an architecture that is not claimed, and packed weights."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"config.json of {name} cannot be read ({error}). Download or save the model again."
        ) from error
    if not isinstance(config, dict):
        raise ArtefactError(f"config.json of {name} holds no settings. Download or save the model again.")
    architectures = [str(one) for one in config.get("architectures") or []]
    if config.get("auto_map") and not architectures:
        architectures = ["a model with code of its own"]
    check_claimed(architectures)
    check_unpacked(config.get("quantization_config"), name)


def _count_parameters(folder: Path) -> int:
    """Numbers in the folder's safetensors files, from their headers."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt") as tensors:
                count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ArtefactError(
                f"{file.name} in {folder} is truncated or damaged ({error}); download it again"
            ) from error
    return count


def _strict(load: Any, folder: Path) -> Any:
    """What `load` gives; a library's errors about the folder become one of ours."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtefactError(f"the model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error


@contextmanager
def _without_bar() -> Iterator[None]:
    """No progress bar for weights that lie on this disk; what the user has set is set again."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---- the hub
# ----------------------------------------------------------------------------------------------------------


def fetch_hub(name: str, revision: str | None) -> tuple[Path, str]:
    """The cached folder of a hub model, and the commit it is. Downloads what is missing.

    Raises:
        NotFoundError: no such name or revision, no network and not in the cache, a broken download, no safetensors.
        UnsupportedModelError: an architecture or packed weights that are refused by name, before the weights are asked
            for.
        InputError: what cannot be a name on the hub.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    settings: dict[str, Any] = {"revision": revision, "local_files_only": offline}
    try:
        with _hub_errors(name, revision, offline=offline):
            try:
                config = Path(hf_hub_download(name, "config.json", **settings))
            except _transport_errors() as error:  # reset, not refused: the library then forgets its cache
                settings["local_files_only"] = True
                try:
                    config = Path(hf_hub_download(name, "config.json", **settings))
                except LocalEntryNotFoundError:
                    raise error from None
    except HFValidationError as error:
        raise InputError(f"hub models are named 'owner/name', e.g. 'openai-community/gpt2'; got {name!r}") from error
    check_config(config, name)
    with _hub_errors(name, revision, offline=offline):
        folder = Path(snapshot_download(name, allow_patterns=list(FILES), **settings))
    if not any(folder.glob("*.safetensors")):
        raise NotFoundError(
            f"weights are read from safetensors files only; hub model {name!r} has none at "
            f"{revision or 'its main revision'}, "
            "or its download was interrupted. Convert it with save_pretrained(safe_serialization=True), or try again."
        )
    return folder, folder.name


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP library raises for a connection that breaks; its name differs between versions of the
    library.
    """
    import importlib
    import importlib.util

    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name) is not None]
    return tuple(importlib.import_module(name).TransportError for name in names)


@contextmanager
def _hub_errors(name: str, revision: str | None, *, offline: bool) -> Iterator[None]:
    """One clear error for each way in which the hub can fail."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    instead = f"or use a bundled model ({', '.join(bundled.model_names())})"
    try:
        yield
    except HFValidationError:
        raise
    except RevisionNotFoundError as error:
        raise NotFoundError(
            f"hub model {name!r} has no revision {revision!r}: give a branch, a tag or a full commit hash"
        ) from error
    except GatedRepoError as error:
        raise NotFoundError(
            f"hub model {name!r} is gated: accept its terms on its page and log in with `hf auth login`, {instead}"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"the hub does not have a model {name!r}, or it is private: check the spelling, log in with `hf auth "
            f"login`, {instead}"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached"
        at = f" at revision {revision!r}" if revision else ""
        raise NotFoundError(
            f"hub model {name!r}{at} is not in the cache and {why}. Download it once where there is a network and "
            "pass the folder, "
            f"{instead}."
        ) from error
    except EntryNotFoundError as error:
        raise NotFoundError(
            f"hub model {name!r} has no config.json at {revision or 'its main revision'}; mechwork loads models in "
            "Hugging Face format"
        ) from error
    except (HfHubHTTPError, OSError, *_transport_errors()) as error:
        raise NotFoundError(
            f"the download of {name!r} broke off ({str(error).splitlines()[0]}). Run the same again: what has arrived "
            "is kept."
        ) from error
