"""The tuned lens: its definition, its closed-form start, its gradient, its training, its files, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.artefact import read_artefact
from mechwork.checkpoint import FILE, WHAT
from mechwork.lenses import (
    LensRecipe,
    LogitLens,
    Readout,
    TunedLens,
    evaluate_lens,
    load_lens,
    open_text,
    read_lens,
    train_lens,
)
from mechwork.lenses.card import export_lens
from mechwork.lenses.distil import Teacher, descend
from mechwork.lenses.fingerprint import fingerprint
from mechwork.lenses.states import lens_sites, record_states
from mechwork.lenses.translators import PlaceMoments, find_form, translate
from mechwork.models.anatomy import read_anatomy
from mechwork.models.load import load_model
from tests.families import D_VOCAB, build_model, build_module
from tests.reference.tuned_lens import literal_losses, literal_ridge, literal_tuned_lens

TOKENS = torch.randint(D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
ROWS = torch.randint(D_VOCAB, (60, 16), generator=torch.Generator().manual_seed(4))
QUICK = LensRecipe(
    steps=6, step_tokens=64, ridge_tokens=400, held_out_rows=8, check_every=2, learning_rate=1e-2, share=0.5
)
FORMS = ("full", "low_rank_4", "diagonal", "bias")


def random_lens(model: Any, form: str = "full", kind: str = "resid_pre", scale: float = 0.1) -> TunedLens:
    shapes = find_form(form).shapes(model.cfg.d_model)
    n = model.cfg.n_layers - (kind == "resid_post")
    generator = torch.Generator().manual_seed(7)
    parts = {name: scale * torch.randn(n, *shape, generator=generator) for name, shape in shapes.items()}
    return TunedLens(find_form(form), kind, parts, fingerprint(model))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_original_definition(family: str) -> None:
    """W_U LayerNorm(A h + b) on the module's own hidden states, for every layer."""
    module = build_module(family).double()
    model = load_model(copy.deepcopy(module), dtype=torch.float64)
    lens = random_lens(model)
    sites = lens_sites(read_anatomy(model))
    for layer, x in enumerate(record_states(model, TOKENS, sites)[:-1]):
        literal = literal_tuned_lens(
            module, TOKENS, layer, lens.parts["weight"][layer].double(), lens.parts["bias"][layer].double()
        )
        ours = Readout.of(model).logits(lens.translate(x, sites[layer]))
        assert float(literal.std()) > 0.1
        bound = 1e-5 if family == "llama" else 1e-9  # the module's RMS norm computes in float32
        torch.testing.assert_close(ours, literal, rtol=bound, atol=bound)


def test_the_start_is_the_literal_ridge_regression(seed: int) -> None:
    x, scale = (
        torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64),
        torch.rand(200, dtype=torch.float64) + 0.5,
    )
    last = (
        x @ torch.randn(6, 6, dtype=torch.float64)
        + torch.randn(6, dtype=torch.float64)
        + torch.randn(200, 6, dtype=torch.float64)
    )
    moments = PlaceMoments.zeros(6, torch.device("cpu"))
    for part in (slice(0, 70), slice(70, 200)):
        moments.add(x[part], last[part], scale[part] ** -2)
    for ridge in (0.0, 0.3):
        weight, bias = literal_ridge(x, last, scale, ridge)
        found = find_form("full").fit(moments, ridge)
        torch.testing.assert_close(found["weight"], weight, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found["bias"], bias, rtol=1e-7, atol=1e-7)

    def error(form: str) -> float:
        form_ = find_form(form)
        return float(((translate(form_, form_.fit(moments, 0.0), x) - last).pow(2).sum(1) * scale**-2).sum())

    assert error("full") == pytest.approx(error("low_rank_6"), rel=1e-8)
    assert error("full") < error("low_rank_3") < error("low_rank_1") < error("bias")
    assert error("full") < error("diagonal") < error("bias")
    assert weight.std() > 0.1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_losses_and_gradients_are_the_literal_ones(family: str, form: str) -> None:
    """Chunks of three rows at a time, against logits of all places at once."""
    model = build_model(family)
    lens = random_lens(model, form)
    parts = {name: part.double().requires_grad_(True) for name, part in lens.parts.items()}
    sites = lens_sites(read_anatomy(model))
    states = [x.flatten(0, 1) for x in record_states(model, TOKENS, sites)]
    losses = descend(
        Readout.of(model, budget=3 * D_VOCAB),
        lens.form,
        [{n: p[i] for n, p in parts.items()} for i in range(3)],
        states,
    )
    ours = {name: part.grad for name, part in parts.items()}
    again = {name: part.detach().clone().requires_grad_(True) for name, part in parts.items()}
    maps = [lambda x, i=i: translate(lens.form, {n: p[i] for n, p in again.items()}, x) for i in range(3)]
    literal = literal_losses(model, TOKENS, maps)
    torch.stack(literal).sum().backward()
    torch.testing.assert_close(losses, torch.stack(literal).detach(), rtol=1e-8, atol=1e-8)
    assert float(losses.min()) > 0.01
    for name, part in again.items():
        torch.testing.assert_close(ours[name], part.grad, rtol=1e-6, atol=1e-8)


