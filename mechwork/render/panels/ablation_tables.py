"""Tables of ablation studies: one ablation, sets beside random sets, repair, roles, copy suppression, training,
telemetry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ablation.formation import Formation
from ...ablation.impairment import Impairment
from ...ablation.interactions import KnockOutIn
from ...ablation.removal import Removal
from ...ablation.repair import SelfRepair
from ...ablation.roles import RoleTable
from ...ablation.run import AblationResult
from ...ablation.suppression import CopySuppression
from ...ablation.telemetry import Telemetry
from ...ablation.telemetry_training import TelemetryOverTraining
from ...display import draws
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, RowLinks, table
from ..page.text import escape, fixed, number, percent, signed, words


def _numbers(heading: str, values: Sequence[float], decimals: int = 2, title: str = "") -> Column:
    return Column(heading, [fixed(v, decimals) for v in values], numeric=True, title=title)


def _effects(heading: str, values: Sequence[float], title: str = "") -> Column:
    return Column(heading, [signed(v) for v in values], numeric=True, signs=list(values), title=title)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@draws(AblationResult)
def render_ablation(result: AblationResult) -> str:
    """One page: what the metric, the accuracy and the output lose."""
    low, high = result.interval() if len(result.per_example) > 1 else (math.nan, math.nan)
    columns = [
        Column("", [f"mean {words(result.metric_name)}", "accuracy", "KL to the model (nats)"]),
        _numbers(
            "intact", [float(result.clean_per_example.mean()), float(result.clean_correct.float().mean()), 0.0], 3
        ),
        _numbers(
            "ablated",
            [float(result.ablated_per_example.mean()), float(result.ablated_correct.float().mean()), result.kl],
            3,
        ),
        Column(
            "effect",
            [f"{signed(result.effect)} [{number(low)}, {number(high)}]", signed(result.accuracy_drop), ""],
            numeric=True,
        ),
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    return figures_page("Ablation", [Fragment(table(columns, caption=str(result.spec))), Fragment(notes)])


@draws(KnockOutIn)
def render_knock(study: KnockOutIn) -> str:
    """One page: each target lost, and each alone."""
    out, alone = study.out.mean(dim=1).tolist(), study.alone.mean(dim=1).tolist()
    order = sorted(range(len(out)), key=lambda i: -abs(out[i]))
    names = [study.targets[i] for i in order]
    columns = [
        Column("target", names),
        _effects("lost without it", [out[i] for i in order]),
        _effects("gained with it alone", [alone[i] for i in order]),
    ]
    caption = (
        f"{study.kind} ablation; {words(study.metric_name)} {number(study.clean)} intact, {number(study.empty)} "
        "with everything ablated"
    )
    return figures_page("Knock-out and knock-in", [Fragment(table(columns, caption=caption, links=RowLinks(names)))])


def impairment_table(study: Impairment) -> str:
    """Chosen sets on every task beside matched random sets."""
    columns = [
        Column("chosen for", [s.chosen_for for s in study.sets]),
        Column("components", [" ".join(s.components) for s in study.sets]),
        Column("measured on", [s.task for s in study.sets]),
        Column("lost", [percent(s.drop) for s in study.sets], numeric=True, signs=[s.drop for s in study.sets]),
        Column(
            "random sets",
            [
                f"{percent(_mean(s.controls))} (at most {percent(max(s.controls, default=math.nan))})"
                for s in study.sets
            ],
            numeric=True,
        ),
        _numbers("p", [s.p for s in study.sets], 3, "share of random sets that lose at least as much"),
        _effects("accuracy", [-s.accuracy_drop for s in study.sets]),
        _effects("random", [-_mean(s.accuracy_controls) for s in study.sets]),
    ]
    return table(
        columns,
        caption="The most selective components together, on held-out pairs, beside random sets matched in kind and "
        "layer",
    )


def repair_table(study: SelfRepair) -> str:
    """Direct and total effect, and what repairs, per head."""
    rows = sorted(study.to_dataframe().to_dict(orient="records"), key=lambda row: -abs(row["direct"]))
    names = [str(row["head"]) for row in rows]
    titles = {
        "by_norm": "the final norm scales the changed stream",
        "by_heads": "other heads write more",
        "by_mlps": "MLPs write more",
    }
    columns = [Column("head", names)]
    columns += [
        _effects(name.replace("_", " "), [row[name] for row in rows], titles.get(name, ""))
        for name in ("direct", "total", "repaired", "by_norm", "by_heads", "by_mlps")
    ]
    columns.append(
        Column("backups", [", ".join(f"{b.head} {signed(b.gain)}" for b in study.backups(name)) for name in names])
    )
    return table(
        columns, caption="repaired = direct - total = by norm + by heads + by MLPs, in logits", links=RowLinks(names)
    )


@draws(RoleTable)
def render_roles(roles: RoleTable) -> str:
    """One page: scores, chance in the hover text, and the roles given by rule."""
    names = list(roles.heads)
    columns = [Column("head", names)]
    for role, values in roles.scores.items():
        chance = float(roles.null_mean[role].mean())
        columns.append(_numbers(role, values.tolist(), 2, f"chance {number(chance)} (mean over heads)"))
    columns.append(
        Column(
            "roles (by rule)",
            [", ".join(roles.roles_of(name)) for name in names],
            title="score at least 0.3 and corrected p below 0.05",
        )
    )
    chance = ", ".join(f"{role} {number(float(values.mean()), 2)}" for role, values in roles.null_mean.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in roles.notes)
    body = table(columns, caption=f"Measured scores of every head. Chance: {chance}", links=RowLinks(names))
    return figures_page("Roles of heads", [Fragment(body), Fragment(notes)])


@draws(CopySuppression)
def render_suppression(study: CopySuppression) -> str:
    """One page: the evidence per head."""
    rows = study.rows
    columns = [
        Column("head", [r.head for r in rows]), _effects("direct effect", [r.direct_effect for r in rows]),
        _numbers("p", [r.p for r in rows], 3),
        _numbers("OV: own token among the "
                 "lowest", [r.ov_among_lowest for r in rows], 2, f"chance {number(study.chance_lowest)}"),
        _numbers("OV percentile", [r.ov_percentile for r in rows], 2, "0: always lowered most; chance 0.5"),
        _numbers("QK: own token first", [r.qk_first for r in rows], 2, f"chance {number(study.chance_first)}"),
        _numbers("QK percentile", [r.qk_percentile for r in rows], 2, "1: always attended most; chance 0.5"),
        _numbers("KL when ablated", [r.kl_ablated for r in rows], 4),
        _numbers("share explained", [r.share_explained for r in rows], 2),
    ]  # fmt: skip
    return figures_page(
        "Copy suppression",
        [Fragment(table(columns, caption="Evidence for copy suppression, most negative direct effect first"))],
    )


@draws(Removal)
def render_removal(study: Removal) -> str:
    """One page: the removed heads beside matched random ones, task by task."""
    rows = study.rows
    columns = [
        Column("task", [r.task for r in rows]), Column("metric", [words(r.metric_name) for r in rows]),
        _numbers("intact", [r.intact for r in rows]),
        _numbers("removed", [r.removed for r in rows]), _numbers("random, mean", [_mean(r.random) for r in rows]),
        _numbers("random, worst", [min(r.random) for r in rows]),
        _numbers("p", [r.p for r in rows], 3), _numbers("accuracy", [r.accuracy for r in rows]),
        _numbers("removed", [r.accuracy_removed for r in rows]),
        _numbers("random", [_mean(r.accuracy_random) for r in rows]),
    ]  # fmt: skip
    named = ", ".join(f"{head} ({number(score, 2)})" for head, score in zip(study.heads, study.scores, strict=True))
    caption = (
        f"{study.kind} ablation of the top {study.role} heads {named}, beside {len(study.random_sets)} random "
        "sets matched in number and layer"
    )
    return figures_page(f"Removal of {study.role} heads", [Fragment(table(columns, caption=caption))])


def formation_table(study: Formation) -> str:
    """Every checkpoint's scores and losses."""
    rows = study.rows
    columns = [
        Column("step", [str(r.step) for r in rows]),
        _numbers("previous token", [r.previous_token for r in rows]),
        _numbers("induction", [r.induction for r in rows]),
        _numbers("loss", [r.loss for r in rows]),
    ]
    columns += [_numbers(name, [r.clamped[name] for r in rows], 2, "loss") for name in rows[0].clamped]
    return table(
        columns,
        caption="Scores of the best head; loss at the repetition in nats, intact and with activations clamped to the "
        "last checkpoint's",
    )


