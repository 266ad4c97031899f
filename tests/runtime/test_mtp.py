"""Multi-token prediction: counted apart to the digit, and DeepSeek-V3's formula in transformers' own layers."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

import l4spec
from l4spec.errors import SpecError, UserError
from l4spec.graph.build import mtp_graph
from l4spec.huggingface import export_config, import_config
from l4spec.quantization.scheme import scheme_named
from l4spec.quantization.tensors import scheme_of
from l4spec.report.page import to_text
from l4spec.report.show import show_page
from l4spec.runtime.build import build
from l4spec.runtime.mtp import MTPModule, build_mtp, hidden_states
from l4spec.sharding.layout import Layout
from l4spec.spec.origin import HuggingFaceSpec
from l4spec.spec.scale import scale_spec
from planners.counts.mtp import count_mtp, mtp_weight_bytes
from planners.counts.params import count_params
from tests.runtime.families import deepseek_v3
from tests.runtime.oracles import Oracle, translated
from tests.runtime.tiny import graph_of

MTP = {"num_modules": 2, "block": {"attention": "attention", "ffn": "moe"}}


def test_deepseek_v3_is_671b_and_its_module_apart() -> None:
    """The checkpoint's 684.5B parameters are the model's 671.0B, the module's 11.6B and its copies (README: 685B, 14B).

    By hand: attention 187,107,328, experts and router 11,320,164,352, five norms of 7,168, and 2 x 7,168^2.
    """
    graph = l4spec.compile(l4spec.load("deepseek-v3"))
    counts = count_mtp(graph)
    assert counts is not None
    attention = 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    experts = 257 * 3 * 7168 * 2048 + 256 * 7168
    assert counts.own == attention + experts + 5 * 7168 + 2 * 7168**2 == 11_610_067_968
    assert counts.copies == 2 * 129280 * 7168
    assert counts.active == counts.own - 248 * 3 * 7168 * 2048
    assert count_params(graph).total == 671_026_404_352
    assert count_params(graph).total + counts.stored == 684_489_830_400
    matmuls = counts.active - 5 * 7168 - 1536 - 512 + 129280 * 7168  # norms count no FLOPs, the head does
    pair = 2 * 128 * (192 + 128)  # a token sees itself
    assert counts.forward_flops_per_token == 2 * matmuls + pair


class ModuleReference(nn.Module):
    """M_k of arXiv:2412.19437, section 2.2, of transformers' layers, in the order of the checkpoints' `eh_proj`."""

    def __init__(self, oracle: Oracle, seed: int) -> None:
        super().__init__()
        config = oracle.reference.config
        self.inner, self.config = oracle.reference.model, config
        self.head = oracle.reference.lm_head
        width = config.hidden_size
        self.enorm, self.hnorm, self.norm = (DeepseekV3RMSNorm(width, config.rms_norm_eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.layer = DeepseekV3DecoderLayer(config, config.num_hidden_layers - 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for part in (self.enorm, self.hnorm, self.norm, self.eh_proj, self.layer):
                for name, tensor in part.state_dict().items():
                    spread = torch.randn(tensor.shape, generator=generator)
                    is_norm = "norm" in name or (tensor.dim() == 1 and "bias" not in name)
                    tensor.copy_(1 + 0.1 * spread if is_norm else 0.2 * spread)

    def forward(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.enorm(self.inner.embed_tokens(ids)), self.hnorm(hidden)], dim=-1)
        x = self.eh_proj(x)
        positions = torch.arange(ids.shape[1])[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=positions
        )
        rotations = self.inner.rotary_emb(x, position_ids=positions)
        x = self.layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotations)
        return self.head(self.norm(x)), x


def test_modules_equal_the_published_formula_in_transformers_layers() -> None:
    """Both modules, chained: logits, the state for a further module, and gradients, in fp32 with the oracle's bound."""
    oracle = deepseek_v3()
    ours = Oracle(oracle.reference, copy.deepcopy(oracle.text) | {"mtp": MTP}, oracle.num_layers).ours()
    ids = torch.randint(0, oracle.reference.config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(3))
    hidden = hidden_states(ours, ids[:, :-2]).detach()
    expected_hidden = oracle.reference.model(ids[:, :-2]).last_hidden_state.detach()
    for depth, module in enumerate(build_mtp(ours, seed=None), start=1):
        reference = ModuleReference(oracle, seed=depth).eval()
        _copy(reference, module)
        next_ids = ids[:, depth : ids.shape[1] - 2 + depth]
        logits, hidden = module(hidden, next_ids)
        expected, expected_hidden = reference(expected_hidden, next_ids)
        assert (logits - expected).abs().max() <= oracle.bound * expected.abs().max()
        assert (hidden - expected_hidden).abs().max() <= oracle.bound * expected_hidden.abs().max()
        swapped = module(hidden.flip(1).detach(), next_ids)[0]
        assert (swapped - expected).abs().max() > 0.01 * expected.abs().max(), "the hidden state must matter"
        expected.square().mean().backward()
        logits.square().mean().backward()
        mine, theirs = module.layer("text.projection").get_parameter("proj.weight").grad, reference.eh_proj.weight.grad
        assert mine is not None
        assert theirs is not None
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()
        hidden, expected_hidden = hidden.detach(), expected_hidden.detach()