def test_a_top_k_teacher_lumps_the_others(tiny_gpt2_64: Any, seed: int) -> None:
    readout, last = Readout.of(tiny_gpt2_64), torch.randn(5, 32, dtype=torch.float64)
    logits = torch.randn(5, D_VOCAB, dtype=torch.float64, requires_grad=True)
    teacher = Teacher.of(readout, last, 7)
    loss = teacher.divergence(logits)
    loss.sum().backward()
    other = logits.detach().clone().requires_grad_(True)
    q, p, ids = other.softmax(-1), readout.logits(last).softmax(-1), teacher.ids
    assert ids is not None
    p_top, q_top = p.gather(-1, ids), q.gather(-1, ids)
    literal = (p_top * (p_top / q_top).log()).sum(-1) + (1 - p_top.sum(-1)) * (
        (1 - p_top.sum(-1)) / (1 - q_top.sum(-1))
    ).log()
    literal.sum().backward()
    torch.testing.assert_close(loss, literal, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-8, atol=1e-10)
    whole = Teacher.of(readout, last, 0).divergence(logits.detach())
    assert bool((loss.detach() < whole).all())
    torch.testing.assert_close(
        Teacher.of(readout, last, D_VOCAB).divergence(logits.detach()), whole, rtol=1e-6, atol=1e-6
    )


