"""Edits: changes of the weights as values, applied in a context or saved as a delta, never to the file a model came
from.

Owns the weights that write to the residual stream (`weights`), edits of them (`edit`), and ways to make one: a
direction shared out over the heads and neurons that carry it (`share_out`), least squares from pairs of activations
(`least_squares`), the same into a subspace or like a patch (`subspaces`). An edit is
an intervention like a write: `intervene` takes it, studies of steering measure it. Imports `directions` and below.

    found = share_out(model, direction, examples, n_components=12)
    with apply_edit(model, found.edit):
        logits = model(tokens)
    found.edit.save("she")
"""

from .edit import LowRankChange as LowRankChange
from .edit import WeightEdit as WeightEdit
from .edit import apply_edit as apply_edit
from .least_squares import LayerFit as LayerFit
from .least_squares import edit_from_pairs as edit_from_pairs
from .least_squares import fit_layer_edit as fit_layer_edit
from .least_squares import least_squares as least_squares
from .save import save_model as save_model
from .share_out import ComponentShare as ComponentShare
from .share_out import SharedEdit as SharedEdit
from .share_out import share_out as share_out
from .subspaces import EditBesidePatch as EditBesidePatch
from .subspaces import EditRow as EditRow
from .subspaces import compare_with_patch as compare_with_patch
from .subspaces import edit_into_subspace as edit_into_subspace
from .subspaces import edit_like_patch as edit_like_patch
from .weights import Weight as Weight
from .weights import find_weight as find_weight
