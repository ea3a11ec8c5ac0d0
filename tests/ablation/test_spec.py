"""A spec is a value: it is written, read, hashed and compared; what contradicts itself or the model is refused before
any forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.ablation import Ablation, AblationSpec, Target, ablate, fit_ablation, outside, parse_target
from mechwork.errors import ArtefactError, InputError
from mechwork.interventions import ByPosition, Noise
from mechwork.models.anatomy import read_anatomy
from mechwork.tasks.task import Task
from tests.families import build_model, build_native, build_task

TEXTS = (
    "a3.h1",
    "a3",
    "m3",
    "m3.n17",
    "m3.n17+20",
    "m3.e2",
    "l3",
    "a3.h1[END->S1]",
    "a3.h1[5->2]",
    "resid_pre.3@truth",
    "z.3.1@x",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_target_is_its_text(text: str) -> None:
    target = parse_target(text)
    assert str(target) == text
    assert parse_target(str(target)) == target
    assert isinstance(target, Target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h1",
        "a1h1",
        "a1.h",
        "m1.n",
        "m1.n3+3",
        "x3",
        "a1.h1[->2]",
        "pattern.3@d",
        "resid_pre@d",
        "z.3@d",
        "resid_pre.3.1@d",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_target(text)


@pytest.mark.parametrize(
    "targets",
    [
        ["a1.h0", "a1.h0"], ["a1", "a1.h0"], ["l1", "a1"], ["l1", "m1.n3"], ["m1", "m1.e0"], ["m1.n3", "m1.n3+4"],
        ["a1.h0", "a1.h0[3->2]"], ["a1", "attn_out.1@d"], ["a1.h0", "z.1.0@e"],
    ],
)  # fmt: skip
def test_overlapping_targets_are_refused(targets: list[str]) -> None:
    with pytest.raises(InputError, match="must not overlap"):
        AblationSpec(targets, "zero", directions={"d": torch.ones(32), "e": torch.ones(8)})


def test_targets_side_by_side_are_not() -> None:
    AblationSpec(
        ["a1.h0", "a1.h1", "m1.n3", "m1.n4", "a2", "m2.e0", "m2.e1", "a1.h2[3->2]", "z.1.3@e"],
        "zero",
        directions={"e": torch.ones(8)},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": []}, "at least one target"),
        ({"targets": "a1.h0"}, "list of at least one"),
        ({"kind": "men"}, "nearest: mean"),
        ({"positions": []}, "list of spans"),
        ({"positions": [-1]}, "absolute"),
        ({"targets": ["a1.h0[3->2]"], "kind": "noise"}, "can be ablated by"),
        ({"targets": ["m1.e0"], "kind": "mean_by_position"}, "can be ablated by"),
        ({"targets": ["resid_pre.1@d"]}, "names the direction"),
        ({"targets": ["a1.h0[3->2]"], "positions": [3]}, "leave positions out"),
        ({"targets": ["resid_pre.1@d"], "directions": {"d": torch.zeros(2, 32)}}, "linearly independent"),
        ({"targets": ["resid_pre.1@d", "resid_pre.1@e"], "directions": {"d": torch.ones(32), "e": torch.eye(32)[0]}},
        "orthogonal"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AblationSpec(**{"targets": ["a1.h0"], **changes})


def test_a_spec_is_written_read_and_hashed(tmp_path: Path) -> None:
    spec = AblationSpec(
        ["a1.h0", "resid_pre.1@d"], "noise", ["END", 3], strength=3.0, seed=7, directions={"d": torch.randn(2, 32)}
    )
    again = AblationSpec.load(spec.save(tmp_path / "spec"))
    assert again == spec
    assert hash(again) == hash(spec)
    assert AblationSpec.from_json(spec.to_json(), spec.directions).sha256 == spec.sha256
    for changed in (
        AblationSpec(spec.targets, "mean", spec.positions, strength=3.0, seed=7, directions=spec.directions),
        AblationSpec(spec.targets, "noise", spec.positions, strength=3.0, seed=8, directions=spec.directions),
        AblationSpec(spec.targets, "noise", spec.positions, strength=3.0, seed=7, directions={"d": torch.randn(2, 32)}),
        spec.only("a1.h0"),
    ):
        assert changed != spec
    with pytest.raises(ArtefactError, match="directions"):
        AblationSpec.from_json(spec.to_json())
    with pytest.raises(ArtefactError, match="format"):
        AblationSpec.from_json({"what": "effects"})


@pytest.mark.parametrize("kind", ["mean", "mean_by_position", "resample", "noise", "optimal", "zero"])
def test_tables_travel_with_the_hash_of_their_data(tiny_gpt2_64: Any, kind: str, tmp_path: Path) -> None:
    task = build_task(n=9)
    fitted = fit_ablation(tiny_gpt2_64, AblationSpec(["a1.h0", "m2"], kind), task)
    path = fitted.save(tmp_path / "ablation")
    again = Ablation.load(path)
    assert again.spec == fitted.spec
    assert again.tables.keys() == fitted.tables.keys()
    assert all(torch.equal(again.tables[name], table) for name, table in fitted.tables.items())
    assert (again.reference is None) == (kind == "zero")
    if again.reference is not None:
        assert again.reference["sha256"] == task.pairs.fingerprint()
    one, two = (ablate(tiny_gpt2_64, task, ablation) for ablation in (fitted, again))
    assert torch.equal(one.ablated_per_example, two.ablated_per_example)
    assert one.effect != 0
    assert path.read_bytes() == again.save(tmp_path / "again").read_bytes()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    spec = AblationSpec(["a1.h0"], "zero").save(tmp_path / "spec")
    with pytest.raises(ArtefactError, match="kind 'ablation'"):
        Ablation.load(spec)
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(ArtefactError, match="damaged"):
        Ablation.load(tmp_path / "broken.safetensors")


def test_another_architecture_or_other_weights_are_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    fitted = fit_ablation(tiny_gpt2_64, AblationSpec(["a1.h0"], "mean"), build_task(n=8))
    for other, message in ((build_model("llama"), "n_kv_heads"), (build_model("gpt2", seed=1), "other weights")):
        with pytest.raises(ArtefactError, match=message), fitted.applied(other):
            pass
    zero = fit_ablation(tiny_gpt2_64, AblationSpec(["a1.h0"], "zero"))
    with zero.applied(build_model("gpt2", seed=1)):  # no values of the other model are put in
        pass


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a3.h0", "a0.h0 to a2.h3|layers of this model are 0 to 2"), ("a0.h4", "a0.h0 to a2.h3"),
        ("m0.n128", "0 to 127"), ("m0.e0", "no experts"),
        ("l7", "0 to 2"), ("a0.h0[3->8]", "never see"), ("a0.h0[X->2]", "END"), ("resid_pre.0@d", "in 32 dimensions"),
    ],
)  # fmt: skip
def test_targets_that_the_model_does_not_have(tiny_gpt2_64: Any, target: str, message: str) -> None:
    task = build_task(n=8)
    spec = AblationSpec([target], "zero", directions={"d": torch.ones(7)} if "@" in target else {})
    with pytest.raises(InputError, match=message):
        ablate(tiny_gpt2_64, task, spec)


@pytest.mark.parametrize("family", ["opt", "gptj"])
def test_patterns_that_cannot_be_written(family: str, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="can be read there, not written"):
        fit_ablation(build_model(family), AblationSpec(["a0.h0[3->2]"], "zero"))


def test_references_that_cannot_carry_a_mean(tiny_gpt2_64: Any) -> None:
    for kind, reference, message in (
        ("mean", None, "pass reference"),
        ("mean", build_task(n=3), "at least 8 prompts"),
        ("mean_by_span", build_task(n=8), "named spans"),
        ("mean_by_span", build_task(n=8, spans=[{"A": [3]}] * 3 + [{"B": [3]}] * 5), "span 'A'"),
        ("mean_by_position", _two_lengths(), "position"),
    ):
        with pytest.raises(InputError, match=message):
            fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], kind), reference)
    with pytest.raises(InputError, match="spans"):
        fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "mean", ["S1"]), build_task(n=8))
    with pytest.raises(InputError, match="no token of the reference"):
        fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "mean", [30]), build_task(n=8))
    with pytest.raises(InputError, match="length 9 occurs once"):
        fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "resample"), _two_lengths())


def _two_lengths() -> Task:
    long, short = build_task(n=7).pairs, build_task(n=1, n_pos=9, seed=1).pairs
    rows = [*long.clean_tokens.tolist(), short.clean_tokens[0].tolist()]
    others = [*long.corrupt_tokens.tolist(), short.corrupt_tokens[0].tolist()]
    return Task.from_tokens(rows, others, [1] * 8, [2] * 8)


def test_kinds_that_belong_to_prompts_ask_for_them(tiny_gpt2_64: Any) -> None:
    task = build_task(n=8, spans=[{"A": [3, 4]}] * 8)
    for kind in ("corrupt", "resample", "mean_by_span"):
        fitted = fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], kind), task)
        with pytest.raises(InputError, match="pass the pairs"), fitted.applied(tiny_gpt2_64):
            pass
    spanned = fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "zero", ["A"]))
    with pytest.raises(InputError, match="span of prompts"), spanned.applied(tiny_gpt2_64):
        pass


def test_positions_beyond_a_table_are_an_error_not_a_silence(tiny_gpt2_64: Any) -> None:
    task = build_task(n=8, n_pos=6)
    fitted = fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "mean_by_position"), task)
    with pytest.raises(InputError, match="reaches position 6"), torch.no_grad(), fitted.applied(tiny_gpt2_64):
        tiny_gpt2_64.generate(task.pairs.clean_tokens, max_new_tokens=2, do_sample=False, verbose=False)
    limited = fit_ablation(tiny_gpt2_64, AblationSpec(["a0.h0"], "mean_by_position", [0, 1, 5]), task)
    with torch.no_grad(), limited.applied(tiny_gpt2_64):
        tiny_gpt2_64.generate(task.pairs.clean_tokens, max_new_tokens=2, do_sample=False, verbose=False)
    spanned = build_task(n=8, n_pos=6, spans=[{"A": [3]}] * 8)
    edge = fit_ablation(tiny_gpt2_64, AblationSpec(["a1.h2[END->A]"], "mean_by_position"), spanned)
    with pytest.raises(InputError, match="names later ones"):
        edge.bind(tiny_gpt2_64, build_task(n=3, spans=[{"A": [8]}] * 3).pairs)
    with pytest.raises(InputError, match="for 2 prompts"):
        ByPosition(torch.zeros(2, 5, 3)).place(torch.zeros(3, 5, 3), 0)


def test_noise_depends_on_row_and_absolute_position_only() -> None:
    x = torch.zeros(3, 5, 4)
    whole = Noise(torch.ones(4), 1).place(x, 2)
    assert torch.equal(Noise(torch.ones(4), 1).place(x[:, :2], 4), whole[:, 2:4])
    assert torch.equal(Noise(torch.ones(4), 1, first_row=1).place(x[:2], 2), whole[1:])
    assert not torch.equal(Noise(torch.ones(4), 2).place(x, 2), whole)


def test_what_a_circuit_leaves_out(tiny_gpt2_64: Any) -> None:
    anatomy = read_anatomy(tiny_gpt2_64)
    rest = outside(anatomy, ["input", "a0.h0", "m1", "logits"])
    assert len(rest) == 13
    assert not {"a0.h0", "m1"} & set(rest)
    assert len(outside(read_anatomy(build_native("attention only")), [])) == 12
    with pytest.raises(InputError, match="a9"):
        outside(anatomy, ["a9.h0"])
