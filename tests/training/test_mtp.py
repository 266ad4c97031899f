"""Training of multi-token prediction: the published loss written out, laws of its weight, runs that stop and go on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, silu

from l4spec.errors import SpecError, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.with_modules import with_modules
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.runtime.build import build
from l4spec.runtime.checkpoints import open_mtp, save_checkpoint, spec_of
from l4spec.runtime.mtp import hidden_states
from l4spec.runtime.parallel.checkpoints import load_modules, load_sharded, save_sharded
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import MTPLoss
from l4spec.runtime.parallel.step import train_step
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import load_recipe
from l4spec.spec.recipe.mtp import MTPPhaseSpec
from l4spec.spec.resolve import resolve
from l4spec.training.parametrization import tensor_factors
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS, PhaseResult
from l4spec.training.recipe.worker import RESULT, results_of, work
from planners.counts.mtp import count_mtp
from tests.runtime.tiny import SWIGLU, VOCAB, Json, gqa, graph_of, moe, randomise, text_of, token_ids

BLOCK = {"attention": "attention", "ffn": "ffn"}
TEXT = text_of({"attention": gqa(), "ffn": SWIGLU}, [BLOCK | {"repeat": 2}], mtp={"num_modules": 2, "block": BLOCK})
DOCUMENTS = torch.tensor([[1] * 7 + [2] * 2 + [3] * 1 + [4] * 6, [1] * 4 + [2] * 12])
"""Sequences that share rows of 16 tokens: of one token and of two, too, which have no label at some depth."""
WEIGHT = 0.3


def made(text: Json, **options: Any) -> RankModel:
    """A model with its modules in fp64, everything random, in training."""
    model = distribute(build(with_modules(graph_of(text)), "meta", "fp64"), Layout(), train=True, **options)
    randomise(model)
    return model.train()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and the sequences that they belong to, each [2, 16]; some labels do not count."""
    ids = token_ids(2, 17)
    ends = torch.cat((DOCUMENTS, torch.full((2, 1), 9)), dim=1)
    labels = ids[:, 1:].masked_fill(ends[:, 1:] != ends[:, :-1], IGNORED)
    labels[1, 6] = IGNORED
    return ids[:, :-1], labels, DOCUMENTS