def test_a_reading_that_is_sure_of_another_token_has_a_finite_loss_and_gradient() -> None:
    """What its k tokens leave to the others is less than a float tells from nothing, and is what they have."""
    log_p = torch.randn(3, D_VOCAB, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    top = log_p.topk(5, dim=-1)
    rest = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    found, logits = [], torch.randn(3, D_VOCAB, generator=torch.Generator().manual_seed(1))
    logits[torch.arange(3), top.indices[:, 0]] = 200.0
    for dtype in (torch.float32, torch.float64):
        own = logits.to(dtype, copy=True).requires_grad_(True)
        teacher = Teacher(top.values.to(dtype), rest.to(dtype), top.indices)
        loss = teacher.divergence(own).sum()
        loss.backward()
        found.append((loss.detach().double(), own.grad.double()))  # type: ignore[union-attr]
    literal = logits.double().requires_grad_(True)
    log_q = literal.log_softmax(-1)
    others = log_q.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    own_top = log_q.gather(-1, top.indices)
    p, p_rest = top.values.double().exp(), rest.double().exp()
    wanted = ((p * (top.values - own_top)).sum(-1) + p_rest * (rest - others)).sum()
    wanted.backward()
    for loss, gradient in found:
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, literal.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_training_beats_the_logit_lens_on_every_form(form: str) -> None:
    model = build_model("llama", torch.float32)
    training = train_lens(model, ROWS, LensRecipe(**{**QUICK.to_dict(), "form": form}))
    if form in ("full", "low_rank_4"):
        assert bool((training.start < training.logit_lens).all())
    assert bool((training.best < torch.minimum(training.start, training.logit_lens)).any())
    assert bool((training.best <= torch.minimum(training.start, training.logit_lens)).all())
    assert training.finished
    for name, part in training.lens.parts.items():
        assert part.dtype == torch.float32, name
    assert "logit lens" in str(training)


def test_every_architecture_can_be_tuned(family_model: Any) -> None:
    settings = {**QUICK.to_dict(), "steps": 2, "held_out_rows": 4}
    training = train_lens(family_model, ROWS, LensRecipe(**settings))
    assert bool((training.start < training.logit_lens).any())
    assert bool((training.best <= torch.minimum(training.start, training.logit_lens)).all())
    measured = evaluate_lens(family_model, training.lens, ROWS[:16])
    assert float(measured.mean("kl")[:-1].mean()) < float(measured.mean("logit_kl")[:-1].mean())


@pytest.mark.parametrize("kind", ["resid_mid", "resid_post"])
def test_other_places(kind: str) -> None:
    model = build_model("gemma2", torch.float32)
    training = train_lens(model, ROWS, LensRecipe(**{**QUICK.to_dict(), "kind": kind}))
    assert training.places[0] == f"{kind}.0"
    assert len(training.places) == 3 - (kind == "resid_post")
    table = read_lens(model, ROWS[:2], training.lens)
    assert float(table.kl[-1].abs().max()) < 1e-5
    assert table.places[0] == f"{kind}.0"
    with pytest.raises(mw.errors.InputError, match="Train one for that kind"):
        read_lens(model, ROWS[:2], training.lens, kinds=["resid_pre"])


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_killed_and_resumed_training_ends_in_identical_weights(tmp_path: Path, cut: int) -> None:
    model = build_model("gpt2", torch.float32)
    whole = train_lens(model, ROWS, QUICK)
    first = train_lens(model, ROWS, QUICK, folder=tmp_path / "run", stop_after=cut)
    assert not first.finished
    resumed = train_lens(build_model("gpt2", torch.float32), ROWS, QUICK, folder=tmp_path / "run")
    assert resumed.step == 6
    for name, part in whole.lens.parts.items():
        assert torch.equal(part, resumed.lens.parts[name])
    assert torch.equal(whole.best, resumed.best)
    assert resumed.history == whole.history


def test_control_c_leaves_a_checkpoint(tmp_path: Path) -> None:
    model = build_model("gpt2", torch.float32)

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lens(model, ROWS, QUICK, folder=tmp_path / "run", progress=stop)
    resumed = train_lens(model, ROWS, QUICK, folder=tmp_path / "run")
    assert torch.equal(resumed.lens.parts["weight"], train_lens(model, ROWS, QUICK).lens.parts["weight"])


def test_a_crash_between_checkpoints_costs_only_the_steps_since(tmp_path: Path) -> None:
    """Nothing is saved at the crash itself, as when the process is killed."""
    model = build_model("gpt2", torch.float32)

    def crash(progress: Any) -> None:
        if progress.step == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train_lens(model, ROWS, QUICK, folder=tmp_path / "run", progress=crash, checkpoint_every=2)
    assert read_artefact(tmp_path / "run" / FILE, WHAT).facts["state"]["step"] == 4
    resumed, whole = train_lens(model, ROWS, QUICK, folder=tmp_path / "run"), train_lens(model, ROWS, QUICK)
    assert torch.equal(resumed.lens.parts["weight"], whole.lens.parts["weight"])
    assert torch.equal(resumed.best, whole.best)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model = build_model("gpt2", torch.float32)
    train_lens(model, ROWS, QUICK, folder=tmp_path / "run", stop_after=2)
    with pytest.raises(mw.errors.ArtefactError, match="another run"):
        train_lens(model, ROWS, LensRecipe(**{**QUICK.to_dict(), "seed": 1}), folder=tmp_path / "run")
    with pytest.raises(mw.errors.ArtefactError, match="another run"):
        train_lens(build_model("gpt2", torch.float32, seed=1), ROWS, QUICK, folder=tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(mw.errors.ArtefactError, match="was altered"):
        train_lens(model, ROWS, QUICK, folder=tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechwork.lenses import train as module

    model, calls = build_model("gpt2", torch.float32), []
    real = module.descend

    def poisoned(*args: Any, **settings: Any) -> torch.Tensor:
        calls.append(1)
        losses = real(*args, **settings)
        if len(calls) == 5:
            losses[1] = float("nan")
        return losses

    good = train_lens(model, ROWS, QUICK, stop_after=4)
    monkeypatch.setattr(module, "descend", poisoned)
    training = train_lens(model, ROWS, QUICK)
    assert training.step == 4
    assert "resid_pre.1 is not finite at step 5" in training.stopped
    assert training.finished
    assert torch.equal(training.lens.parts["weight"], good.lens.parts["weight"])


def test_early_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("gpt2", torch.float32)
    settings = {**QUICK.to_dict(), "learning_rate": 3.0, "check_every": 1, "patience": 2, "steps": 50, "warm_up": 0.0}
    training = train_lens(model, ROWS, LensRecipe(**settings))
    assert training.step < 50
    assert "no place has improved" in training.stopped
    assert bool((training.best <= training.start).all())


def test_what_text_is_refused(bundled_model: Any, tmp_path: Path) -> None:
    model = build_model("gpt2", torch.float32)
    with pytest.raises(mw.errors.InputError, match="too few to hold out"):
        train_lens(model, ROWS[:5], QUICK)
    with pytest.raises(mw.errors.InputError, match=f"teacher has {D_VOCAB} tokens"):
        train_lens(model, ROWS, LensRecipe(**{**QUICK.to_dict(), "top_k": D_VOCAB + 1}))
    with pytest.raises(mw.errors.InputError, match="a document is a text or a list of token ids"):
        open_text(model, [[1, 2, 3], tmp_path / "a.txt"]).rows(0, 2)
    with pytest.raises(mw.errors.InputError, match="no rows left"):
        next(open_text(model, [[1, 2, 3]], width=3).batches(1, 5, 1))
    with pytest.raises(mw.errors.InputError, match="text is empty"):
        open_text(bundled_model, [""])
    with pytest.raises(mw.errors.InputError, match="token ids of this model"):
        open_text(model, [[1, 2, 500]])
    with pytest.raises(mw.errors.InputError, match="start again"):
        open_text(bundled_model, iter(["a"]))
    with pytest.raises(mw.errors.InputError, match="none is 'text'"):
        open_text(bundled_model, [{"body": "x"}])
    with pytest.raises(mw.errors.NotFoundError, match="neither a file nor a recipe"):
        open_text(bundled_model, "nowhere")
    with pytest.raises(mw.errors.NotFoundError, match="no text at"):
        open_text(bundled_model, tmp_path / "no.txt")
    with pytest.raises(mw.errors.InputError, match="rows have 2 to"):
        open_text(bundled_model, ["abc"], width=1000)


def test_sources_of_text_agree(bundled_model: Any, tmp_path: Path) -> None:
    texts = [
        f"When Mary and John went to the shop, John gave a drink to Mary. {'The cats are here. ' * i}" for i in range(9)
    ]
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    streams = [
        open_text(bundled_model, source, width=32)
        for source in (
            texts,
            [{"text": t} for t in texts],
            tmp_path / "a.txt",
            str(tmp_path / "a.jsonl"),
            lambda: iter(texts),
        )
    ]
    rows = streams[0].rows(0, 100)
    assert len(rows) > 5
    assert {len(row) for row in rows} == {32}
    for stream in streams[1:]:
        assert stream.rows(0, 100) == rows
    assert streams[0].rows(3, 2) == rows[3:5]
    documents = open_text(bundled_model, texts, width=32, packing="documents").rows(0, 100)
    assert all(row[0] == bundled_model.tokenizer.bos_token_id for row in documents[:1])
    assert sum(map(len, documents)) >= sum(map(len, rows))
    from datasets import Dataset

    assert open_text(bundled_model, Dataset.from_dict({"text": texts}), width=32).rows(0, 100) == rows
    from safetensors.torch import save_file

    save_file({"tokens": torch.tensor(rows)}, tmp_path / "shard.safetensors")
    assert open_text(bundled_model, tmp_path / "shard.safetensors", width=32).rows(0, 100) == rows


def test_a_recipes_text_can_start_anywhere(bundled_model: Any) -> None:
    stream = open_text(bundled_model, "gpt2-6l")
    assert stream.rows(0, 200)[70:140] == stream.rows(70, 70)
    assert stream.rows(0, 20) != open_text(bundled_model, "gpt2-6l", seed=1).rows(0, 20)
    batches = stream.batches(10, 100)
    _, cursor = next(batches)
    second, _ = next(batches)
    assert next(stream.batches(cursor, 100))[0] == second
    assert stream.odd_rows(8).rows(0, 9) == stream.rows(0, 8)[1::2]
    assert stream.odd_rows(8).rows(2, 9) == stream.rows(0, 8)[5::2]


def test_save_load_and_refusals(tmp_path: Path) -> None:
    model = build_model("neox", torch.float32)
    lens = random_lens(model, "low_rank_4")
    again = TunedLens.load(lens.save(tmp_path / "lens"), model)
    for name, part in lens.parts.items():
        assert torch.equal(part, again.parts[name])
    assert load_lens(model, tmp_path / "lens").form.name == "low_rank_4"
    half = TunedLens.load(lens.save(tmp_path / "half", torch.bfloat16), model)
    torch.testing.assert_close(half.parts["up"], lens.parts["up"], rtol=1e-2, atol=1e-2)
    with pytest.raises(mw.errors.ArtefactError, match="other weights"):
        TunedLens.load(tmp_path / "lens", build_model("neox", torch.float32, seed=1))
    with pytest.raises(mw.errors.ArtefactError, match="other weights"):
        read_lens(build_model("neox", torch.float32, seed=1), TOKENS, lens)
    assert load_lens(build_model("neox", torch.float64), tmp_path / "lens").kind == "resid_pre"
    facts = json.loads((tmp_path / "lens" / "lens.json").read_text())
    facts["model"]["tokenizer"] = "other"
    (tmp_path / "lens" / "lens.json").write_text(json.dumps(facts))
    with pytest.raises(mw.errors.ArtefactError, match="other tokenizer"):
        load_lens(model, tmp_path / "lens")
    (tmp_path / "half" / "lens.safetensors").write_bytes(b"x")
    with pytest.raises(mw.errors.ArtefactError, match="was altered"):
        load_lens(model, tmp_path / "half")
    with pytest.raises(mw.errors.NotFoundError, match="no lens is shipped"):
        load_lens(model)
    with pytest.raises(mw.errors.InputError, match="finite"):
        TunedLens(lens.form, lens.kind, {**lens.parts, "bias": lens.parts["bias"] * torch.nan}, lens.model)
    with pytest.raises(mw.errors.InputError, match="parts of shapes"):
        TunedLens(lens.form, lens.kind, {"bias": torch.zeros(1)}, lens.model)


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "fulll"},
        {"kind": "z"},
        {"steps": -1},
        {"share": 0.0},
        {"learning_rate": 0.0},
        {"held_out_rows": 1},
        {"form": "low_rank_0"},
    ],
)
def test_recipes_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(mw.errors.InputError):
        LensRecipe(**settings)