@torch.no_grad()
def _copy(reference: ModuleReference, module: MTPModule) -> None:
    """Every tensor of the reference to its place; every place is filled once."""
    names = {"enorm": "embedding_norm", "hnorm": "hidden_norm", "eh_proj": "projection.proj", "norm": "norm"}
    layer = [(f"model.layers.0.{name}", tensor) for name, tensor in reference.layer.state_dict().items()]
    tensors = {f"text.{ours}.weight": getattr(reference, theirs).weight for theirs, ours in names.items()}
    tensors |= dict(translated(layer))
    places = {
        f"{node.id}.{name}": tensor
        for node in module.graph.nodes
        if node.role not in ("embedding", "head")
        for name, tensor in module.layer(node.id).state_dict(keep_vars=True).items()
    }
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert places[name].shape == tensor.shape
        places[name].copy_(tensor)


def test_a_module_is_declared_as_built_and_shares_what_is_shared() -> None:
    model = build(graph_of(deepseek_v3().text | {"mtp": MTP}))
    graph, modules = mtp_graph(model.graph), build_mtp(model)
    counts = count_mtp(model.graph)
    assert graph is not None
    assert counts is not None
    assert sum(p.numel() for module in modules for p in module.parameters()) == counts.own == counts.stored
    assert modules[0].layer("text.head") is model.get_submodule("text.head")
    plain = build(graph_of(deepseek_v3().text))
    assert count_params(model.graph) == count_params(plain.graph)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_copies_are_weighed_and_shared_tables_are_not() -> None:
    shared = graph_of(deepseek_v3().text | {"mtp": MTP})
    copied = graph_of(deepseek_v3().text | {"mtp": MTP | {"embedding": "copy", "head": "copy"}})
    scheme = scheme_of(scheme_named("bf16"))
    assert mtp_weight_bytes(copied, scheme, Layout()) - mtp_weight_bytes(shared, scheme, Layout()) == 2 * 2 * 97 * 48
    counts = count_mtp(copied)
    assert counts is not None
    assert counts.copies == 2 * 2 * 97 * 48


