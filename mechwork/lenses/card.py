"""A lens as it is shipped: the translators, what they belong to, a card with how good they are, and a manifest of
sha256.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .. import bundled
from ..files import write_text
from .evaluate import LensEvaluation
from .tuned import TunedLens

CARD = "card.md"


def export_lens(
    lens: TunedLens, measured: LensEvaluation, folder: str | Path, dtype: torch.dtype = torch.float32
) -> Path:
    """Write lens, card and manifest into `folder`. `measured` should be of the lens as it is stored, on rows that
    nothing was chosen by.
    """
    folder = lens.save(folder, dtype)
    write_text(folder / CARD, render_card(lens, measured, dtype))
    bundled.write_manifest(folder)
    return folder


def render_card(lens: TunedLens, measured: LensEvaluation, dtype: torch.dtype) -> str:
    """The card as Markdown."""
    facts = lens.provenance
    recipe, text = facts.get("recipe", {}), facts.get("text", {})
    lines = [
        f"# Tuned lens of {lens.model['name']}",
        "",
        (
            f"Translators of form `{lens.form.name}` at `{lens.kind}`, {lens.n_places} places of width "
            f"{lens.model['d_model']}, stored as {str(dtype).removeprefix('torch.')}. "
            f"Closed-form start from {recipe.get('ridge_tokens', 0):,} tokens, then {facts.get('steps', 0)} steps; "
            f"{facts.get('tokens', 0):,} tokens in all."
        ),
        "",
        f"Text: {', '.join(f'{key} {value}' for key, value in text.items())}.",
        "",
        (
            f"Measured on {int(measured.n.sum()):,} positions of {len(measured.n)} rows that neither trained the lens "
            "nor decided when to stop, in bits; 95 % bootstrap intervals over rows. "
            "KL is D(model || reading), CE the surprisal of the text's next token, top-1 the share of positions at "
            "which lens and model find the same token most probable."
        ),
        "",
        "| place | KL | 95 % | KL of the logit lens | CE | CE of the logit lens | top-1 | of the logit lens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    low, high = measured.interval("kl")
    columns = [measured.mean(name).tolist() for name in ("kl", "logit_kl", "ce", "logit_ce", "top1", "logit_top1")]
    for i, (place, kl, other, ce, other_ce, top, other_top) in enumerate(zip(measured.places, *columns, strict=True)):
        lines.append(
            f"| {place} | {kl:.3f} | [{float(low[i]):.3f}, {float(high[i]):.3f}] | {other:.3f} | {ce:.3f} | "
            f"{other_ce:.3f} | {top:.3f} | {other_top:.3f} |"
        )
    lines += [
        "",
        (
            f"It belongs to the weights with sha256 `{lens.model['weights']}` (as float32) and is refused by any "
            "other model. "
            f"Made again by `mechwork lens train --model {lens.model['name']}`."
        ),
        "",
        "Limits: trained on the model's own training mixture; on other text the readings are extrapolations.",
        "",
    ]
    return "\n".join(lines)
