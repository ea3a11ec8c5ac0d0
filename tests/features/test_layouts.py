"""Published layouts, written here as their authors' code writes them: read back with the authors' formulas, or refused
by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mechwork.errors import ArtefactError, InputError, NotFoundError
from mechwork.features import LAYOUTS, import_features, load_features
from mechwork.sites import Site, find_site, hook_name

D, N = 32, 20
G = torch.Generator().manual_seed(0)
X = torch.randn(7, D, generator=G)
SITE = Site("resid_post", 1)
HOOK = hook_name(SITE)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def standard() -> dict[str, Tensor]:
    return {"W_enc": draw(D, N) / 5, "b_enc": draw(N), "W_dec": draw(N, D) / 5, "b_dec": draw(D)}


def saelens(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    facts = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": N,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": HOOK}, **facts}))
    return folder


def check(features: Any, f: Tensor, y: Tensor, place: tuple[Site, Site] = (SITE, SITE)) -> None:
    coder = features[0]
    assert (coder.reads, coder.writes) == place
    found = coder.encode(X)
    torch.testing.assert_close(found, f)
    torch.testing.assert_close(coder.decode(found, X), y)
    assert 0 < int((found > 0).sum()) < found.numel()


def test_saelens_standard_and_top_k(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = standard()
    f = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    check(import_features(tiny_gpt2, saelens(tmp_path / "a", t)), f, f @ t["W_dec"] + t["b_dec"])
    plain = (X @ t["W_enc"] + t["b_enc"]).relu()
    check(
        import_features(tiny_gpt2, saelens(tmp_path / "b", t, apply_b_dec_to_input=False)),
        plain,
        plain @ t["W_dec"] + t["b_dec"],
    )
    top = f.topk(4, dim=1)
    kept = torch.zeros_like(f).scatter(1, top.indices, top.values)
    check(
        load_features(tiny_gpt2, saelens(tmp_path / "c", t, architecture="topk", k=4)),
        kept,
        kept @ t["W_dec"] + t["b_dec"],
    )
    old = {"metadata": {}, "hook_name": HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    check(load_features(tiny_gpt2, saelens(tmp_path / "d", t, **old)), kept, kept @ t["W_dec"] + t["b_dec"])


def test_saelens_top_k_ranked_by_decoder_norm(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = standard()
    norm = t["W_dec"].norm(dim=1)
    pre = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm
    top = pre.relu().topk(4, dim=1)
    f = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    made = import_features(
        tiny_gpt2, saelens(tmp_path / "a", t, architecture="topk", k=4, rescale_acts_by_decoder_norm=True)
    )
    check(made, f, (f / norm) @ t["W_dec"] + t["b_dec"])


def test_saelens_jumprelu_and_gated(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = standard() | {"threshold": draw(N).abs()}
    pre = (X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    f = pre.relu() * (pre > t["threshold"])
    check(
        import_features(tiny_gpt2, saelens(tmp_path / "a", t, architecture="jumprelu")), f, f @ t["W_dec"] + t["b_dec"]
    )
    g = {k: v for k, v in standard().items() if k != "b_enc"} | {
        "b_gate": draw(N),
        "b_mag": draw(N) / 2,
        "r_mag": draw(N) / 3,
    }
    inner = X - g["b_dec"]
    f = (inner @ g["W_enc"] + g["b_gate"] > 0) * (inner @ (g["W_enc"] * g["r_mag"].exp()) + g["b_mag"]).relu()
    check(import_features(tiny_gpt2, saelens(tmp_path / "b", g, architecture="gated")), f, f @ g["W_dec"] + g["b_dec"])


def test_saelens_skip_transcoder(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = standard() | {"W_skip": draw(D, D) / D}
    place = Site("mlp_in", 1), Site("mlp_out", 1)
    hooks = {"metadata": {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": hook_name(place[1])}}
    made = import_features(tiny_gpt2, saelens(tmp_path / "a", t, architecture="skip_transcoder", **hooks))
    f = (X @ t["W_enc"] + t["b_enc"]).relu()
    check(made, f, f @ t["W_dec"] + t["b_dec"] + X @ t["W_skip"].T, place)


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(tiny_gpt2: Any, tmp_path: Path, transcode: bool) -> None:
    t = {"encoder.weight": draw(N, D) / 5, "encoder.bias": draw(N), "W_dec": draw(N, D) / 5, "b_dec": draw(D)}
    folder = tmp_path / ("layers.1.mlp" if transcode else "layers.1")
    folder.mkdir()
    if transcode:
        t["W_skip"] = draw(D, D) / D
    save_file(t, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(
        json.dumps({"k": 4, "d_in": D, "expansion_factor": 1, "transcode": transcode, "activation": "topk"})
    )
    inner = X if transcode else X - t["b_dec"]
    pre = torch.nn.functional.linear(inner, t["encoder.weight"], t["encoder.bias"]).relu()
    top = pre.topk(4, dim=1)
    f = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    y = f @ t["W_dec"] + t["b_dec"] + (X @ t["W_skip"].mT if transcode else 0)
    place = (Site("mlp_in", 1), Site("mlp_out", 1)) if transcode else (SITE, SITE)
    check(import_features(tiny_gpt2, folder), f, y, place)


def test_circuit_tracer(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = {
        "W_enc": draw(N, D) / 5,
        "b_enc": draw(N),
        "W_dec": draw(N, D) / 5,
        "b_dec": draw(D),
        "activation_function.threshold": draw(N).abs(),
    }
    save_file(t, tmp_path / "layer_1.safetensors")
    (tmp_path / "config.yaml").write_text(
        'model_kind: transcoder_set\nfeature_input_hook: "mlp.hook_in"  # where\nfeature_output_hook: '
        "hook_mlp_out\ntranscoders:\n  - x\n"
    )
    pre = torch.nn.functional.linear(X, t["W_enc"], t["b_enc"])
    f = pre.relu() * (pre > t["activation_function.threshold"])
    made = import_features(tiny_gpt2, tmp_path / "layer_1.safetensors")
    check(made, f, f @ t["W_dec"] + t["b_dec"], (Site("mlp_in", 1), Site("mlp_out", 1)))
    save_file(
        {k: v for k, v in t.items() if "threshold" not in k} | {"W_skip": draw(D, D) / D},
        tmp_path / "layer_1.safetensors",
    )
    f = pre.relu()
    made = import_features(tiny_gpt2, tmp_path / "layer_1.safetensors")
    check(made, f, f @ t["W_dec"] + t["b_dec"] + X @ (draw(D, D) / D).T, (Site("mlp_in", 1), Site("mlp_out", 1)))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_gemma_scope(tiny_gpt2: Any, tmp_path: Path, ending: str) -> None:
    t = standard() | {"threshold": draw(N).abs()}
    file = tmp_path / f"params.{ending}"
    if ending == "npz":
        arrays: Any = {name: value.numpy() for name, value in t.items()}
        np.savez(file, **arrays)
    else:
        save_file(t, file)
    pre = X @ t["W_enc"] + t["b_enc"]
    f = (pre > t["threshold"]) * pre.relu()
    check(import_features(tiny_gpt2, tmp_path, reads=SITE), f, f @ t["W_dec"] + t["b_dec"])
    with pytest.raises(InputError, match="does not say which place"):
        import_features(tiny_gpt2, file)


def test_unknown_layouts_name_what_was_found(tiny_gpt2: Any, tmp_path: Path) -> None:
    save_file({"encoder": draw(3, 4), "decoder": draw(4, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ArtefactError, match=r"not known; it holds decoder \(4, 3\), encoder \(3, 4\)\. Known are sparsify: W_dec"
    ):
        import_features(tiny_gpt2, tmp_path, reads=SITE)
    with pytest.raises(ArtefactError, match="not known as saelens"):
        import_features(tiny_gpt2, tmp_path, reads=SITE, layout="saelens")
    with pytest.raises(InputError, match=f"layouts are {', '.join(LAYOUTS)}"):
        import_features(tiny_gpt2, tmp_path, layout="other")
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtefactError, match="damaged"):
        import_features(tiny_gpt2, tmp_path / "x.safetensors")
    np.savez(tmp_path / "p.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtefactError, match="damaged"):
        import_features(tiny_gpt2, tmp_path / "p.npz")
    with pytest.raises(InputError, match="several files"):
        import_features(tiny_gpt2, tmp_path)
    with pytest.raises(NotFoundError, match="nor a folder with one"):
        load_features(tiny_gpt2, tmp_path / "nowhere")


def test_what_does_not_fit_is_refused(tiny_gpt2: Any, tmp_path: Path) -> None:
    t = standard()
    with pytest.raises(ArtefactError, match="features of org/other-model; this model is"):
        import_features(tiny_gpt2, saelens(tmp_path / "a", t, model_name="org/other-model"))
    import_features(tiny_gpt2, tmp_path / "a", check_name=False)
    with pytest.raises(InputError, match=r"say.*read resid_post.1"):
        import_features(tiny_gpt2, saelens(tmp_path / "b", t), reads=Site("resid_post", 2))
    with pytest.raises(InputError, match="layer"):
        import_features(tiny_gpt2, saelens(tmp_path / "c", t, metadata={"hook_name": hook_name(Site("resid_post", 8))}))
    small = {"W_enc": draw(6, N), "b_enc": draw(N), "W_dec": draw(N, 6), "b_dec": draw(6)}
    with pytest.raises(InputError, match="vectors of 6 numbers; this model has 32"):
        import_features(tiny_gpt2, saelens(tmp_path / "d", small))
    with pytest.raises(InputError, match=r"b_enc .* has shape \(5,\)"):
        import_features(tiny_gpt2, saelens(tmp_path / "e", {**t, "b_enc": draw(5)}))
    bad = t["W_dec"].clone()
    bad[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"W_dec of the features at resid_post\.1 has NaN"):
        import_features(tiny_gpt2, saelens(tmp_path / "f", {**t, "W_dec": bad}))
    with pytest.raises(ArtefactError, match="'layer_norm', which depends on every vector"):
        import_features(tiny_gpt2, saelens(tmp_path / "g", t, normalize_activations="layer_norm"))
    with pytest.raises(ArtefactError, match="does not say k"):
        import_features(tiny_gpt2, saelens(tmp_path / "h", t, architecture="topk"))
    with pytest.raises(ArtefactError, match="architecture 'matryoshka'"):
        import_features(tiny_gpt2, saelens(tmp_path / "i", t, architecture="matryoshka"))
    with pytest.raises(ArtefactError, match="scaling_factor"):
        import_features(tiny_gpt2, saelens(tmp_path / "j", {**t, "scaling_factor": 2 * torch.ones(N)}))


def test_hooks_are_sites_again() -> None:
    for site in (Site("resid_post", 3), Site("z", 1), Site("mlp_in", 0), Site("embed")):
        assert find_site(hook_name(site)) == site
    assert find_site(hook_name(Site("z", 1)), 2) == Site("z", 1, 2)
    assert find_site("blocks.4.hook_mlp_in") == Site("resid_mid", 4)
    for wrong in ("blocks.4.hook_nothing", "", "encoder.layer"):
        with pytest.raises(InputError, match="hook of no site"):
            find_site(wrong)