@pytest.mark.parametrize(
    ("mtp", "message"),
    [
        ({"block": {"attention": "attention", "ffn": "nothing"}}, "no part is called 'nothing'"),
        ({"block": {"attention": "moe", "ffn": "moe"}}, "is no attention layer"),
        ({"block": {"attention": "attention", "ffn": "moe", "repeat": 2}}, "a module has one block, found 2"),
        ({"block": {"attention": "attention"}, "num_modules": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_a_module_is_refused(mtp: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_of(deepseek_v3().text | {"mtp": mtp})


def test_a_model_without_modules_has_none_to_build() -> None:
    model = build(graph_of(deepseek_v3().text))
    assert count_mtp(model.graph) is None
    with pytest.raises(UserError, match="declares no multi-token prediction"):
        build_mtp(model)


def test_a_miniature_keeps_its_module() -> None:
    tiny = scale_spec(l4spec.load("deepseek-v3"), "tiny", num_layers=1)
    model = build(l4spec.compile(tiny), dtype="fp32")
    ids = torch.arange(6)[None]
    logits, _ = build_mtp(model)[0](hidden_states(model, ids[:, :-1]), ids[:, 1:])
    assert logits.shape == (1, 5, tiny.text.vocab_size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["deepseek-v3.2", "kimi-k2", "glm-4.5"])
@pytest.mark.parametrize("count", [0, 1])
def test_an_imported_config_declares_its_modules_and_gives_them_back(name: str, count: int) -> None:
    config = export_config(l4spec.load(name)) | {"num_nextn_predict_layers": count}
    spec = import_config(config).spec
    graph = l4spec.compile(spec)
    counts = count_mtp(graph)
    assert (0 if counts is None else counts.num_modules) == count
    assert count_params(graph) == count_params(l4spec.compile(l4spec.load(name)))
    assert export_config(spec)["num_nextn_predict_layers"] == count


@pytest.mark.parametrize("name", ["deepseek-v3.2", "kimi-k2"])
def test_a_config_declares_modules_where_the_spec_does(name: str) -> None:
    spec = import_config(export_config(l4spec.load(name)) | {"num_nextn_predict_layers": 1}).spec
    assert import_config(export_config(spec.without_modules())).spec.text.mtp is None


@pytest.mark.parametrize("name", ["qwen3.5-27b", "qwen3.5-35b-a3b", "qwen3-next-80b-a3b"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_qwens_one_module_is_declared_with_the_models_tables(name: str, count: int) -> None:
    """Of more, all would share norms and projection, which ours do not: a note says that they are left out."""
    config = export_config(l4spec.load(name)) | {"mtp_num_hidden_layers": count}
    imported = import_config(config)
    counts = count_mtp(l4spec.compile(imported.spec))
    assert (counts is not None) is (count == 1)
    assert counts is None or counts.copies == 0
    assert any("modules of multi-token prediction" in note for note in imported.notes) is (count == 2)
    assert export_config(imported.spec)["mtp_num_hidden_layers"] == count


def test_modules_that_are_not_read_are_named_in_a_note() -> None:
    config = export_config(l4spec.load("minimax-m2.5")) | {"use_mtp": True, "num_mtp_modules": 3}
    expected = "left out: modules of multi-token prediction, with their weights (num_mtp_modules 3)"
    assert expected in import_config(config).notes
    plain = import_config(config | {"num_mtp_modules": 0})
    assert not any("multi-token" in note for note in plain.notes)


def test_a_family_without_words_for_modules_refuses_them() -> None:
    mtp = {"block": {"attention": "attention", "ffn": "moe"}}
    spec = l4spec.load({"l4spec": 1, "extends": "compare/olmoe-1b-7b", "name": "mine", "text": {"mtp": mtp}})
    spec = spec.model_copy(update={"huggingface": HuggingFaceSpec(model_type="olmoe")})
    with pytest.raises(SpecError, match=r"text\.mtp: expected False, found True"):
        export_config(spec)
    assert export_config(spec.without_modules())["model_type"] == "olmoe"


def test_show_has_what_modules_add() -> None:
    text = to_text(show_page(l4spec.compile(l4spec.load("deepseek-v3"))))
    assert "11.61B beside the model's, and 1.85B in copies of embedding and head" in text
    assert "Multi-token prediction" not in to_text(show_page(l4spec.compile(l4spec.load("scout"))))
