"""The whole model: shared layers, recomputation, micro-batches, empty batches, documents."""

from __future__ import annotations

import pytest
import torch
from tiny_models import KINDS, gradients, loss_of, relative, tiny_config, tiny_model, tiny_tokens, worst

from model import moeut
from model.cache import KVCache
from model.errors import ModelError
from model.moeut import MoEUT


def test_shared_layers_equal_an_unrolled_twin() -> None:
    """ABAB with two layers is a four-layer model with tied weights, and a shared gradient is the sum over the visits.

    Balance is off: the regulariser is taken once a distinct layer, so the twin has another one by definition.
    """
    silent = {
        "attention": {**tiny_config().attention.model_dump(), "balance_weight": 0.0},
        "feed_forward": {**tiny_config().feed_forward.model_dump(), "balance_weight": 0.0},
    }
    for order, visits in (("cycle", [0, 1, 0, 1]), ("loop", [0, 0, 1, 1])):
        shared = tiny_model(depth={"group": 2, "repeats": 2, "order": order}, **silent)
        twin = tiny_model(depth={"group": 4, "repeats": 1}, **silent)
        twin.load_state_dict(_outside(shared), strict=False)
        for place, layer in enumerate(visits):
            twin.layers[place].load_state_dict(shared.layers[layer].state_dict())
        tokens_BT = tiny_tokens()
        assert torch.equal(shared(tokens_BT).logits, twin(tokens_BT).logits)
        of_shared, of_twin = gradients(shared, tokens_BT), gradients(twin, tokens_BT)
        for name, gradient in of_shared.items():
            if name.startswith("layers."):
                _, layer, rest = name.split(".", 2)
                summed = sum(of_twin[f"layers.{place}.{rest}"] for place, of in enumerate(visits) if of == int(layer))
                assert relative(gradient, summed) <= 1e-12, name


def _outside(model: MoEUT) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("layers.")}


def test_logits_do_not_feel_the_scale_of_the_embedding() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.0
    before = model(tokens_BT).logits
    with torch.no_grad():
        model.embedding.weight.mul_(37.0)
    assert relative(model(tokens_BT).logits, before) <= 1e-12


@pytest.mark.parametrize("recompute", ["experts", "visit"])
@pytest.mark.parametrize(
    "kind", ["peri", "gated_expert", "post", "dense", "topk", "pkm", "pkm_halves", "pkm_dense", "peer", "per_visit", "dense_ends"]
)
def test_recomputation_changes_nothing(kind: str, recompute: str) -> None:
    tokens_BT = tiny_tokens()
    plain, again = tiny_model(**KINDS[kind]), tiny_model(recompute=recompute, **KINDS[kind])
    assert relative(again(tokens_BT).balance_loss, plain(tokens_BT).balance_loss) <= 1e-12
    difference, where = worst(gradients(again, tokens_BT), gradients(plain, tokens_BT))
    assert difference <= 1e-12, where


def test_recomputation_repeats_dropout_and_choices() -> None:
    """Expert dropout draws in the first pass only, residual dropout in both: the random states must not part."""
    changes = {"dropout": 0.3, "feed_forward": {**tiny_config().feed_forward.model_dump(), "expert_dropout": 0.4}}
    found = []
    for recompute in ("none", "visit"):
        torch.manual_seed(11)
        found.append(gradients(tiny_model(recompute=recompute, **changes), tiny_tokens()))
    difference, where = worst(found[1], found[0])
    assert difference <= 1e-12, where


def test_a_recomputed_visit_never_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(recompute="visit")
    loss = loss_of(model(tiny_tokens()), tiny_tokens())
    monkeypatch.setattr("kernels.router.select", lambda *_: pytest.fail("a choice was made in the backward"))
    loss.backward()


