"""Features that others have published, read without their libraries: tensors and a configuration, nothing is run.

layout | files | formula:

- ``"saelens"`` | ``cfg.json``, ``sae_weights.safetensors`` | b_in = b_dec where `apply_b_dec_to_input`; standard, topk,
  jumprelu (batchtopk), gated, and the transcoders
- ``"sparsify"`` | ``cfg.json``, ``sae.safetensors`` | top-k; b_in = b_dec unless it transcodes
- ``"circuit-tracer"`` | ``layer_N.safetensors``, ``config.yaml`` beside | ReLU, JumpReLU or top-k transcoder; encoder
  ``[feature, d_in]``, a skip connection ``[d_out, d_in]``
- ``"gemma-scope"`` | ``params.npz``, or its names in a ``.safetensors`` file | JumpReLU, no input bias

A layout is told by the names of its tensors. Anything else is refused with the names that were found.

Limit: models here have raw weights. Coders trained on a model whose norms were folded or whose writes were centred read
other vectors; no file says so reliably. `evaluate_features` shows it as variance that is not explained.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..artefact import read_tensors as read_tensors_of
from ..errors import ArtefactError, InputError, NotFoundError
from ..files import read_json
from ..models.borrow import borrows
from ..provenance import build_provenance
from ..sites import Site, block_module, find_site
from .activations import Activation, GatedRelu, JumpRelu, Relu, TopK
from .coder import SparseCoder
from .feature_set import FeatureSet
from .published_sites import site_of_module

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]
Place = tuple[Site, Site] | None
"""Sites read and written, where the file says so."""


@dataclass(frozen=True)
class FileLayout:
    """A way to store a coder: which tensors it has, and how they become one."""

    name: str
    needs: frozenset[str]
    may: frozenset[str]
    build: Callable[[Tensors, Config, Path], tuple[dict[str, Any], Place]]

    def fits(self, names: frozenset[str]) -> bool:
        """Whether a file with tensors of these names is of this layout."""
        return self.needs <= names <= self.needs | self.may


@borrows
def import_features(
    model: TransformerBridge,
    path: str | Path,
    *,
    reads: Site | None = None,
    writes: Site | None = None,
    layout: str | None = None,
    check_name: bool = True,
) -> FeatureSet:
    """A published coder as features of `model`; `path` is its file or its folder.

    `reads` (and, for a transcoder, `writes`) say where it belongs when the file does not, and must agree with the file
    when it does. `check_name=False` leaves out the comparison of the model's name with the one in the file.

    Raises:
        NotFoundError: no file of features there.
        ArtefactError: an unknown layout (names what was found), a setting that is not supported, another model's name.
        InputError: a place that is not known, a layer or a width that the model has not, NaN weights.
    """
    file = find_file(Path(path))
    tensors, config = read_tensors(file), read_config(file)
    chosen = _choose(tensors, config, file, layout)
    parts, place = chosen.build(tensors, config, file)
    place = _settle(place, reads, writes, file)
    named = str(config.get("model_name") or _metadata(config).get("model_name") or "")
    if check_name and named and _plain_name(named) != _plain_name(str(model.cfg.model_name)):
        raise ArtefactError(
            f"{file} holds features of {named}; this model is {model.cfg.model_name}. Load that model, or, if it is "
            "the same under another "
            "name, pass check_name=False"
        )
    provenance = build_provenance(method="imported features", layout=chosen.name, file=file.name, config=_short(config))
    coder = SparseCoder(*place, **parts, provenance={"layout": chosen.name})
    features = FeatureSet((coder,), {}, provenance, f"{chosen.name} features of {named or model.cfg.model_name}")
    features.check(model)
    return features


def find_file(path: Path) -> Path:
    """The file of tensors at `path`; raises `NotFoundError` or, for several to choose from, `InputError`."""
    if path.is_file():
        return path
    found = [] if not path.is_dir() else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".npz"))
    if not found:
        raise NotFoundError(f"{path} is no file of features (.safetensors or .npz), nor a folder with one")
    if len(found) > 1:
        raise InputError(
            f"{path} has several files of features, {', '.join(f.name for f in found[:8])}; name one of them"
        )
    return found[0]


def read_tensors(file: Path) -> Tensors:
    """The floating-point tensors (and plain numbers) of a file, in float32; pickled arrays are refused."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {name: torch.from_numpy(np.array(archive[name])).float() for name in archive.files}
        return {name: tensor.float() for name, tensor in read_tensors_of(file)[1].items()}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ArtefactError(f"{file} is damaged, or no {file.suffix} file of plain tensors: {error}") from error


