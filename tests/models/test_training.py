"""The training recipes: exact resumption, refusals before any step, tampering noticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechwork import bundled
from mechwork.ablation.expert_rates import record_routers
from mechwork.artefact import read_artefact
from mechwork.checkpoint import FILE, WHAT
from mechwork.errors import ArtefactError, InputError, NotFoundError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.models.load import load_model
from mechwork.tasks.sampling.examples import SAMPLERS, templates
from mechwork.zoo.architecture import build_model
from mechwork.zoo.export import export, remeasure, rewrite_card
from mechwork.zoo.grammar import KINDS, step_documents
from mechwork.zoo.measure import draw_examples, encode, measure_task
from mechwork.zoo.recipe import RECIPES, Phase, Recipe, find_recipe
from mechwork.zoo.tokenizer import END_OF_TEXT, build_tokenizer, grammar_vocabulary, save_tokenizer
from mechwork.zoo.train import RowPacker, TrainingProgress, learning_rate, train, weighted_loss

MIXTURE = dict.fromkeys(KINDS, 1.0)
TINY = Recipe(
    "tiny",
    (Phase(4, MIXTURE), Phase(2, {"ioi": 0.5, "filler": 0.5})),
    seed=7,
    tasks=tuple(SAMPLERS),
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_mlp=16,
    documents=8,
    validate_every=3,
    validate_pairs=4,
    checkpoint_every=2,
    select="best",
    precision="fp32",
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(grammar_vocabulary(TINY.vocabulary_tasks))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(TINY, tmp_path_factory.mktemp("whole"))


def weights(run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def assert_same_bits(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert any(bool(p.any()) for p in first.values())
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_changes_weights_and_keeps_history(finished):
    fresh = weights(dataclasses.replace(finished, model=build_model(TINY, len(finished.tokenizer))))
    assert finished.finished
    assert [row["step"] for row in finished.history] == [3, 6]
    assert finished.best["step"] in (3, 6)
    assert not torch.equal(fresh["transformer.wte.weight"], finished.model.transformer.wte.weight)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stopped_and_resumed_equals_uninterrupted(finished, tmp_path, stop):
    part = train(TINY, tmp_path, stop_after=stop)
    assert not part.finished
    assert part.step == stop
    resumed = train(TINY, tmp_path)
    assert_same_bits(resumed, finished)
    assert resumed.history == finished.history
    assert resumed.tokens == finished.tokens


def test_a_mixture_is_trained_and_loads(tmp_path):
    phase = Phase(2, {"ioi": 0.5, "filler": 0.5})
    mixture = dataclasses.replace(TINY, architecture="mixtral", phases=(phase,), tasks=("ioi",), validate_every=2)
    export(train(mixture, tmp_path / "run"), tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert read_anatomy(model).n_experts == 4
    tokens = torch.randint(200, (2, 9), generator=torch.Generator().manual_seed(0))
    used = record_routers(model, tokens).rates(torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(used.sum(dim=-1), torch.full_like(used[..., 0], 2.0), rtol=0, atol=1e-6)


def test_keyboard_interrupt_saves_and_resumes(finished, tmp_path):
    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, progress=interrupt)
    assert read_artefact(tmp_path / FILE, WHAT).facts["state"]["step"] == 3
    assert_same_bits(train(TINY, tmp_path), finished)
    assert not list(tmp_path.glob("*.part"))


def test_training_leaves_the_global_state_alone(tmp_path):
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(TINY, tmp_path, stop_after=1)
    assert torch.equal(before, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_another_recipe_does_not_resume_from_this_folder(tmp_path):
    train(TINY, tmp_path, stop_after=1)
    with pytest.raises(ArtefactError, match="another run: its recipe differ"):
        train(dataclasses.replace(TINY, seed=8), tmp_path)


def test_altered_checkpoint_is_refused(tmp_path):
    train(TINY, tmp_path, stop_after=1)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ArtefactError, match=r"checkpoint\.safetensors"):
        train(TINY, tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"phases": ()}, InputError, "at least one phase"),
        ({"d_model": 15}, InputError, "multiple of n_heads"),
        ({"documents": 0}, InputError, "documents"),
        ({"learning_rate": 0.0}, InputError, "learning_rate"),
        ({"warm_up": 1.0}, InputError, "warm_up"),
        ({"row": 500}, InputError, "row"),
        ({"vocabulary": 0}, InputError, "vocabulary"),
    ],
)
def test_bad_recipes_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(TINY, **change)


def test_unknown_task_in_the_mixture_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="nearest: pronoun"):
        Phase(1, {"pronouns": 1.0})


@pytest.mark.parametrize(
    ("steps", "mixture"), [(0, {"ioi": 1.0}), (1, {}), (1, {"ioi": -1.0}), (1, {"ioi": 0.97, "filler": 0.03})]
)
def test_bad_phases_are_refused(steps, mixture):
    with pytest.raises(InputError):
        Phase(steps, mixture)


def test_a_vocabulary_larger_than_the_tokenizer_is_refused_before_training(tmp_path, tokenizer):
    with pytest.raises(InputError, match=str(len(tokenizer))):
        train(dataclasses.replace(TINY, vocabulary=10**6), tmp_path / "new")
    with pytest.raises(InputError, match="cannot hold"):
        train(dataclasses.replace(TINY, vocabulary=10), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_named_recipes():
    assert find_recipe("gpt2-6l") is RECIPES["gpt2-6l"]
    with pytest.raises(UnknownNameError, match="gpt2-6l"):
        find_recipe("gpt2-6")
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert json.loads(json.dumps(recipe.to_dict()))["seed"] == recipe.seed


def test_phases_follow_each_other_and_have_their_own_peaks():
    recipe = dataclasses.replace(TINY, phases=(Phase(4, MIXTURE), Phase(2, {"ioi": 1.0}, peak=0.5)), warm_up=0.0)
    assert [dict(recipe.mixture(step)) for step in (0, 3, 4, 5)] == [MIXTURE, MIXTURE, {"ioi": 1.0}, {"ioi": 1.0}]
    assert learning_rate(recipe, 0) == pytest.approx(recipe.learning_rate)
    assert learning_rate(recipe, 4) == pytest.approx(0.5 * recipe.learning_rate)
    with pytest.raises(InputError, match="no step 6"):
        recipe.mixture(6)
    with pytest.raises(InputError, match="peak"):
        Phase(1, {"ioi": 1.0}, peak=0.0)


def test_learning_rate_rises_then_falls():
    recipe = dataclasses.replace(TINY, phases=(Phase(100, MIXTURE),), warm_up=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[9] == pytest.approx(recipe.learning_rate)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.05 * recipe.learning_rate


def test_a_phase_cut_short_keeps_the_schedule_of_its_horizon():
    whole = dataclasses.replace(TINY, phases=(Phase(100, MIXTURE),), warm_up=0.1)
    cut = dataclasses.replace(TINY, phases=(Phase(60, MIXTURE, horizon=100), Phase(10, MIXTURE, peak=0.5)), warm_up=0.1)
    assert [learning_rate(cut, step) for step in range(60)] == [learning_rate(whole, step) for step in range(60)]
    assert learning_rate(cut, 60) == pytest.approx(0.5 * cut.learning_rate)
    with pytest.raises(InputError, match="horizon"):
        Phase(10, MIXTURE, horizon=9)


# ---- text ---------------------------------------------------------------------------------------------------------


def test_documents_depend_on_seed_and_step_only():
    assert step_documents(MIXTURE, 10, 1, 5) == step_documents(MIXTURE, 10, 1, 5)
    assert step_documents(MIXTURE, 10, 1, 5) != step_documents(MIXTURE, 10, 1, 6)
    assert step_documents(MIXTURE, 10, 1, 5) != step_documents(MIXTURE, 10, 2, 5)


def test_packed_rows_give_the_loss_of_the_documents_alone(tokenizer):
    model = build_model(TINY, len(tokenizer)).double()
    documents = step_documents(MIXTURE, 12, 0, 0)
    encode_rows = RowPacker(tokenizer, 96)
    packed = encode_rows(documents)
    assert packed.tokens.shape[0] < len(documents)
    alone = [encode_rows([document]) for document in documents]
    mass = [float(batch.weights[:, 1:].sum()) for batch in alone]
    losses = [weighted_loss(model, batch).item() for batch in alone]
    expected = sum(m * loss for m, loss in zip(mass, losses, strict=True)) / sum(mass)
    assert weighted_loss(model, packed).item() == pytest.approx(expected, rel=1e-6)


def test_every_word_of_the_held_out_prompts_is_one_known_token(tokenizer):
    known = set(grammar_vocabulary(tuple(SAMPLERS)))
    for task in SAMPLERS:
        for split in ("validation", "test"):
            for example in draw_examples(task, split, 50, 1):
                for text in (example.clean.text, example.corrupt.text, *example.correct, *example.incorrect):
                    pieces = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens
                    assert set(pieces) <= known, text


@pytest.mark.parametrize("task", list(SAMPLERS))
def test_templates_of_the_splits_are_disjoint(task):
    parts = [set(templates(task, split)) for split in ("train", "validation", "test")]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


@pytest.mark.parametrize("name", ["female", "male", "invented"])
def test_held_out_names_never_answer_in_training(name):
    table = bundled.load_json("tasks", "names.json")[name]
    held_out = set(table["validation"]) | set(table["test"])
    assert not held_out & set(table["train"])
    for step in range(20):
        for document in step_documents({"ioi": 0.5, "pronoun": 0.5}, 20, 0, step):
            words = "".join(text for text, _ in document).replace(",", " ").replace(".", " ").split()
            assert not held_out & set(words)


# ---- tokenizer ----------------------------------------------------------------------------------------------------


def test_tokenizer_loads_offline_and_round_trips(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "When Mary and John went to the store, John gave a drink to"
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert ids[0] == loaded.bos_token_id == tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert len(ids) == 1 + 14
    assert loaded.decode(ids[1:]) == text
    odd = "Zürich §9 xyzzy"
    assert loaded.decode(loaded(odd, add_special_tokens=False)["input_ids"]) == odd


def test_years_are_a_century_and_two_digits(tokenizer):
    assert tokenizer.tokenize(" 1732 to 17") == ["Ġ17", "32", "Ġto", "Ġ17"]


# ---- measuring, exporting, verifying --------------------------------------------------------------------------------


def test_measuring_pads_without_consequence(finished):
    texts = [e.clean.text for e in draw_examples("ioi", "test", 6, 0)]
    tokens, last = encode(finished.tokenizer, texts)
    assert tokens.shape == (6, int(last.max()) + 1)
    score = measure_task(finished.model, finished.tokenizer, "greater_than", n=20)
    assert 0 <= score.accuracy <= 1
    assert score.per_template
    assert set(score.per_template) <= set(templates("greater_than", "test"))


def test_unfinished_runs_are_not_exported_silently(tmp_path):
    run = train(TINY, tmp_path / "run", stop_after=1)
    with pytest.raises(InputError, match="step 1 of 6"):
        export(run, tmp_path / "model", n=4)


def test_exported_model_loads_and_altered_files_are_refused(finished, tmp_path):
    folder = tmp_path / "tiny"
    card = export(finished, folder, n=10)
    bundled.verify(folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    ids = finished.tokenizer("Then Mary", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model.float()(ids).logits, finished.model(ids).logits, atol=2e-2, rtol=1e-2)
    assert set(card["test"]) == set(SAMPLERS)
    assert "held-out" in (folder / "card.md").read_text()
    weights_file = folder / "model.safetensors"
    original = weights_file.read_bytes()
    for damaged in (original[:-1], original[:-1] + bytes([original[-1] ^ 1])):
        weights_file.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=r"model\.safetensors"):
            bundled.verify(folder)
    weights_file.unlink()
    with pytest.raises(ArtefactError, match="missing"):
        bundled.verify(folder)


def test_a_card_is_written_anew_from_the_weights_alone(finished, tmp_path):
    folder = tmp_path / "tiny"
    card = export(finished, folder, n=10)
    before = (folder / "card.json").read_text()
    assert card["stored_as"] == "float16"
    rewritten = rewrite_card(folder, n=10)
    bundled.verify(folder)
    assert (folder / "card.json").read_text() == before
    assert rewritten["tokens"] == finished.tokens
    measured = remeasure(folder, n=10)
    assert {task: score.accuracy for task, score in measured.items()} == {
        task: score["accuracy"] for task, score in card["test"].items()
    }


def test_bundled_lookup_errors(tmp_path):
    with pytest.raises(UnknownNameError, match="bundled model"):
        bundled.verified_model("gpt2-5l")
    with pytest.raises(NotFoundError):
        bundled.path("tasks", "nothing.json")
    with pytest.raises(InputError):
        bundled.path("..", "secrets")
    with pytest.raises(NotFoundError):
        bundled.verify(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        bundled.verify(Path(tmp_path))
