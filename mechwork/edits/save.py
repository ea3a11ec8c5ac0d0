"""Take a changed model with you: its weights with the changes in them, as a folder that any program loads.

A change that holds whatever the prompt is can be written into the weights, exactly:

| change | weights | like running with |
|---|---|---|
| ``"a3.h1"`` | the head's rows of W_O = 0 | its z zero |
| ``"a3"``, ``"m3"`` | W_O or W_out, and its bias, = 0 | ``attn_out``, ``mlp_out`` zero |
| ``"m3.n17"``, ``"m3.n17+20"`` | these rows of W_out = 0 | the neurons zero |
| ``Write(z.l.h, Value(c))`` | the head's rows = 0, b_O += c W_O | a mean ablation |
| ``Write(z.l.h, Add(v))`` | b_O += v W_O | |
| ``Write(attn_out.l or mlp_out.l or resid_post.l, Add(v))`` | b_O or b_out += v | a steering vector, everywhere |
| a `WeightEdit` | W += strength x change | itself |
| a `Direction` | what writes (W_E, W_pos, W_O, b_O, W_out, b_out) without it | Arditi et al. 2024 |

Where a family has no bias at an MLP, Llama's own setting ``mlp_bias`` makes one. Removing a direction unties the
unembedding, whose weights stay. Anything else (a gate, a turn, a write at some positions) holds only while it runs
and is refused, as is what a norm behind the weight would bend. The folder has the weights, the config, the tokenizer
and ``changes.json`` (see `models.changed`). Cost: no forward; the weights in memory once more.

    save_model(model, "quiet", ["a3.h1", "m2"])
    load_model("quiet")
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..artefact import write_tensors
from ..directions import Direction
from ..display import Readable
from ..errors import InputError, UnsupportedModelError
from ..files import sha256, write_json, writing
from ..interventions import Add, Constant, Value, Write, Zero
from ..models.anatomy import NATIVE, check_ready
from ..models.borrow import borrows
from ..models.changed import CHANGES, WEIGHTS, WHAT
from ..models.identity import identify_model
from ..names import parse_place
from ..provenance import build_provenance, hash_tensors
from .edit import WeightEdit
from .weights import find_weight, post_norm

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Change = str | Write | WeightEdit | Direction
WRAPPED = ("original_component", "_original_component")
"""Steps in the host's dotted names that Hugging Face's own names do not have."""
BIASES = {"LlamaForCausalLM": ("mlp_bias", ("gate_proj", "up_proj", "down_proj"))}
"""Architecture -> its config's setting that gives an MLP biases, and the modules that then have one."""
OWN_PLACES = "a3.h1, a3, m3, m3.n17"


@borrows
def save_model(
    model: TransformerBridge, folder: str | Path, changes: Sequence[Change] = (), *, force: bool = False
) -> Path:
    """Write the model, with `changes`, as a folder in Hugging Face format; the model in memory stays as it is.

    `changes` are done in the order given: places to switch off in words, writes that are the same at every position,
    edits, and directions to remove (see the module). Weights are kept in the model's dtype. `force` replaces a folder.
    Returns the folder; ``load_model(folder)`` gives the changed model and checks its weights.

    Raises `InputError` for what is no change of weights, a place or direction of another model, or a folder that
    exists; `UnsupportedModelError` where a family keeps the weight otherwise.

    >>> save_model(model, "quiet", ["a3.h1"])
    """
    if isinstance(changes, str | Write | WeightEdit | Direction) or not isinstance(changes, Sequence):
        raise InputError(f"changes is a list, e.g. ['a3.h1', edit]; got {changes!r}")
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise InputError(f"{folder} exists and is not overwritten. Pass force=True, or choose another folder")
    state = ChangedState.of(model)
    said = [state.apply(change) for change in changes]
    return _write(model, state, said, folder)