class Reference:
    """One sequence at a time, of the tensors alone (arXiv:2412.19437, section 2.2): no batch, no mask of documents."""

    def __init__(self, model: RankModel) -> None:
        self.weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def norm(self, place: str, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weights[f"{place}.weight"]

    def block(self, place: str, x: Tensor) -> Tensor:
        def by(name: str, y: Tensor) -> Tensor:
            return linear(y, self.weights[f"{place}.{name}.weight"])

        y = self.norm(f"{place}.attention_norm", x)
        q, k, v = (
            by(f"attention.{name}_proj", y).view(len(x), 4 if name == "q" else 2, 16).transpose(0, 1) for name in "qkv"
        )
        k, v = k.repeat_interleave(2, dim=0), v.repeat_interleave(2, dim=0)
        later = torch.ones(len(x), len(x)).triu(1).bool()
        scores = (q @ k.mT / 4).masked_fill(later, float("-inf")).softmax(-1)
        x = x + by("attention.o_proj", (scores @ v).transpose(0, 1).flatten(1))
        y = self.norm(f"{place}.ffn_norm", x)
        return x + by("ffn.down_proj", silu(by("ffn.gate_proj", y)) * by("ffn.up_proj", y))

    def logits(self, ids: Tensor) -> list[Tensor]:
        """Of the model and each module [tokens - depth, vocab]: a module of depth k runs where token i + k is known."""
        embedded = self.weights["text.embedding.weight"][ids]
        x = embedded
        for index in range(2):
            x = self.block(f"text.layers.{index}", x)
        hidden = self.norm("text.norm", x)
        result = [hidden]
        for depth in (1, 2):
            place = f"text.mtp.{depth - 1}"
            before = self.norm(f"{place}.hidden_norm", hidden[: max(len(ids) - depth, 0)])
            both = torch.cat((self.norm(f"{place}.embedding_norm", embedded[depth:]), before), dim=-1)
            hidden = self.block(place, linear(both, self.weights[f"{place}.projection.proj.weight"]))
            result.append(self.norm(f"{place}.norm", hidden))
        return [linear(x, self.weights["text.head.weight"]) for x in result]

    def losses(self, ids: Tensor, labels: Tensor, documents: Tensor) -> list[Tensor]:
        """The mean over the labels that count, of the model and each depth."""
        sums: list[list[Tensor]] = [[], [], []]
        for row in range(len(ids)):
            for document in set(documents[row].tolist()):
                own = documents[row] == document
                answers = labels[row][own]
                for depth, logits in enumerate(self.logits(ids[row][own])):
                    for place, scores in enumerate(logits):
                        if answers[place + depth] != IGNORED:
                            sums[depth].append(cross_entropy(scores, answers[place + depth]))
        return [torch.stack(terms).mean() for terms in sums]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_losses_and_gradients_are_those_of_the_formula(num_microbatches: int, checkpointing: Checkpointing) -> None:
    """In fp64: sums of some hundred terms differ in the last digits, far below 1e-10."""
    model = made(TEXT)
    model.checkpointing = checkpointing
    ids, labels, documents = batch()
    reference = Reference(model)
    main, *further = reference.losses(ids, labels, documents)
    total: Any = main + WEIGHT * torch.stack(further).mean()
    total.backward()
    mtp = MTPLoss(WEIGHT)
    loss = train_step(model, ids, labels, num_microbatches=num_microbatches, mtp=mtp, sequence_ids=documents)
    assert float(loss) == pytest.approx(main.item(), rel=1e-12)
    assert mtp.depths is not None
    assert mtp.depths.tolist() == pytest.approx([one.item() for one in further], rel=1e-12)
    for name, parameter in model.named_parameters():
        expected = reference.weights[name].grad
        assert expected is not None
        assert parameter.grad is not None
        assert (parameter.grad - expected).abs().max() <= 1e-10 * expected.abs().max(), name


def test_the_modules_train_the_models_own_tables() -> None:
    """Without the model's own labels all gradients come through modules; embedding and head have theirs."""
    model = made(TEXT)
    ids, labels, documents = batch()
    alone, both = ({name: p.grad.clone() for name, p in _stepped(model, w, ids, labels, documents)} for w in (0.0, 1.0))
    for name in ("text.embedding.weight", "text.head.weight", "text.layers.0.ffn.up_proj.weight"):
        assert (both[name] - alone[name]).abs().max() > 1e-3 * alone[name].abs().max()
    assert sum(p.numel() for n, p in model.named_parameters() if n.startswith("text.mtp")) == _own(model)


def _own(model: RankModel) -> int:
    counts = count_mtp(model.graph)
    assert counts is not None
    return counts.own


def _stepped(model: RankModel, weight: float, ids: Tensor, labels: Tensor, documents: Tensor) -> Any:
    train_step(model, ids, labels, num_microbatches=1, mtp=MTPLoss(weight), sequence_ids=documents)
    return model.named_parameters()


def test_balance_losses_of_a_module_have_its_weight() -> None:
    """Gradients are linear in the weight, those of a module's router included; without weight they are none."""
    mixture = moe(balance={"auxiliary_loss": 0.1, "z_loss": 0.1}, router={"score": "softmax", "scales": "output"})
    model = made(text_of({"attention": gqa(), "ffn": mixture}, [BLOCK], mtp={"num_modules": 1, "block": BLOCK}))
    given = batch()
    gradients = [{n: p.grad.clone() for n, p in _stepped(model, weight, *given)} for weight in (0.0, 1.0, 2.0)]
    router = "text.mtp.0.ffn.router.weight"
    assert router in gradients[0]
    assert not gradients[0][router].any()
    for name in gradients[0]:
        none, one, two = (each[name] for each in gradients)
        assert (two - none - 2 * (one - none)).abs().max() <= 1e-12 * (1 + two.abs().max()), name


def test_what_modules_cannot_be_trained_with_is_refused() -> None:
    ids, labels, _ = batch()
    plain = distribute(build(graph_of(TEXT), "meta", "fp64"), Layout(), train=True)
    with pytest.raises(ValueError, match="built without modules"):
        train_step(plain, ids, labels, mtp=MTPLoss(WEIGHT))
    with pytest.raises(ValueError, match="packed rows without images"):
        train_step(made(TEXT), ids, labels, mtp=MTPLoss(WEIGHT), attention_mask=torch.ones_like(ids))


def test_the_weight_changes_once() -> None:
    spec = MTPPhaseSpec(weight=0.3, final_weight=0.1, final_from=0.5)
    assert [spec.weight_at(step, 5) for step in range(5)] == [0.3, 0.3, 0.3, 0.1, 0.1]
    assert [MTPPhaseSpec(weight=0.3).weight_at(step, 2) for step in range(2)] == [0.3, 0.3]


def test_modules_grow_as_blocks_do() -> None:
    """muP (arXiv:2203.03466, table 8) for twice the width: hidden matrices 1 / sqrt(2) and 1 / 2; norms stay."""
    text = TEXT | {"parts": {"attention": gqa(num_heads=8, num_kv_heads=4), "ffn": SWIGLU | {"intermediate_size": 128}}}
    wide, base = (with_modules(graph_of(one)) for one in (text | {"hidden_size": 96}, TEXT))
    factors = tensor_factors(wide, base, "mup")
    for name in ("attention.q_proj.weight", "ffn.down_proj.weight", "projection.proj.weight"):
        assert factors[f"text.mtp.1.{name}"].rate == 0.5
        assert factors[f"text.mtp.1.{name}"].deviation == pytest.approx(0.5**0.5)
    assert factors["text.mtp.0.embedding_norm.weight"].rate == 1


RECIPE = """\
l4spec: 1
kind: recipe
name: further
model: tiny/deepseek
set:
  - "text.mtp={num_modules: 2, block: {attention: attention, ffn: moe}}"
  - "text.parts.moe.balance={bias_update: 0.01, auxiliary_loss: 0.01}"
data: {sources: {words: {kind: synthetic, task: stories}, sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 512, context: 32, batch: 4,
     optimizer: {learning_rate: 0.004, weight_decay: 0.1},
     mtp: {weight: 0.3, final_weight: 0.1, final_from: 0.5}}
  - {name: second, kind: sft, tokens: 256, context: 32, batch: 4, mixture: {sums: 1.0},
     optimizer: {learning_rate: 0.001}}
"""
MTP_FIELD = ",\n     mtp: {weight: 0.3, final_weight: 0.1, final_from: 0.5}"


class Kept:
    """A store of what ranks come to."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}

    def set(self, key: str, value: str, /) -> None:
        self.results[key] = value


def ran(path: Path, text: str, results: list[PhaseResult] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The rows of a run's metrics without times; `results` is given those of its phases."""
    path.with_suffix(".yaml").write_text(text)
    job = RecipeJob(str(path.with_suffix(".yaml")), Layout(), out=path, **options)
    job.check()
    kept = Kept()
    work(job, lambda line: None, kept)
    if results is not None:
        results += results_of([kept.results[RESULT]])
    rows = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def without(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what modules add to it."""
    kept = {key: value for key, value in row.items() if not key.startswith("mtp_")}
    return kept | {"routing": {n: load for n, load in row.get("routing", {}).items() if not n.startswith("text.mtp")}}


def test_modules_without_weight_leave_the_run_as_it_is(tmp_path: Path) -> None:
    """Every number of every step and evaluation, bit for bit; what is left out would change the fp32 sums."""
    assert MTP_FIELD in RECIPE
    plain = ran(tmp_path / "plain", RECIPE.replace(MTP_FIELD, ""))
    idle = ran(tmp_path / "idle", RECIPE.replace(MTP_FIELD, ", mtp: {weight: 0}"))
    assert [without(row) for row in idle] == [without(row) for row in plain]
    assert [row["mtp_weight"] for row in idle if "mtp_loss_2" in row] == [0.0] * 4
    weighted = ran(tmp_path / "weighted", RECIPE)
    assert weighted[0]["loss"] == plain[0]["loss"]
    assert weighted[-1]["held_out_loss"] != plain[-1]["held_out_loss"]


def test_a_run_that_was_stopped_goes_on_with_its_modules(tmp_path: Path) -> None:
    """In the phase that trains them, and in the one after it, which leaves them as they are."""
    whole = ran(tmp_path / "whole", RECIPE, save_every=1)
    assert [sorted(key for key in row if key.startswith("mtp")) for row in whole if "event" not in row] == [
        *[["mtp_loss_1", "mtp_loss_2", "mtp_weight"]] * 4,
        *[[]] * 2,
    ]
    for kept in (2, 5):
        parts = tmp_path / f"parts{kept}"
        parts.mkdir()
        for folder in (tmp_path / "whole").iterdir():
            if folder.name == METRICS:
                (parts / METRICS).write_text(folder.read_text())
            elif int(folder.name.rpartition("-")[2]) <= kept:
                (parts / folder.name).symlink_to(folder)
        assert ran(parts, RECIPE, resume=True, save_every=1) == whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last step of a run that trained modules."""
    path = tmp_path_factory.mktemp("trained") / "run"
    ran(path, RECIPE.partition("  - {name: second")[0])
    return path / "step-00000004"


def test_trained_modules_leave_the_run_as_those_that_draft(folder: Path, tmp_path: Path) -> None:
    """Losses by `MTPModule` are those of a training step with the same weights; files give the same modules again."""
    model = build(spec_of(folder), dtype="fp32")
    modules = load_modules(model, folder)
    rank = distribute(build(with_modules(model.graph), "meta", "fp32"), Layout(), train=True)
    load_sharded(rank, folder)
    ids = token_ids(2, 17, vocab=512)
    mtp = MTPLoss(0.0)
    train_step(rank, ids[:, :-1], ids[:, 1:], num_microbatches=1, mtp=mtp)
    assert mtp.depths is not None
    with torch.no_grad():
        hidden = hidden_states(model, ids[:, :-1])
        for depth, (module, expected) in enumerate(zip(modules, mtp.depths.tolist(), strict=True), start=1):
            logits, hidden = module(hidden[:, : 16 - depth], ids[:, depth:-1])
            loss = cross_entropy(logits.flatten(0, 1), ids[:, depth + 1 :].flatten())
            assert loss.item() == pytest.approx(expected, rel=1e-5)  # rounding of fp32 sums in another order
    save_checkpoint(model, tmp_path / "saved", modules=modules)
    for ours, theirs in zip(modules, open_mtp(model, tmp_path / "saved"), strict=True):
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_folders_with_and_without_modules(folder: Path, tmp_path: Path) -> None:
    """A model alone reads a folder that has modules; modules are missing in one that has none, and are not guessed."""
    plain = build(spec_of(folder), dtype="fp32", seed=None)
    load_sharded(plain, folder)
    assert torch.equal(plain.state_dict()["text.head.weight"], _head_of(folder))
    save_sharded(plain, tmp_path / "plain")
    with pytest.raises(UserError, match=r"model\.text\.mtp\.0\.attention\.\S+: is missing"):
        load_modules(plain, tmp_path / "plain")
    save_checkpoint(plain, tmp_path / "whole")
    with pytest.raises(UserError, match="are read from step folders of a run"):
        load_modules(plain, tmp_path / "whole")
    start = RECIPE.partition("  - {name: second")[0]
    ran(tmp_path / "continued", start, weights=folder)
    with pytest.raises(UserError, match="is missing"):
        ran(tmp_path / "begun", start, weights=tmp_path / "plain")


def _head_of(folder: Path) -> Tensor:
    model = build(with_modules(build_graph(resolve(spec_of(folder)))), dtype="fp32", seed=None)
    load_sharded(model, folder)
    head: Tensor = model.state_dict()["text.head.weight"]
    return head


def test_modules_are_trained_beside_a_frozen_model(tmp_path: Path) -> None:
    """`trainable` selects them by their names; every other tensor is bit for bit as it was."""
    text = RECIPE.replace("mtp: {weight", "trainable: [text.mtp],\n     mtp: {weight").partition("  - {name: second")[0]
    ran(tmp_path / "run", text, save_every=1)
    models, modules = [], []
    for step in (1, 4):
        model = build(spec_of(tmp_path / "run" / f"step-{step:08d}"), dtype="fp32", seed=None)
        modules.append(load_modules(model, tmp_path / "run" / f"step-{step:08d}"))
        models.append(model.state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
    for before, after in zip(*modules, strict=True):
        changed = [n for n, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[n])]
        assert len(changed) == len(before.state_dict())


@pytest.mark.parametrize(
    ("change", "layout", "options", "message"),
    [
        (("model: tiny/deepseek", "model: tiny/router-softmax"), Layout(), {}, "declares no modules of multi-token"),
        (("kind: pretrain", "kind: sft"), Layout(), {}, "mtp"),
        (("context: 32", "context: 2"), Layout(), {}, "a row of 2 tokens has no label for module 2"),
        (("weight: 0.3", "weight: -1"), Layout(), {}, "mtp.weight: expected at least 0"),
        ((", final_from: 0.5", ""), Layout(), {}, "mtp.final_weight: final_weight and final_from belong together"),
        (("mtp: {", "precision: fp8, mtp: {"), Layout(), {}, "not trained in fp8"),
        (("", ""), Layout(pp=2), {}, "not trained by pipeline stages"),
        (("", ""), Layout(tp=2), {"sequence_parallel": True}, "not trained with sequence parallelism"),
    ],
)
def test_phases_that_cannot_train_modules_are_refused(
    change: tuple[str, str], layout: Layout, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    text = RECIPE.replace(*change, 1)
    if "router-softmax" in text:
        text = "\n".join(line for line in text.splitlines() if not line.startswith(("set:", '  - "')))
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        RecipeJob(str(tmp_path / "recipe.yaml"), layout, **options).check()


def test_teachers_and_pictures_have_no_modules(tmp_path: Path) -> None:
    phase = (
        "{name: a, kind: pretrain, tokens: 1k, context: 8, batch: 1, optimizer: {learning_rate: 1}, mtp: {weight: 1}}"
    )
    teacher = f"teachers: {{big: {{model: tiny/scout, phases: [{phase}]}}}}\n"
    (tmp_path / "teacher.yaml").write_text(RECIPE + teacher)
    with pytest.raises(SpecError, match="a teacher's modules"):
        load_recipe(tmp_path / "teacher.yaml")
    seeing = RECIPE.replace("tiny/deepseek", "tiny/scout").replace("attention: attention,", "attention: local,")
    seeing = seeing.replace("task: stories", "task: pictures").replace("bias_update: 0.01, ", "")
    (tmp_path / "seeing.yaml").write_text(seeing)
    with pytest.raises(SpecError, match="text without pictures"):
        RecipeJob(str(tmp_path / "seeing.yaml"), Layout()).check()


def test_a_graph_with_modules_is_the_graph_of_the_model_where_none_is_declared() -> None:
    plain = graph_of(TEXT | {"mtp": None})
    assert with_modules(plain) is plain
    both = with_modules(graph_of(TEXT))
    assert with_modules(both) is both
    assert sum(node.module is not None for node in both.nodes) == 2 * 11
    assert both.model.text.head.vocab_size == VOCAB
    assert build_graph(resolve(both.model.spec)).nodes[-1].module is None
