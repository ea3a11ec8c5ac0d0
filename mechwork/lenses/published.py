"""Import lenses that others have published: a folder with ``config.json`` and ``params.pt`` or ``params.safetensors``.

The published form (tuned-lens 0.x) is ``h + Linear_i(h)`` with i the index of the hidden state, i = 0 being the
embedding: our full translator at ``resid_pre.i``. Its configuration names the base model and, since 0.1, a hash of the
unembedding as text at one decimal; a lens whose hash does not fit is refused, which the package itself only warned of.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..artefact import read_tensors
from ..errors import ArtefactError, NotFoundError
from ..files import read_object
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..provenance import build_provenance
from .archive import read_archive
from .fingerprint import fingerprint
from .translators import Full
from .tuned import TunedLens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@borrows
def import_lens(model: TransformerBridge, folder: str | Path, *, check_unembedding: bool = True) -> TunedLens:
    """A published lens as a `TunedLens` of `model`. No pickle is ever executed: see `lenses.archive`.

    `check_unembedding=False` leaves out the published hash of the unembedding, for lenses trained on weights that were
    rounded or padded differently. Raises `NotFoundError` for a folder without a lens; `ArtefactError` for another size
    or number of layers, a kind of lens that is not linear, another unembedding, or a file that is more than tensors.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise NotFoundError(f"{folder} holds no published lens: config.json is missing")
    config = read_object(config_file)
    anatomy = read_anatomy(model)
    name = config.get("base_model_name_or_path", "an unnamed model")
    layers = config.get("num_hidden_layers", config.get("num_layers"))
    if config.get("lens_type", "linear_tuned_lens") != "linear_tuned_lens":
        raise ArtefactError(f"{folder} is a {config['lens_type']}; linear tuned lenses are imported")
    if config.get("d_model") != anatomy.d_model or layers != anatomy.n_layers:
        raise ArtefactError(
            f"the lens in {folder} is for {name}, {layers} layers of width {config.get('d_model')}; this model has "
            f"{anatomy.n_layers} of {anatomy.d_model}"
        )
    hashed = config.get("unembed_hash")
    if check_unembedding and hashed and hashed != unembedding_text_hash(model):
        raise ArtefactError(
            f"the lens in {folder} is for {name}, whose unembedding is not this model's. Load that model, or, if you "
            "know that they are the same "
            "but for rounding, pass check_unembedding=False."
        )
    tensors = _tensors(folder)
    n, d = anatomy.n_layers, anatomy.d_model
    parts: dict[str, Tensor] = {}
    for part, shape in (("weight", (d, d)), ("bias", (d,))):
        found = [tensors.get(f"{i}.{part}", torch.zeros(shape) if part == "bias" else None) for i in range(n)]
        if any(one is None or tuple(one.shape) != shape for one in found):
            raise ArtefactError(
                f"{folder} lacks translators: {n} of shape {shape} named 0.{part} to {n - 1}.{part} are needed"
            )
        parts[part] = torch.stack([one.float() for one in found if one is not None])
    provenance = build_provenance(
        method="imported lens",
        config=config,
        folder=folder.name,
        unembedding_checked=bool(check_unembedding and hashed),
    )
    return TunedLens(Full(), "resid_pre", parts, fingerprint(model), provenance)


def unembedding_text_hash(model: TransformerBridge) -> str:
    """The published package's hash of an unembedding ``[d_vocab, d_model]``: sha256 of numpy's text of it at one
    decimal.
    """
    weight = model.W_U.detach().cpu().T.contiguous()
    array = weight.numpy() if weight.dtype in (torch.float16, torch.float32, torch.float64) else weight.float().numpy()
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False):
        return hashlib.sha256(np.array_str(array, precision=1).encode()).hexdigest()


def _tensors(folder: Path) -> dict[str, Tensor]:
    safe = folder / "params.safetensors"
    if safe.is_file():
        return read_tensors(safe)[1]
    if (folder / "params.pt").is_file():
        return read_archive(folder / "params.pt")
    raise NotFoundError(f"{folder} holds no published lens: neither params.safetensors nor params.pt is there")