@dataclass(eq=False)
class ChangedState(Readable):
    """Every tensor of the model under Hugging Face's name; those that were changed are copies."""

    model: TransformerBridge
    config: Any
    tensors: dict[str, Tensor]
    before: dict[str, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: TransformerBridge) -> ChangedState:
        """Of a model that Hugging Face has a class for."""
        if check_ready(model).architecture == NATIVE:
            raise UnsupportedModelError("a native model of TransformerLens has no Hugging Face format to be saved in")
        module: Any = model.original_model
        with torch.device("meta"):
            fresh = type(module)(copy.deepcopy(module.config)).state_dict()
        live = {
            ".".join(part for part in name.split(".") if part not in WRAPPED): tensor.detach()
            for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        }
        if lost := sorted(set(fresh) - set(live)):
            raise UnsupportedModelError(
                f"{type(module).__name__} keeps {lost[0]} otherwise here, so it cannot be saved under its own name"
            )
        return cls(model, copy.deepcopy(module.config), {name: live[name] for name in fresh})

    def apply(self, change: Change) -> str:
        """Do one change; says it in words."""
        if isinstance(change, str):
            return self._switch_off(change)
        if isinstance(change, WeightEdit):
            return self._edit(change)
        if isinstance(change, Direction):
            return self._remove(change)
        if isinstance(change, Write):
            return self._write(change)
        raise InputError(
            f"changes of weights are a place ({OWN_PLACES}), a Write, a WeightEdit or a Direction; got "
            f"{type(change).__name__}"
        )

    # ---- kinds of change -----------------------------------------------------------------------------------------

    def _switch_off(self, text: str) -> str:
        place = parse_place(text)
        if place.what not in ("head", "attn", "mlp", "neurons") or place.at or place.side or place.query:
            raise InputError(f"places that can be switched off for good are written {OWN_PLACES}; got {text!r}")
        assert place.layer is not None
        self._check_layer(place.layer)
        weight = f"{'W_O' if place.what in ('head', 'attn') else 'W_out'}.{place.layer}"
        if place.what == "head":
            self._rows(weight, self._head(place.layer, place.index[0]), 0.0)
        elif place.what == "neurons":
            self._rows(weight, self._neurons(weight, place.index), 0.0)
        else:
            self._rows(weight, slice(None), 0.0)
            name = self._bias(weight)
            if name is not None:
                self._put(name, torch.zeros_like(self.tensors[name]))
        return f"{text} switched off"

    def _write(self, write: Write) -> str:
        site, put = write.site, write.replacement
        self.model_has(write)
        fits = isinstance(put, Add | Constant | Value | Zero) and write.where is None
        if fits and site.kind == "z" and site.head is not None:
            return self._write_head(write)
        if fits and isinstance(put, Add) and site.kind in ("attn_out", "mlp_out", "resid_post", "resid_pre"):
            layer = int(site.layer or 0) - (site.kind == "resid_pre")
            weight = f"{'W_O' if site.kind == 'attn_out' else 'W_out'}.{layer}"
            if layer >= 0:
                self._check_unbent(weight)
                self._add_bias(weight, put.strength * put.vector)
                return f"a vector of length {float((put.strength * put.vector).norm()):.4g} added at {site}"
        if fits and isinstance(put, Zero) and site.kind in ("attn_out", "mlp_out"):
            return self._switch_off(f"{'a' if site.kind == 'attn_out' else 'm'}{site.layer}")
        raise InputError(
            "a write is a change of weights when it is the same on every prompt: Add at attn_out, mlp_out, resid_post "
            f"or a head's z, Zero or Value at a head's z, no mask; got {put!r} at {site}. Keep it with save_writes "
            "and run it with intervene"
        )

    def _write_head(self, write: Write) -> str:
        site, put = write.site, write.replacement
        assert site.layer is not None
        assert site.head is not None
        weight, rows = f"W_O.{site.layer}", self._head(site.layer, site.head)
        slice_of = self._matrix(weight)[rows]
        if not isinstance(put, Zero):
            value = (
                put.strength * put.vector
                if isinstance(put, Add)
                else torch.as_tensor(_constant(put), dtype=slice_of.dtype)
            )
            if value.ndim > 1 or (value.ndim == 1 and len(value) != len(slice_of)):
                raise InputError(f"a head's z has {len(slice_of)} numbers in this model; got {tuple(value.shape)}")
            self._add_bias(weight, value.to(slice_of).expand(len(slice_of)) @ slice_of)
        if not isinstance(put, Add):
            self._rows(weight, rows, 0.0)
        return f"{type(put).__name__} at {site}"

    def _edit(self, edit: WeightEdit) -> str:
        edit.check(self.model)
        for name, change in edit.changes.items():
            old = self._matrix(name)
            wide = torch.promote_types(old.dtype, torch.float32)
            new = (old.to(wide) + edit.strength * change.dense().to(old.device, wide)).to(old.dtype)
            self._put_matrix(name, new)
        return str(edit)

    def _remove(self, direction: Direction) -> str:
        direction.check(self.model)
        anatomy = check_ready(self.model)
        if anatomy.attn_only or anatomy.n_experts is not None:
            raise UnsupportedModelError("a direction is removed from models whose every layer has one MLP")
        unit = direction.unit.double()
        if len(unit) != anatomy.d_model:
            raise InputError(
                f"a direction of the stream is removed from weights; {direction.name!r} is at {direction.site}"
            )
        weights = [f"{kind}.{layer}" for layer in range(anatomy.n_layers) for kind in ("W_O", "W_out")]
        for weight in weights:
            self._check_unbent(weight)
        self._untie()
        for part in ("embed", "pos_embed"):
            if hasattr(self.model, part):
                name = self._name_of(_inner(getattr(self.model, part)).weight)
                self._put(name, _without(self.tensors[name], unit))
        for weight in weights:
            self._put_matrix(weight, _without(self._matrix(weight), unit))
            name = self._bias(weight)
            if name is not None:
                self._put(name, _without(self.tensors[name], unit))
        return f"{direction.name} removed from everything that writes to the stream"

    # ---- tensors -------------------------------------------------------------------------------------------------

    def model_has(self, write: Write) -> None:
        """Raises `InputError` for a place that the model does not have."""
        write.check(self.model)

    def _check_layer(self, layer: int) -> None:
        n = check_ready(self.model).n_layers
        if layer >= n:
            raise InputError(f"layers of this model are 0 to {n - 1}; got {layer}")

    def _check_unbent(self, weight: str) -> None:
        if post_norm(self.model, weight) is not None:
            raise InputError(
                f"a norm stands between {weight} and the stream in this model, so that no change of weights adds or "
                "removes a vector there. Run it as a write instead"
            )

    def _name_of(self, parameter: Tensor) -> str:
        for name, tensor in self.tensors.items():
            origin = self.before.get(name, tensor)
            live = tensor if origin is None else origin
            if live.data_ptr() == parameter.data_ptr() and live.shape == parameter.shape:
                return name
        raise UnsupportedModelError("this weight is not kept under a name of its own; it cannot be changed for good")

    def _put(self, name: str, value: Tensor) -> None:
        self.before.setdefault(name, self.tensors.get(name))
        self.tensors[name] = value.contiguous()

    def _matrix(self, weight: str) -> Float[Tensor, "d_in d_model"]:
        found = find_weight(self.model, weight)
        value = self.tensors[self._name_of(found.parameter.detach())]
        return value.T if found.flipped else value

    def _put_matrix(self, weight: str, value: Float[Tensor, "d_in d_model"]) -> None:
        found = find_weight(self.model, weight)
        if not bool(value.isfinite().all()):
            raise InputError(f"the change overflows {value.dtype} in {weight}; use a smaller strength or a wider dtype")
        self._put(self._name_of(found.parameter.detach()), found.as_host(value).clone())

    def _rows(self, weight: str, rows: Any, value: float) -> None:
        matrix = self._matrix(weight).clone()
        matrix[rows] = value
        self._put_matrix(weight, matrix)

    def _head(self, layer: int, head: int) -> slice:
        anatomy = check_ready(self.model)
        if not 0 <= head < anatomy.n_heads or layer >= anatomy.n_layers:
            raise InputError(
                f"heads of this model are a0.h0 to a{anatomy.n_layers - 1}.h{anatomy.n_heads - 1}; got a{layer}.h{head}"
            )
        return slice(head * anatomy.d_head, (head + 1) * anatomy.d_head)

    def _neurons(self, weight: str, index: tuple[int, ...]) -> list[int]:
        n = len(self._matrix(weight))
        if max(index) >= n:
            raise InputError(f"neurons of this layer are 0 to {n - 1}; got {max(index)}")
        return list(index)

    def _bias(self, weight: str) -> str | None:
        """The name of what is added behind a weight; None where there is nothing."""
        bias = find_weight(self.model, weight).bias
        if isinstance(bias, Tensor):
            return self._name_of(bias.detach())
        made = self._made_bias(weight)
        return made if made in self.tensors else None

    def _made_bias(self, weight: str) -> str:
        name = self._name_of(find_weight(self.model, weight).parameter.detach())
        return name.removesuffix("weight") + "bias"

    def _add_bias(self, weight: str, vector: Float[Tensor, " d_model"]) -> None:
        name = self._bias(weight) or self._make_bias(weight)
        old = self.tensors[name]
        if tuple(vector.shape) != tuple(old.shape):
            raise InputError(f"a vector of the stream has {len(old)} numbers in this model; got {tuple(vector.shape)}")
        self._put(name, (old.double() + vector.double().to(old.device)).to(old.dtype))

    def _make_bias(self, weight: str) -> str:
        architecture = type(self.model.original_model).__name__
        setting, modules = BIASES.get(architecture, ("", ()))
        if not setting or not weight.startswith("W_out"):
            raise InputError(
                f"{architecture} adds nothing behind {weight}, and its config has no setting for it: a constant cannot "
                "be kept in its weights. Keep it with save_writes and run it with intervene"
            )
        setattr(self.config, setting, True)
        for name in [name for name in self.tensors if any(name.endswith(f"mlp.{module}.weight") for module in modules)]:
            matrix = self.tensors[name]
            self._put(name.removesuffix("weight") + "bias", matrix.new_zeros(matrix.shape[0]))
        return self._made_bias(weight)

    def _untie(self) -> None:
        """The unembedding keeps its weights when the embedding's change."""
        owners: dict[int, str] = {}
        for name, tensor in list(self.tensors.items()):
            if tensor.data_ptr() in owners and name not in self.before:
                self._put(name, tensor.clone())
                self.config.tie_word_embeddings = False
            owners.setdefault(tensor.data_ptr(), name)


