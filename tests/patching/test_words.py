"""Sites in words: the same numbers as the whole kind, at the named places only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.patching import attribute, patch
from mechwork.sites import Site
from mechwork.tasks.task import Task


@pytest.mark.parametrize("method", [patch, attribute])
def test_words_narrow_a_kind(tiny_gpt2_64: Any, tiny_task: Task, method: Any) -> None:
    whole = method(tiny_gpt2_64, tiny_task, ["z", "resid_pre", "q"])
    part = method(tiny_gpt2_64, tiny_task, ["a2.h1", "a0.h3", "resid_pre.1@4", "a1.h2<q>"])
    z = part["z"]
    assert z.labels == {"layer": ("0", "2"), "head": ("1", "3")}
    assert z.values.isnan().tolist() == [[True, False], [False, True]]
    near: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(z.per_example[:, 0, 1], whole["z"].per_example[:, 0, 3], **near)
    torch.testing.assert_close(z.per_example[:, 1, 0], whole["z"].per_example[:, 2, 1], **near)
    torch.testing.assert_close(part["resid_pre"].values, whole["resid_pre"].values[1:2, 4:5], **near)
    torch.testing.assert_close(part["q"].values, whole["q"].values[1:2, 2:3], **near)
    assert {name for name, _ in z.top()} == {"a2.h1", "a0.h3"}
    again = method(tiny_gpt2_64, tiny_task, [name for name, _ in z.top()])
    torch.testing.assert_close(again["z"].values, z.values, equal_nan=True, **near)


def test_spans_layers_sites_and_neurons(bundled_model: Any) -> None:
    from mechwork.tasks import ioi

    task = ioi(bundled_model, n=4, seed=0)
    spans = patch(bundled_model, task, ["resid_pre"], positions="spans")["resid_pre"]
    part = patch(bundled_model, task, [Site("resid_pre", 2), "resid_pre.4"], positions="spans")["resid_pre"]
    torch.testing.assert_close(part.values, spans.values[[2, 4]])
    end = patch(bundled_model, task, ["resid_pre@END"])["resid_pre"]
    assert end.axes == ("layer", "pos")
    torch.testing.assert_close(end.values[:, 0], spans.values[:, spans.labels["pos"].index("END")])
    neurons = patch(bundled_model, task, ["m3.n17", "m3.n4+5"])["mlp_post"]
    assert neurons.labels["neuron"] == ("m3.n17", "m3.n4+5")
    by_argument = patch(bundled_model, task, ["mlp_post"], neurons={3: [17, (4, 5)]})["mlp_post"]
    assert torch.equal(neurons.values, by_argument.values)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["a9.h1"], "layer 0, 1, 2; got 9"), (["a1.h9"], "head 0, 1, 2, 3; got 9"), (["a1.h1@99"], "got 99"),
        (["z", "a1.h1"], "name it alone"), (["z", "z"], "named once"), (["a1.h1", "a1.h2@END"], "a position, or none"),
        (["a1.h1@2", "a1.h2@END"], "not both"), ("z", "list of places"), ([], "got none"), (["l1"], "got l1"),
        (["m1.n2", "mlp_post.1"], "alone"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [patch, attribute])
def test_what_is_refused(tiny_gpt2: Any, tiny_task: Task, method: Any, sites: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(tiny_gpt2, tiny_task, sites)


def test_neurons_are_not_estimated_and_screens_take_kinds(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="neurons are measured"):
        attribute(tiny_gpt2, tiny_task, ["m1.n2"])
    with pytest.raises(InputError, match="whole kinds can be screened"):
        patch(tiny_gpt2, tiny_task, ["a1.h2"], screen="relp")