def read_config(file: Path) -> Config:
    """``cfg.json`` or ``config.yaml`` beside the file, or nothing."""
    for name in ("cfg.json", "config.json"):
        if (file.parent / name).is_file():
            found = read_json(file.parent / name)
            return found if isinstance(found, dict) else {}
    for name in ("config.yaml", "config.yml"):
        if (file.parent / name).is_file():
            return _scalars((file.parent / name).read_text(encoding="utf-8"))
    return {}


def _scalars(text: str) -> Config:
    """The top-level ``key: value`` lines of a YAML file; nothing else is needed here."""
    found = re.findall(r"^([A-Za-z_]\w*):[ \t]*([^\n#]+?)[ \t]*(?:#.*)?$", text, re.MULTILINE)
    return {key: value.strip("'\"") for key, value in found}


def _choose(tensors: Tensors, config: Config, file: Path, layout: str | None) -> FileLayout:
    names = frozenset(tensors)
    if layout is not None:
        if layout not in LAYOUTS:
            raise InputError(f"layouts are {', '.join(LAYOUTS)}; got {layout!r}")
        candidates = [LAYOUTS[layout]]
    else:
        by_file = {"sae_weights": "saelens", "layer_": "circuit-tracer"}
        hint = next((LAYOUTS[name] for start, name in by_file.items() if file.name.startswith(start)), None)
        also = [] if "architecture" in config else list(LAYOUTS.values())
        candidates = [*([hint] if hint else []), *([LAYOUTS["saelens"]] if "architecture" in config else []), *also]
    fitting = [one for one in candidates if one.fits(names)]
    if not fitting:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())[:12])
        known = "; ".join(f"{one.name}: {', '.join(sorted(one.needs))}" for one in LAYOUTS.values())
        raise ArtefactError(
            f"{file} has a layout that is not known{'' if layout is None else f' as {layout}'}; it holds "
            f"{shapes or 'no tensors'}. Known are {known}"
        )
    return fitting[0]


def _settle(place: Place, reads: Site | None, writes: Site | None, file: Path) -> tuple[Site, Site]:
    given = None if reads is None else (reads, writes or reads)
    if place is None and given is None:
        raise InputError(
            f"{file} does not say which place its features belong to; pass reads=Site(...) (and writes= for a "
            "transcoder)"
        )
    if place is not None and given is not None and place != given:
        raise InputError(
            f"{file} says that its features read {place[0]} and write {place[1]}; you asked for {given[0]} and "
            f"{given[1]}. Leave reads and writes out"
        )
    found = place or given
    assert found is not None
    return found


# ---- the layouts
# -------------------------------------------------------------------------------------------------------


def _saelens(tensors: Tensors, config: Config, file: Path) -> tuple[dict[str, Any], Place]:
    kind = str(config.get("architecture", "standard"))
    normalise = str(config.get("normalize_activations", "none"))
    if normalise not in ("none", "expected_average_only_in"):
        raise ArtefactError(
            f"{file} normalises activations by {normalise!r}, which depends on every vector; only fixed scales are "
            "supported"
        )
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] != 1).any()):
        raise ArtefactError(
            f"{file} rescales its features by a finetuned scaling_factor; fold it into W_dec and leave it out"
        )
    transcodes = "transcoder" in kind
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    b_enc = tensors.get("b_enc", tensors.get("b_mag", torch.zeros(W_enc.shape[1])))
    activation: Activation = Relu()
    if "gated" in kind or "b_gate" in tensors:
        activation = GatedRelu(tensors["r_mag"], tensors["b_gate"])
    elif "threshold" in tensors:
        activation = JumpRelu(tensors["threshold"])
    elif "topk" in kind or str(config.get("activation_fn_str", config.get("activation_fn", ""))) == "topk":
        activation = TopK(_k(config, file))
        if config.get("rescale_acts_by_decoder_norm"):  # the same code with decoder rows of length 1
            norm = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
    elif kind not in ("standard", "transcoder", "skip_transcoder"):
        raise ArtefactError(
            f"{file} is of the architecture {kind!r} with tensors {', '.join(sorted(tensors))}; that is not supported"
        )
    # transcoders never have it subtracted: the decoder's bias lives where they write
    centred = bool(config.get("apply_b_dec_to_input", True)) and not transcodes
    parts = {
        "W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": tensors["b_dec"], "activation": activation,
        "b_in": tensors["b_dec"].clone() if centred else None,
        "W_skip": tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
    }  # fmt: skip
    names = {**_metadata(config), **{k: v for k, v in config.items() if k.startswith("hook_")}}
    reads = names.get("hook_name")
    writes = names.get("hook_name_out") or (None if transcodes else reads)
    head = None if names.get("hook_head_index") is None else int(names["hook_head_index"])
    place = None if not reads or not writes else (find_site(str(reads), head), find_site(str(writes), head))
    return parts, place


