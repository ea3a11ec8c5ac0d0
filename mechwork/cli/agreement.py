"""Compare estimated with measured effects: every estimator, every kind of site, on one task or all that the model
can do; circuits of edge scores beside them. With ``--out`` a folder keeps what is done, and gets CSV and a page.

mechwork agreement
mechwork agreement ioi induction --model gpt2-6l --presets gradient,relp,gim --ig-steps 5
mechwork agreement --model all --presets gradient,relp
mechwork agreement --model SmolLM2.gguf --seeds 0,1,2 --templates 3 -n 4 --places 40 --ig-steps 5 --out evidence
mechwork agreement ioi --model SmolLM2.gguf --presets relp --edges eap,eap-ig,relp
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import make_folder, write_text
from ..harmless import table_text
from ._agreement_tables import edges_text, page
from .bundled import default_tasks
from .console import Console
from .options import add_executor, add_pairs, add_tasks, at_least, load, path, task_builder, task_names
from .output import deliver

GATE_PAIRS = 16
"""Pairs on which a model shows that it can do a task (or `-n`, where that is more)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    add_tasks(parser, "names of tasks (default: all that the model was made for)")
    parser.add_argument(
        "--presets", "--rules", dest="rules", metavar="NAMES", default="all",
        help="presets of rules, with commas; ig5 and relp-ig5 are paths of five points; none: edges alone (default: "
        "all presets)",
    )  # fmt: skip
    parser.add_argument(
        "--ig-steps", type=at_least(2), metavar="K", help="also compare gradients and RelP with K points on the path"
    )
    add_pairs(parser, 32, least=1, what="pairs per task")
    parser.add_argument("--seeds", metavar="SEEDS", help="several seeds, with commas: each its own pairs and rows")
    parser.add_argument(
        "--templates", type=at_least(1), metavar="K",
        help="one template per seed, the K of each task in turn (default: all templates mixed)",
    )  # fmt: skip
    parser.add_argument(
        "--least-accuracy", type=float, default=0.7, metavar="X",
        help="a task that the model does worse is listed, not measured; 0: whatever it does (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise", help="(default: denoise)")
    parser.add_argument("--spans", action="store_true", help="measure the task's spans rather than every position")
    parser.add_argument(
        "--places", type=at_least(3), metavar="N", help="measure N random places of each kind (default: all)"
    )
    parser.add_argument(
        "--screen", metavar="RULES", help="measure only the 5 %% of places with the largest estimates, and random ones"
    )
    parser.add_argument("--edges", metavar="PRESETS", help="also judge circuits of these edge presets, with commas")
    parser.add_argument(
        "--edge-pairs", type=at_least(4), metavar="N", help="pairs for edges, half of them held out (default: twice -n)"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="keep rows, CSV, tables there; run again, it goes on")
    parser.set_defaults(keeps=False)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure, estimate, print."""
    from .. import bundled
    from ..circuits.scoring.methods import find_method
    from ..patching.estimators import find_estimator
    from ..relevance import PRESETS

    for name in task_names(args, ()):
        task_builder(name)
    if not 0 <= args.least_accuracy <= 1:
        raise InputError(f"--least-accuracy is a share from 0 to 1; got {args.least_accuracy}")
    if args.places and args.screen:
        raise InputError("--places draws places and --screen chooses them; give one")
    if args.rules == "none" and not args.edges:
        raise InputError("--presets none leaves nothing to do without --edges PRESETS; give some of either")
    names = list(PRESETS) if args.rules == "all" else [] if args.rules == "none" else args.rules.split(",")
    if args.ig_steps and names:
        names += [name for name in (f"ig{args.ig_steps}", f"relp-ig{args.ig_steps}") if name not in names]
    estimators = [find_estimator(name) for name in names]
    edge_presets = args.edges.split(",") if args.edges else []
    for preset in edge_presets:
        find_method(preset)
    _seeds(args)
    models = bundled.model_names() if args.model == "all" else [args.model]
    texts, data, studies = [], [], []
    for name in models:
        own = argparse.Namespace(**{**vars(args), "model": name})
        out = args.out / (name if len(models) > 1 else "") if args.out else None
        cases = Cases(load(own), own, console, None if out is None else out / "kept")
        study = _study(cases, estimators) if estimators else None
        edges = _edges(cases, edge_presets) if edge_presets else None
        studies += [study] if edges is None else [study, edges]
        where = ", at the tasks' spans" if args.spans else ""
        where += f", {args.places} random places of each kind" if args.places else ""
        title = (
            f"{name}, {args.n_pairs} pairs per task, {args.direction}{where}: Pearson / relative error of the estimate "
            "against the measured effect"
        )
        left = [f"left out: {line}" for line in cases.left_out]
        texts += [*([f"{title}\n\n{study.table()}"] if study else []), *left, *([edges_text(edges)] if edges else [])]
        data.append(
            {"model": name, "left_out": cases.left_out, **(study.to_json() if study else {})}
            | ({"edges": edges.to_dataframe().to_dict("records")} if edges else {})
        )
        if out is not None:
            _keep(out, study, edges, cases)
    note = (
        "Over layer x position for the stream and the writes, layer x head for z; * marks the smallest error of a row."
    )
    kept = argparse.Namespace(html=args.html, force=args.force)  # --out is the folder, written above
    deliver(kept, console, studies, "\n\n".join([*texts, note]), {"models": data})


def _seeds(args: argparse.Namespace) -> list[int]:
    if args.seeds is None:
        return [args.seed]
    parts = args.seeds.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--seeds takes different whole numbers with commas, e.g. 0,1,2; got {args.seeds!r}")
    return [int(part) for part in parts]


@dataclass
class Cases:
    """The tasks of one model: every seed with its template, those that it cannot do set aside.

    `kept`: a folder for accuracies. `facts`: by the name of a case, its task, seed and template, for the tables.
    """

    model: Any
    args: argparse.Namespace
    console: Console
    kept: Path | None = None
    left_out: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    accuracies: dict[tuple[str, str | None], float] = field(default_factory=dict)

    def build(self, n: int, templates: int | None) -> list[Any]:
        """Seed by seed, so that an interrupted run has seen every task; each with `n` pairs.

        Raises `InputError` when nothing is left that the model can do.
        """
        from ..tasks.sampling.examples import spread

        args, seeds = self.args, _seeds(self.args)
        names = task_names(args, default_tasks(args.model))
        found, impossible = [], set[str]()
        for turn, seed in enumerate(seeds):
            for name in names:
                chosen = spread(name, templates) if templates else ()
                number = turn % len(chosen) if chosen else None
                template = None if number is None else chosen[number]
                if name in impossible or not self._can(name, template, number, impossible):
                    continue
                case = name + (f", seed {seed}" if len(seeds) > 1 else "")
                case += "" if number is None else f", template {number}"
                task = task_builder(name)(self.model, n=n, seed=seed, **_drawn(template))
                self.facts[case] = {"seed": seed, "template": "mixed" if template is None else template}
                self.facts[case] |= {"base": name, "accuracy": self.accuracies[name, template]}
                found.append(replace(task, name=case))
        if not found:
            raise InputError(f"nothing is left to measure: {'; '.join(self.left_out)}. --least-accuracy lowers the bar")
        return found

    def _can(self, name: str, template: str | None, number: int | None, impossible: set[str]) -> bool:
        """Whether the tokenizer can express the task and the model is right often enough; says why not, once."""
        said = name if number is None else f"{name}, template {number}"
        if (name, template) not in self.accuracies:
            try:
                n = max(self.args.n_pairs, GATE_PAIRS)
                task = task_builder(name)(self.model, n=n, seed=self.args.seed, **_drawn(template))
            except InputError as error:
                if task_names(self.args, ()):
                    raise
                impossible.add(name)
                self._leave_out(f"{name}: {error}")
                return False
            self.accuracies[name, template] = self._accuracy(task, said) if self.args.least_accuracy else float("nan")
            if self.accuracies[name, template] < self.args.least_accuracy:
                self._leave_out(f"{said}: right in {self.accuracies[name, template]:.2f} of {len(task)} pairs")
        return not self.accuracies[name, template] < self.args.least_accuracy

    def _accuracy(self, task: Any, said: str) -> float:
        """The model's accuracy, measured once for the folder."""
        from ..models.identity import identify_model
        from ..patching.kept import Kept
        from ..provenance import hash_json, stable

        kept = Kept(self.kept, f"{said}, accuracy", hash_json([identify_model(self.model), stable(task.provenance())]))
        facts = kept.read()
        if facts is None:
            facts = {"accuracy": task.accuracy(self.model)}
            kept.write(facts)
        return float(facts["accuracy"])

    def _leave_out(self, line: str) -> None:
        self.left_out.append(line)
        self.console.say(f"left out: {line}")


