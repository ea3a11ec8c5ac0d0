"""Kill a process at every rename and at random times, then repeat the call: it goes on and ends in the same bytes.

A kill is SIGKILL, SIGTERM or SIGINT just before or just after a rename or removal of a file, or a signal that ends the
process at any moment of its CPU time. Children are forks of this process, which has loaded everything.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.ablation import sweep_ablations
from mechwork.circuits import find_acdc, learn_circuit
from mechwork.discovery.settings import Settings
from mechwork.features import FeatureRecipe, train_features
from mechwork.lenses import LensRecipe, open_text, train_lens
from mechwork.sites import Site
from mechwork.zoo.recipe import Phase, Recipe
from mechwork.zoo.train import train
from tests.families import D_VOCAB
from tests.faults.core import Tally, model_of, small_task

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROWS = torch.randint(D_VOCAB, (40, 12), generator=torch.Generator().manual_seed(4))
LENS = LensRecipe(steps=5, step_tokens=48, ridge_tokens=200, held_out_rows=6, check_every=2, learning_rate=1e-2)
FEATURES = FeatureRecipe(n_features=16, k=4, steps=5, step_tokens=48, scale_tokens=64, held_out_rows=4, dead_tokens=100)
RECIPE = Recipe(
    "tiny", (Phase(4, {"induction": 1.0}),), seed=0, n_layers=1, n_heads=2, d_model=16, d_mlp=16, documents=4,
    checkpoint_every=1, validate_every=2, validate_pairs=4, precision="fp32",
)  # fmt: skip


def _digest(values: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())
    return found.hexdigest()


def _sweep(folder: Path) -> str:
    effects = mw.patch(
        model_of("gpt2"), small_task(), ["z", "resid_pre"], checkpoint=folder / "c", memory_budget=400_000
    )
    return _digest(e.per_example for e in effects.values())


def _ablations(folder: Path) -> str:
    effects = sweep_ablations(model_of("llama"), small_task(), ["heads", "mlps"], kind="zero", checkpoint=folder / "c")
    return _digest(e.per_example for e in effects.values())


def _masks(folder: Path) -> str:
    found = learn_circuit(
        model_of("gpt2"), small_task(), 8, n_steps=8, checkpoint=folder / "c.safetensors", checkpoint_every=2
    )
    return _digest([found.mask])


def _acdc(folder: Path) -> str:
    return _digest([find_acdc(model_of("gpt2"), small_task(), 0.3, checkpoint=folder / "c.safetensors").mask])


def _lens(folder: Path) -> str:
    made = train_lens(model_of("gpt2"), ROWS, LENS, folder=folder / "c", checkpoint_every=1)
    return _digest([*(part for _, part in sorted(made.lens.parts.items())), made.best])


def _features(folder: Path) -> str:
    model = model_of("gpt2")
    text = open_text(model, ROWS.tolist(), packing="documents")
    made = train_features(model, text, [Site("resid_post", 0)], FEATURES, folder=folder / "c", checkpoint_every=1)
    return _digest(made.features.coders[0].W_dec.flatten()[None])


def _model(folder: Path) -> str:
    return _digest(part for _, part in sorted(train(RECIPE, folder / "c").model.state_dict().items()))


def _discover(folder: Path) -> str:
    model, task = _bundled()
    mw.discover(model, task, out=folder / "c", settings=Settings(min_accuracy=0.01), mode="quick")
    names = ("circuit.json", "edges.csv", "effects.csv", "curve.csv", "report.html", "report.json")
    return _digest((folder / "c" / name).read_text(encoding="utf-8") for name in names)


def _report(folder: Path) -> str:
    """A page that is replaced with ``force=True``."""
    from tests.render import synthetic

    mw.report(folder / "page.html", synthetic.task(), synthetic.circuit(), force=True)
    return _digest([(folder / "page.html").read_text(encoding="utf-8")])


_kept: dict[str, Any] = {}


def _bundled() -> Any:
    if "bundled" not in _kept:
        model = mw.load_model("attn-only-2l")
        _kept["bundled"] = model, mw.tasks.induction(model, n=8, seed=0)
    return _kept["bundled"]


WORKS: dict[str, Callable[[Path], str]] = {
    "sweep": _sweep,
    "ablations": _ablations,
    "masks": _masks,
    "acdc": _acdc,
    "lens": _lens,
    "features": _features,
    "model": _model,
    "report": _report,
    "discover": _discover,
}
QUICK = ("sweep", "masks", "lens", "features")


class Child:
    """What became of one forked run: its digest, how often it renamed, its CPU seconds; `signal` that ended it."""

    def __init__(
        self, name: str, folder: Path, *, at: int = 0, with_signal: int = signal.SIGKILL, after: float | None = None
    ) -> None:
        sys.stdout.flush()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            code = 1
            try:
                _die(at, with_signal, after)
                begun = time.process_time()
                digest = WORKS[name](folder)
                os.write(writer, pickle.dumps((digest, abs(_counted[0]), time.process_time() - begun)))
                code = 0
            except KeyboardInterrupt:
                code = 130
            except BaseException as error:  # noqa: BLE001 - a child says what happened and ends
                os.write(writer, pickle.dumps((f"{type(error).__name__}: {error}"[:300], -1, 0.0)))
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        self.ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.digest, self.renames, self.seconds = pickle.loads(said) if said else ("", 0, 0.0)


_counted = [0]


def _die(at: int, with_signal: int, after: float | None) -> None:
    """In a child: die at the rename or removal of that number (negative: just after it), or after some CPU time."""
    _counted[0] = 0
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    if after is not None:
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # ends the process wherever it is
        signal.setitimer(signal.ITIMER_VIRTUAL, max(after, 1e-4))

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            _counted[0] += 1
            if _counted[0] == at:
                os.kill(os.getpid(), with_signal)
            try:
                return real(*args, **more)
            finally:
                if _counted[0] == -at:
                    os.kill(os.getpid(), with_signal)

        return call

    for name in ("replace", "rename", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    for name in ("replace", "rename", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))


def attack(tally: Tally, name: str, whole: Child, **death: Any) -> None:
    """One death, then the same call until it ends; the folder must give the digest of the run that was not killed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        died = Child(name, folder, **death)
        again = Child(name, folder)
        said = "" if again.digest == whole.digest and again.ended == 0 else f"then {again.ended}: {again.digest[:200]}"
        if died.ended > 0 and died.ended != 130:
            said = f"the first run failed: {died.digest}"
        tally.check(not said, f"{name} killed at {death} (ended {died.ended}): {said}")


