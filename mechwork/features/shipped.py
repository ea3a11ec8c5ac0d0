"""Load features by whatever names them: those shipped with a model, a folder of one's own, or somebody else's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import bundled
from ..errors import NotFoundError
from ..models.borrow import borrows
from ..sites import Site
from .feature_set import FACTS, FeatureSet
from .layouts import import_features

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def feature_names() -> list[str]:
    """Names of the shipped features: the folders of ``data/features`` that hold a manifest."""
    folder = bundled.root() / "features"
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / bundled.MANIFEST).is_file())
        if folder.is_dir()
        else []
    )


@borrows
def load_features(
    model: TransformerBridge,
    source: str | Path | None = None,
    *,
    reads: Site | None = None,
    writes: Site | None = None,
    layout: str | None = None,
    check_name: bool = True,
) -> FeatureSet:
    """Features of `model`: the shipped ones (None: those of its own name), a folder that `FeatureSet.save` wrote, or a
    published file.

    The other arguments are for published files; see `import_features`.

    Raises:
        NotFoundError: nothing of that name.
        ArtefactError: altered files, an unknown layout, features of another model.
        InputError: a layer or a width that the model has not, NaN weights.

    >>> features = load_features(load_model("gpt2-6l"))
    """
    if source is None or (isinstance(source, str) and source in feature_names()):
        name = str(model.cfg.model_name) if source is None else str(source)
        if name not in feature_names():
            raise NotFoundError(
                f"no features are shipped for {name}; shipped are {', '.join(feature_names()) or 'none'}. Train some: "
                "mechwork.features.train_features, or give a folder or a file"
            )
        folder = bundled.path("features", name)
        bundled.verify(folder)
        features = FeatureSet.load(folder)
    elif (Path(source) / FACTS).is_file():
        features = FeatureSet.load(source)
    else:
        return import_features(model, source, reads=reads, writes=writes, layout=layout, check_name=check_name)
    features.check(model)
    return features