def _k(config: Config, file: Path) -> int:
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if k is None:
        raise ArtefactError(f"{file} is a top-k coder whose configuration does not say k")
    return int(k)


def _sparsify(tensors: Tensors, config: Config, file: Path) -> tuple[dict[str, Any], Place]:
    if config.get("activation", "topk") != "topk":
        raise ArtefactError(
            f"{file} uses the activation {config['activation']!r}; top-k coders of this layout are supported"
        )
    transcodes = bool(config.get("transcode", False))
    parts = {
        "W_enc": tensors["encoder.weight"].T.contiguous(), "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"], "activation": TopK(_k(config, file)),
        "b_in": None if transcodes else tensors["b_dec"].clone(),
        "W_skip": tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
    }  # fmt: skip
    return parts, site_of_module(file.parent.name, transcodes=transcodes)


def _circuit_tracer(tensors: Tensors, config: Config, file: Path) -> tuple[dict[str, Any], Place]:
    threshold = tensors.get("activation_function.threshold", tensors.get("threshold"))
    activation: Activation = (
        Relu() if threshold is None else JumpRelu(threshold.reshape(-1).expand(len(tensors["b_enc"])).clone())
    )
    if "k" in tensors:
        activation = TopK(int(tensors["k"]))
    parts = {
        "W_enc": tensors["W_enc"].T.contiguous(), "b_enc": tensors["b_enc"], "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "activation": activation, "W_skip": tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
    }  # fmt: skip
    number = re.search(r"layer_(\d+)", file.stem)
    reads, writes = config.get("feature_input_hook"), config.get("feature_output_hook")
    if number is None or reads is None or writes is None:
        return parts, None
    return parts, (
        find_site(block_module(int(number[1]), str(reads))),
        find_site(block_module(int(number[1]), str(writes))),
    )


def _gemma_scope(tensors: Tensors, config: Config, file: Path) -> tuple[dict[str, Any], Place]:
    threshold = tensors["threshold"]
    parts = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return {**parts, "activation": JumpRelu(threshold)}, None


LAYOUTS: dict[str, FileLayout] = {
    one.name: one
    for one in (
        FileLayout(
            "sparsify", frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"}), frozenset({"W_skip"}),
            _sparsify
        ),
        FileLayout(
            "gemma-scope", frozenset({"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}), frozenset(), _gemma_scope
        ),
        FileLayout(
            "saelens", frozenset({"W_enc", "W_dec", "b_dec"}),
            frozenset({"b_enc", "threshold", "b_gate", "b_mag", "r_mag", "W_skip", "scaling_factor"}), _saelens,
        ),
        FileLayout(
            "circuit-tracer", frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
            frozenset({"activation_function.threshold", "threshold", "k", "W_skip"}), _circuit_tracer,
        ),
    )
}  # fmt: skip
"""Every layout by name, the most telling names first."""


def _metadata(config: Config) -> dict[str, Any]:
    found = config.get("metadata") or config.get("meta") or {}
    return dict(found) if isinstance(found, Mapping) else {}


def _short(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.items() if isinstance(value, str | int | float | bool)}


def _plain_name(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(last, last)