def force_replaced(tally: Tally, with_signal: int, at: int) -> None:
    """A page that exists is being replaced: whenever that dies, one of the two pages is there, whole."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        page = folder / "page.html"
        page.write_text("<p>old</p>", encoding="utf-8")
        Child("report", folder, at=at, with_signal=with_signal)
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        whole = text == "<p>old</p>" or text.rstrip().endswith("</html>")
        tally.check(whole, f"--force at rename {at}, signal {with_signal}: {len(text)} characters are left")


def run(tally: Tally) -> None:
    """Every rename of every work, then random moments."""
    small = tally.scale < 0.5
    for name in QUICK if small else WORKS:
        with tempfile.TemporaryDirectory() as place:
            whole = Child(name, Path(place))
            shutil.rmtree(place, ignore_errors=True)
            Path(place).mkdir(exist_ok=True)
        if whole.ended != 0:
            tally.check(False, f"{name} does not run: {whole.digest}")
            continue
        places = [at for n in range(1, whole.renames + 1) for at in (n, -n)]
        most = tally.times(40 if name != "discover" else 12)
        draw = tally.draw
        for at in places if len(places) <= most else draw.sample(places, most):
            attack(tally, name, whole, at=at, with_signal=tally.draw.choice(SIGNALS))
        for _ in range(tally.times(25 if name != "discover" else 8)):
            attack(tally, name, whole, after=tally.draw.uniform(0, whole.seconds))
    for with_signal in SIGNALS:
        for at in (1, -1, 2, -2):
            force_replaced(tally, with_signal, at)