@pytest.mark.parametrize(("micro_batch", "kind"), [(1, "peri"), (2, "peri"), (4, "peri"), (2, "dense_ends")])
def test_micro_batches_of_one_global_batch(micro_batch: int, kind: str) -> None:
    """Losses normalised by the global batch give one gradient however it is cut."""
    model, tokens_BT = tiny_model(**KINDS[kind]), tiny_tokens(8)
    whole = gradients(model, tokens_BT)
    model.zero_grad()
    for part_BT in tokens_BT.split(micro_batch):
        (loss_of(model(part_BT), part_BT.roll(-1, 1)) * len(part_BT) / 8).backward()
    difference, where = worst({name: parameter.grad for name, parameter in model.named_parameters()}, whole)
    assert difference <= 1e-12, where


@pytest.mark.parametrize("recompute", ["none", "experts", "visit"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_empty_batch_gives_every_parameter_a_zero_gradient(kind: str, recompute: str) -> None:
    model = tiny_model(recompute=recompute, **KINDS[kind])
    output = model(tiny_tokens(0))
    assert output.logits.shape == (0, 11, 61) and output.balance_B.shape == (0,)
    assert output.balance_loss.item() == 0
    (output.logits.sum() + output.balance_loss).backward()
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in model.parameters())


def test_an_empty_batch_walks_the_same_graph() -> None:
    """The regulariser alone reaches every router, so ranks without tokens stay in step in its backward too."""
    model = tiny_model()
    model(tiny_tokens(0)).balance_loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(name in reached for name, _ in model.named_parameters() if "router" in name)


def test_records_are_filled_and_then_obeyed() -> None:
    model, other, tokens_BT = tiny_model(), tiny_model(seed=2), tiny_tokens()
    records: list[dict] = [{} for _ in range(6)]
    output = model(tokens_BT, records=records)
    assert output.records is records
    assert {name: choice.shape for name, choice in records[0].items() if isinstance(choice, torch.Tensor)} == {
        "attention.value": (22, 2, 2),
        "attention.output": (22, 2, 2),
        "feed_forward": (22, 3),
    }
    kept = [{name: choice.clone() for name, choice in record.items() if isinstance(choice, torch.Tensor)} for record in records]
    assert relative(model(tokens_BT, records=records).logits, output.logits) <= 1e-14
    free, bound = other(tokens_BT), other(tokens_BT, records=[dict(record) for record in kept])
    for record, chosen, own in zip(kept, bound.records, free.records, strict=True):
        assert all(torch.equal(chosen[name], choice) for name, choice in record.items())
        assert not torch.equal(own["feed_forward"].sort().values, record["feed_forward"].sort().values)
    assert relative(bound.logits, free.logits) > 1e-3


@pytest.mark.parametrize("kind", ["switch", "altup", "dense"])
def test_choices_and_statistics_need_no_head(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens_BT = tiny_model(**KINDS[kind]), tiny_tokens(2)
    whole = model(tokens_BT, targets_BT=tokens_BT)
    monkeypatch.setattr(moeut, "linear_cross_entropy", None)
    model.head.register_forward_pre_hook(lambda *_: pytest.fail("the head was read"))
    output = model(tokens_BT, targets_BT=tokens_BT, read_out=False)
    assert output.logits.shape == whole.logits.shape and output.logits.dtype == whole.logits.dtype
    assert output.cross_entropy == 0 and output.cross_entropy.dtype == whole.cross_entropy.dtype
    assert torch.equal(output.balance_B, whole.balance_B)
    assert output.step_sums.keys() == whole.step_sums.keys()
    assert all(torch.equal(sums, whole.step_sums[key]) for key, sums in output.step_sums.items())


def test_loads_count_the_routes_of_every_visit() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens()
    output = model(tokens_BT)
    assert len(output.loads) == 6
    for load_E, record in zip(output.loads, output.records, strict=True):
        assert load_E.dtype == torch.int64
        assert load_E.tolist() == record["feed_forward"].flatten().bincount(minlength=7).tolist()
        assert load_E.sum() == tokens_BT.numel() * 3
    assert tiny_model(**KINDS["dense"])(tokens_BT).loads == []


@pytest.mark.parametrize(("repeats", "numbers", "made"), [(None, [1, 3, 5], 2), (3, [1, 3, 5], 3), (1, [1, 3, 5], 1)])
def test_only_visits_with_routed_experts_have_loads(repeats: int | None, numbers: list[int], made: int) -> None:
    """Layers dense, (routed, PEER) x 2 of at most 3, top-K: visits 0, 1 2, 3 4, 5 6 and 7, of which 5 and 6 are not made."""
    model, tokens_BT = tiny_model(**KINDS["dense_ends_sampled"]), tiny_tokens()
    output = model(tokens_BT, repeats=repeats)
    assert model.config.routed_layers == [1] and model.config.routed_visits() == dict.fromkeys(numbers, 1)
    assert len(output.loads) == 3
    for load_E, number in zip(output.loads[:made], numbers, strict=False):
        assert load_E.tolist() == output.records[number]["feed_forward"].flatten().bincount(minlength=7).tolist()
    assert all(load_E.tolist() == [0] * 7 for load_E in output.loads[made:])


@pytest.mark.parametrize("kind", ["peri", "dense"])
def test_a_document_in_a_window_is_read_as_if_alone(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    tokens_BT = tiny_tokens(2, 12)
    segments_BT = torch.tensor([[0] * 5 + [1] * 7, [3] * 1 + [4] * 11])
    logits = model(tokens_BT, segments_BT=segments_BT).logits
    for row, cut in ((0, 5), (1, 1)):
        assert relative(logits[row, :cut], model(tokens_BT[row : row + 1, :cut]).logits[0]) <= 1e-12
        assert relative(logits[row, cut:], model(tokens_BT[row : row + 1, cut:]).logits[0]) <= 1e-12
    one = model(tokens_BT, segments_BT=torch.zeros_like(tokens_BT)).logits
    assert relative(one, model(tokens_BT).logits) <= 1e-12


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_token_sees_a_later_one(kind: str) -> None:
    model, tokens_BT = tiny_model(**KINDS[kind]), tiny_tokens(1, 10)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 6:] = (changed_BT[:, 6:] + 1) % 61
    for training in (False, True):
        model.train(training)
        difference = relative(model(changed_BT).logits[:, :6], model(tokens_BT).logits[:, :6])
        # As published, batch norm and an evened-out choice look at all tokens in training.
        assert difference <= 1e-13 or (training and kind in ("pkm_batch", "peer_batch", "s_base"))


def test_bfloat16_has_float32_routers_and_regulariser() -> None:
    output = tiny_model(torch.bfloat16)(tiny_tokens())
    assert output.logits.dtype == torch.bfloat16
    assert output.balance_B.dtype == output.balance_loss.dtype == torch.float32
    exact = tiny_model(torch.float32)
    exact.load_state_dict(tiny_model(torch.bfloat16).state_dict())
    assert relative(output.logits.float(), exact(tiny_tokens(), records=output.records).logits) <= 3e-2


def test_post_norm_starts_from_a_normalised_embedding() -> None:
    model, tokens_BT = tiny_model(norm="post"), tiny_tokens()
    x_BTD = model._embed(tokens_BT)
    assert torch.allclose(x_BTD.mean(-1), torch.zeros(2, 11, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(x_BTD.square().mean(-1), torch.ones(2, 11, dtype=torch.float64), atol=1e-4)


def test_faults_are_named() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens()
    with pytest.raises(ModelError, match="5 given, the model has 6 visits"):
        model(tokens_BT, records=[{}] * 5)
    with pytest.raises(ModelError, match=r"'feed_forward' has choices of shape \[4, 3\], this batch needs \[22, 3\]"):
        model(tokens_BT, records=[{"feed_forward": torch.zeros(4, 3, dtype=torch.int64)} for _ in range(6)])
    with pytest.raises(ModelError, match="cannot be used together"):
        model(tokens_BT, cache=KVCache(6), segments_BT=tokens_BT)
    with pytest.raises(ModelError, match="recompute is 'all'"):
        MoEUT(tiny_config(), recompute="all")
