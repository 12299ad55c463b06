"""backend="nnsight": the rows of the hook engine, read by traces; backend="ndif": the same, until it is sent."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import interventions as iv
from tests.tiny import FAMILIES, MOE_FAMILIES, tiny_model, tokenizer, tuned_copy
from tests.workbench.models.test_sources import cached
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.recording.record_pair import record
from workbench.recording.traced import RemoteCapture

PROMPTS = ["the quick brown fox", "the", "lazy dog jumps over", "a lazy dog", "fox"]
KINDS = ["resid_pre", "resid_mid", "resid_post", "z", "attn_out", "mlp_out", "mlp_post", "q", "k", "v", "router"]


@pytest.fixture(autouse=True)
def _quiet_import() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nnsight  # noqa: F401


def made(family: str) -> ModelPair:
    base = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_pair(base, tuned_copy(base), tokenizer=tokenizer())


def there(pair: ModelPair) -> list[str]:
    have = {name.rsplit("hook_", 1)[-1] for name in pair.base.sites()}
    names = {"mlp_post": "post"}
    return [kind for kind in KINDS if names.get(kind, kind) in have]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_of_every_family_equals_the_hook_engine(family: str) -> None:
    pair = made(family)
    sites = there(pair)
    assert len(sites) >= 7 and ("router" in sites) == (family in MOE_FAMILIES)
    options: dict[str, Any] = {"positions": "all", "batch_size": 3}
    hooked = record(pair, PROMPTS, sites, **options)
    traced = record(pair, PROMPTS, sites, backend="nnsight", **options)
    assert traced.index.equals(hooked.index) and traced.sites == hooked.sites
    for role in ("base", "tuned"):
        assert list(traced[role]) == list(hooked[role])
        for site in hooked[role]:
            torch.testing.assert_close(traced[role][site], hooked[role][site], atol=1e-5, rtol=1e-5)
    assert not torch.equal(traced["base"]["resid_post", 2], traced["tuned"]["resid_post", 2])
    assert pair.base.n_hooks == 0


def test_logits_positions_continuations_and_dtype() -> None:
    pair = made("llama")
    options: dict[str, Any] = {
        "positions": "last+generated", "batch_size": 2, "logits": True, "new_tokens": 3, "dtype": torch.float16,
    }  # fmt: skip
    hooked = record(pair, PROMPTS, "z", **options)
    traced = record(pair, PROMPTS, "z", backend="nnsight", **options)
    assert traced.index.equals(hooked.index) and set(traced.index["phase"]) == {"prompt", "generated"}
    for site in hooked["tuned"]:
        assert traced["tuned"][site].dtype == torch.float16
        torch.testing.assert_close(traced["tuned"][site], hooked["tuned"][site], atol=2e-3, rtol=2e-3)


def test_both_views_of_an_adapter_and_the_model_is_itself_after() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    pair = load_pair(base, adapted, tokenizer=tokenizer())
    ids = torch.tensor([[4, 5, 6]])
    before = [model.forward(ids) for model in pair.models.values()]
    traced = record(pair, PROMPTS, ["z", "resid_post"], backend="nnsight")
    hooked = record(pair, PROMPTS, ["z", "resid_post"])
    for role in ("base", "tuned"):
        assert all(torch.equal(traced[role][site], hooked[role][site]) for site in hooked[role])
    assert all(torch.equal(model.forward(ids), old) for model, old in zip(pair.models.values(), before, strict=True))
    for _ in range(3):  # wrapping a model again and again leaves it as it is
        record(pair, PROMPTS[:1], "z", backend="nnsight")
    assert all(torch.equal(model.forward(ids), old) for model, old in zip(pair.models.values(), before, strict=True))


def test_what_traces_cannot_do_is_refused() -> None:
    pair = made("mixtral")
    for site in ("pattern", "expert[1]"):
        with pytest.raises(NotSupported, match=r"inside a fused function.*backend=.hooks"):
            record(pair, PROMPTS, site, backend="nnsight")
    offset = iv.Recipe([iv.Offset(0, torch.ones(pair.tuned.d_model))])
    with offset.applied(pair.tuned), pytest.raises(NotSupported, match="would miss what the interventions"):
        record(pair, PROMPTS, "z", backend="nnsight")
    with pytest.raises(UserError, match=r"Unknown backend 'nnsigth'\. Did you mean 'nnsight'"):
        record(pair, PROMPTS, "z", backend="nnsigth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that knows ``some/base`` and ``some/tuned`` by their settings; no weights are in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        files = {file.name: file for file in (tmp_path / name).iterdir()}
        cached(tmp_path / "hub", f"some/{name}", files)
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        file.write_bytes(b"")  # listed, as on the hub, and not here
    return tmp_path


def test_a_pair_without_weights_has_the_names_and_shapes(hub: Path) -> None:
    pair = load_pair("some/base", "some/tuned", device="meta")
    full = load_pair(hub / "base", hub / "tuned")
    assert pair.base.weightless and not full.base.weightless
    assert all(parameter.device.type == "meta" for parameter in pair.tuned.hf.parameters())
    assert pair.base.sites() == full.base.sites() and pair.base.dtype == full.base.dtype
    assert pair.base.identity.weights == f"some/base@{'a' * 40}" != pair.tuned.identity.weights
    with pytest.raises(UserError, match=r'loaded without weights: only backend="ndif"'):
        record(pair, PROMPTS, "z")


def test_an_unreachable_service_is_one_sentence(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nnsight
    from nnsight.modeling.huggingface import _ID_CACHE

    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "http://127.0.0.1:9")
    for name in ("some/base", "some/tuned"):  # else it would ask the hub how the name is spelled
        monkeypatch.setitem(_ID_CACHE, name, name)
    pair = load_pair("some/base", "some/tuned", device="meta")
    with pytest.raises(UserError, match=r"NDIF did not run this \(.*refused"):
        record(pair, PROMPTS, ["z", "resid_post"], batch_size=2, backend="ndif")
    assert not (hub / "new").exists()


def test_what_the_service_cannot_do_is_refused(hub: Path) -> None:
    local = load_pair(hub / "base", hub / "tuned")
    with pytest.raises(UserError, match="NDIF hosts models under hub ids"):
        record(local, PROMPTS, "z", backend="ndif")
    remote = load_pair("some/base", "some/tuned", device="meta")
    with pytest.raises(NotSupported, match="NDIF only reads here"):
        record(remote, PROMPTS, "z", backend="ndif", new_tokens=2)


class Looped(RemoteCapture):
    """Sends each trace through nnsight's serialization and back into this process."""

    remote: ClassVar[Any] = "local"


def test_a_sent_trace_gives_the_rows_of_the_hook_engine(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight.modeling.huggingface import _ID_CACHE

    for name in ("base", "tuned"):
        monkeypatch.setitem(_ID_CACHE, f"some/{name}", f"some/{name}")
        (file,) = (hub / "hub" / f"models--some--{name}").rglob("*.safetensors")
        file.write_bytes((hub / name / "model.safetensors").read_bytes())
    monkeypatch.setattr("workbench.recording.traced.RemoteCapture", Looped)
    sent = record(load_pair("some/base", "some/tuned", device="meta"), PROMPTS, ["resid_mid", "q", "z"], backend="ndif")
    here = record(load_pair(hub / "base", hub / "tuned"), PROMPTS, ["resid_mid", "q", "z"])
    for role in ("base", "tuned"):
        for site in here[role]:
            torch.testing.assert_close(sent[role][site], here[role][site], atol=1e-5, rtol=1e-5)