def _drawn(template: str | None) -> dict[str, Any]:
    """The argument that only tasks with templates take."""
    return {} if template is None else {"template": template}


def _study(cases: Cases, estimators: list[Any]) -> Any:
    from ..models.anatomy import read_anatomy
    from ..patching.study import SITES, study_agreement

    args = cases.args
    sites = [kind for kind in SITES if read_anatomy(cases.model).has_site(kind)]
    tasks = cases.build(args.n_pairs, args.templates)
    with cases.console.step(f"comparing on {args.model}") as progress:
        return study_agreement(
            cases.model, tasks, rules=estimators, sites=sites, direction=args.direction, screen=args.screen,
            positions="spans" if args.spans else None, n_places=args.places, seed=args.seed,
            checkpoint=cases.kept, progress=progress,
        )  # fmt: skip


def _edges(cases: Cases, presets: list[str]) -> Any:
    """Circuits of each preset, scored on the task's train pairs and judged on its test pairs."""
    from ..circuits.testing.small import study_edges

    args = cases.args
    tasks = cases.build(args.edge_pairs or max(4, 2 * args.n_pairs), None)
    with cases.console.step(f"edges of {args.model}") as progress:
        return study_edges(cases.model, tasks, presets, seed=args.seed, checkpoint=cases.kept, progress=progress)


def _keep(folder: Path, study: Any, edges: Any, cases: Cases) -> None:
    """Rows as CSV and tables as a page: the same bytes for the same inputs."""
    make_folder(folder)
    tables = {"agreement": study, "edges": edges}
    for name, result in tables.items():
        if result is not None:
            frame = result.to_dataframe()
            facts = [cases.facts[case] for case in frame["task"]]
            for at, column in enumerate(("base", "seed", "template"), start=1):
                frame.insert(at, column, [fact[column] for fact in facts])
            write_text(folder / f"{name}.csv", table_text(frame, float_format="%.6g"))
    write_text(folder / "evidence.md", page(study, edges, cases.facts, cases.left_out))
