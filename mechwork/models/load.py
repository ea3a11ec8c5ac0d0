"""Load a model as a `TransformerBridge` with raw weights, eager attention, evaluation mode, ready to be analysed.

No code of the model's author is ever run, no pickle is read, and the hub is asked only for a name that is neither
bundled nor a local folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import bundled
from ..errors import InputError, NotFoundError, UnsupportedModelError, nearest
from .anatomy import CLAIMED, read_anatomy
from .identity import remember_source

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ModelSource = str | Path | nn.Module


def load_model(
    source: ModelSource, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> TransformerBridge:
    """A bundled model (``"gpt2-6l"``; ``"attn-only-2l@500"`` as it was after 500 steps of training), a local Hugging Face folder, a hub name, or a ready bridge or Hugging Face module.

    Weights are raw (nothing folded or centred), attention is eager, the model is in evaluation mode and no parameter
    asks for gradients. `device` defaults to the CPU for names and to where it is for a ready module; `dtype` defaults
    to float32 for names. A Hugging Face module is wrapped in place.

    Raises:
        NotFoundError: no such folder, or the hub cannot be reached or does not know the name.
        UnsupportedModelError: an architecture that mechwork does not claim.
        ArtefactError: a bundled model whose files do not match their sha256.
        InputError: a step of training at which the bundled model's weights were not kept.

    >>> model = load_model("gpt2-6l")
    >>> model.cfg.n_layers
    6
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(source, TransformerBridge):
        model = source
    elif isinstance(source, nn.Module):
        model = _wrap(source, tokenizer=None, name=type(source).__name__)
    elif isinstance(source, str | Path):
        model = _load_named(source, dtype or torch.float32)
        remember_source(model, source)
    else:
        raise InputError(
            f"load_model takes a name, a folder, a Hugging Face module or a TransformerBridge; got {type(source).__name__}"
        )
    if device is not None or dtype is not None:
        model.to(**{key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None})
        if device is not None:
            model.cfg.device = str(device)
        if dtype is not None:
            model.cfg.dtype = dtype
    model.eval()
    model.requires_grad_(False)
    read_anatomy(model)
    return model


def _load_named(source: str | Path, dtype: torch.dtype) -> TransformerBridge:
    name = str(source)
    base, _, step = name.partition("@")
    if base in bundled.model_names() and (step.isdecimal() or name == base):
        weights = bundled.checkpoint_file(base, int(step)) if step else None
        with _no_progress_bar():
            return _load_folder(bundled.verified_model(base), name, dtype, weights)
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NotFoundError(f"a model folder needs a config.json; {folder} has none")
        return _load_folder(folder, folder.name, dtype)
    looks_local = isinstance(source, Path) or name.startswith((".", "/", "~"))
    if looks_local or "/" not in name:
        known = bundled.model_names()
        raise NotFoundError(
            f"no model {name!r}: not bundled ({', '.join(known)}){nearest(name, known)} and no such folder. "
            "Hub models are named 'owner/name', e.g. 'openai-community/gpt2'."
        )
    return _load_hub(name, dtype)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Bundled models load in a blink: no bar of Hugging Face's for each."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_folder(folder: Path, name: str, dtype: torch.dtype, weights: Path | None = None) -> TransformerBridge:
    """A local folder in Hugging Face format: safetensors only, no remote code, no network.

    `weights` are put in place of the folder's own: parameters by name, tied ones once.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not any(folder.glob("*.safetensors")):
        raise NotFoundError(
            f"weights are read from safetensors files only; {folder} has none. Convert with save_pretrained(safe_serialization=True)."
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _check_claimed(config)
    with _without_bar():
        module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, attn_implementation="eager"
        )
    if weights is not None:
        from safetensors.torch import load_file

        tensors = load_file(str(weights))
        with torch.no_grad():
            for parameter_name, parameter in module.named_parameters():
                parameter.copy_(tensors[parameter_name])
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    return _wrap(module, tokenizer, name)


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


def _load_hub(name: str, dtype: torch.dtype) -> TransformerBridge:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=offline)
        _check_claimed(config)
        module = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, local_files_only=offline, attn_implementation="eager"
        )
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        why = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached or does not have it"
        raise NotFoundError(
            f"hub model {name!r} could not be loaded: {why}. Download it once where there is a network and pass the folder, "
            f"or use a bundled model ({', '.join(bundled.model_names())}). [{str(error).splitlines()[0]}]"
        ) from error
    return _wrap(module, tokenizer, name)


def _wrap(module: nn.Module, tokenizer: Any, name: str) -> TransformerBridge:
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    config = getattr(module, "config", None)
    if config is None:
        raise UnsupportedModelError(f"a Hugging Face model with a config is needed; {type(module).__name__} has none")
    _check_claimed(config, type(module).__name__)
    force_eager_attention(module)
    if hasattr(module, "set_experts_implementation"):  # the grouped kernels know no float64, and hide the experts
        module.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
    return build_bridge_from_module(
        module, type(module).__name__, hf_config=config, tokenizer=tokenizer, model_name=name
    )


def _check_claimed(config: Any, architecture: str | None = None) -> None:
    """Refuses by name, before any weight is read."""
    names = [architecture] if architecture else list(getattr(config, "architectures", None) or [])
    if names and not set(names) & set(CLAIMED):
        raise UnsupportedModelError(f"mechwork claims {', '.join(CLAIMED)}; this model is {', '.join(names)}")