def test_the_rate_rises_and_falls_to_zero() -> None:
    recipe = LensRecipe(steps=100, warm_up=0.1, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[100] == 0
    assert rates[99] == pytest.approx(1 / 90)


def test_evaluation_equals_the_lens_table() -> None:
    model = build_model("gpt2", torch.float64)
    lens = random_lens(model)
    measured = evaluate_lens(model, lens, open_text(model, ROWS[:12], packing="documents"), transfer=True)
    table, logit = read_lens(model, ROWS[:12], lens), read_lens(model, ROWS[:12], LogitLens())
    torch.testing.assert_close(measured.mean("kl"), table.mean("kl"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(measured.mean("logit_kl"), logit.mean("kl"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(measured.mean("gain"), logit.mean("kl") - table.mean("kl"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(measured.mean("ce"), table.surprisal[:, :, :-1].mean((1, 2)), rtol=1e-9, atol=1e-9)
    agrees = (table.top_token == table.top_token[-1]).double().mean((1, 2))
    torch.testing.assert_close(measured.mean("top1"), agrees)
    assert measured.transfer is not None
    torch.testing.assert_close(measured.transfer.diagonal(), measured.mean("kl")[:-1], rtol=1e-9, atol=1e-9)
    assert float((measured.transfer - measured.transfer.T).abs().max()) > 0.01
    low, high = measured.interval("kl")
    assert bool((low < measured.mean("kl"))[:-1].all() and (measured.mean("kl") < high)[:-1].all())
    assert len(measured.to_dataframe()) == 4
    assert "logit lens" in str(measured)
    with pytest.raises(mw.errors.InputError, match="two rows"):
        evaluate_lens(model, lens, ROWS[:1])
    two = open_text(model, ROWS[:2], packing="documents")
    assert evaluate_lens(model, lens, two).n.tolist() == [16, 16]


def test_a_card_says_what_was_measured(tmp_path: Path) -> None:
    model = build_model("gpt2", torch.float32)
    lens = random_lens(model)
    measured = evaluate_lens(model, lens, open_text(model, ROWS[:4], packing="documents"))
    card = (export_lens(lens, measured, tmp_path / "lens") / "card.md").read_text(encoding="utf-8")
    low, high = measured.interval("kl")
    for i, place in enumerate(measured.places):
        kl = f"{float(measured.mean('kl')[i]):.3f} | [{float(low[i]):.3f}, {float(high[i]):.3f}]"
        assert f"| {place} | {kl} |" in card
    assert f"{4 * 16} positions of 4 rows" in card
    assert f"sha256 `{lens.model['weights']}`" in card
    assert card.splitlines()[-1].startswith("Limits")


def test_the_start_reads_as_much_text_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechwork.lenses.train.FORWARD_TOKENS", 64)
    model = build_model("gpt2", torch.float32)
    assert open_text(model, ROWS).facts["packing"] == "concatenate"
    for ridge_tokens, tokens in ((128, 128), (129, 192)):
        recipe = LensRecipe(**{**QUICK.to_dict(), "steps": 0, "ridge_tokens": ridge_tokens})
        assert train_lens(model, ROWS, recipe).lens.provenance["tokens"] == tokens


def test_progress_tells_the_loss_in_bits() -> None:
    """Where all rows of a text are one row, what is trained on is what is held out."""
    seen: list[Any] = []
    still = {"learning_rate": 1e-12, "share": 1.0, "steps": 1, "top_k": D_VOCAB, "weight_decay": 0.0}
    recipe = LensRecipe(**{**QUICK.to_dict(), **still})
    model = build_model("gpt2", torch.float64)
    text = open_text(model, ROWS[:1].repeat(20, 1), packing="documents")
    training = train_lens(model, text, recipe, progress=seen.append)
    assert seen[0].loss == pytest.approx(float(training.best.mean()), rel=1e-4)
    assert seen[0].loss > 1e-6