@draws(Telemetry)
def render_telemetry(found: Telemetry) -> str:
    """One page: a row per layer."""
    frame = found.to_dataframe()
    columns = [Column("layer", [str(layer) for layer in frame["layer"]])]
    columns += [
        _numbers(name.replace("_", " "), frame[name].tolist(), 2)
        for name in frame.columns
        if name not in ("layer", "position", "dimension")
    ]
    columns += [Column(name, [str(v) for v in frame[name]], numeric=True) for name in ("position", "dimension")]
    massive = (
        ", ".join(
            f"layer {o.layer}, position {o.position}, dimension {o.dimension}: {number(o.value)}" for o in found.massive
        )
        or "none"
    )
    caption = f"{found.model}, perplexity {number(found.perplexity)}; massive activations: {massive}"
    return figures_page("Telemetry", [Fragment(table(columns, caption=caption))])


def training_table(study: TelemetryOverTraining) -> str:
    """A row per checkpoint and layer."""
    frame = study.to_dataframe()
    columns = [Column(name, [str(v) for v in frame[name]], numeric=True) for name in ("step", "layer")]
    columns += [
        _numbers(name.replace("_", " "), frame[name].tolist(), 2)
        for name in (
            "perplexity",
            "norm",
            "norm_first",
            "largest",
            "ratio_to_median",
            "mean_sink",
            "max_sink",
            "entropy",
        )
    ]
    return table(columns, caption=f"{study.model} over {len(study.steps)} checkpoints")