def _constant(put: object) -> Any:
    return put.value if isinstance(put, Constant | Value) else 0.0


def _inner(module: Any) -> Any:
    while isinstance(getattr(module, "original_component", None), torch.nn.Module):
        module = module.original_component
    return module


def _without(value: Float[Tensor, "*rows d_model"], unit: Float[Tensor, " d_model"]) -> Float[Tensor, "*rows d_model"]:
    wide, u = value.double(), unit.to(value.device)
    return (wide - (wide @ u)[..., None] * u).to(value.dtype)


def _write(model: TransformerBridge, state: ChangedState, said: list[str], folder: Path) -> Path:
    """The folder, made beside the old one and moved into place."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(part):
            part.mkdir(parents=True)
            stored, seen = dict[str, Tensor](), set[int]()
            for name, tensor in state.tensors.items():
                if tensor.data_ptr() not in seen:  # what is tied is kept once
                    stored[name] = tensor.contiguous().cpu()
                    seen.add(tensor.data_ptr())
            file = write_tensors(part / WEIGHTS, stored, {"format": "pt"})
            config, module = state.config, model.original_model
            config.architectures = [type(module).__name__]
            config.dtype = str(next(iter(stored.values())).dtype).removeprefix("torch.")
            config.save_pretrained(str(part))
            if getattr(model, "tokenizer", None) is not None:
                model.tokenizer.save_pretrained(str(part))
            facts = {"what": WHAT, "format": 1, **_list(model, state, said), "weights_file_sha256": sha256(file)}
            write_json(part / CHANGES, facts)
            if folder.exists():
                shutil.rmtree(folder)
            part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _list(model: TransformerBridge, state: ChangedState, said: list[str]) -> dict[str, Any]:
    """The base, the changes in words, and every tensor that differs."""
    rows = {}
    for name, old in state.before.items():
        new = state.tensors[name]
        row: dict[str, Any] = {"after": hash_tensors({"tensor": new.cpu()})}
        if old is not None:
            size = float(old.double().norm())
            row["before"] = hash_tensors({"tensor": old.cpu()})
            row["share_changed"] = float((new.double() - old.double()).norm()) / size if size else None
        rows[name] = row
    return {
        "base": identify_model(model),
        "changes": said,
        "tensors": rows,
        "provenance": build_provenance(method="save model", changes=said),
    }
