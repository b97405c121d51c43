"""Halting against its equations: outputs, gradients, statistics and what was really computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from halting_reference import reference
from pydantic import ValidationError
from tiny_models import KINDS, MOMHA, SIGMA_MOE, SWITCHHEAD, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.accounting import executed_macs, macs, parameters
from model.cache import KVCache
from model.errors import ModelError
from model.moeut import MoEUT
from model.skipping import Rows
from model.stick_breaking import StickBreakingState

DENSE = {"kind": "dense", "n_heads": 2, "d_head": 18}
STICK: dict[str, Any] = {"kind": "stick_breaking", "threshold": 0.8}
ACT: dict[str, Any] = {"kind": "act", "epsilon": 0.4}
HALTINGS = {"stick_breaking": STICK, "accumulated": ACT, "basic": {**ACT, "output": "basic"}}
FOUR = {"group": 2, "repeats": 4}


def halting_model(halting: dict[str, Any], seed: int = 1, **changes: Any) -> MoEUT:
    """Tokens halt at different passes, some never."""
    model = tiny_model(seed=seed, **{"depth": FOUR, "attention": DENSE, "halting": halting, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if halting["kind"] == "stick_breaking":
            model.halting.choice.weight.normal_(0.0, 3.0, generator=generator)
        else:
            model.halting.linear.bias.fill_(-0.5)
            model.halting.linear.weight.normal_(0.0, 0.6, generator=generator)
    return model


def certain(model: MoEUT, chance: float, monkeypatch: pytest.MonkeyPatch) -> MoEUT:
    """Every gate halts with probability 0 or 1."""
    logs = torch.tensor([1 - chance, chance], dtype=torch.float64).log()
    monkeypatch.setattr(model.halting, "forward", lambda x_ND: logs.expand(len(x_ND), 2).unbind(-1))
    return model


def reference_gradients(model: MoEUT, tokens_BT: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    expected = reference(model, tokens_BT)
    loss = torch.nn.functional.cross_entropy(expected.logits.flatten(0, 1), tokens_BT.roll(-1, 1).flatten())
    (loss + (expected.balance_B + expected.ponder_B).mean()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


CASES = [
    ("stick_breaking", {}),
    ("stick_breaking", {"norm": "post", "depth": {"group": 1, "repeats": 5}}),
    ("stick_breaking", {"norm": "post", "depth": {"group": 1, "repeats": 5}, "attention": MOMHA}),
    ("stick_breaking", {"attention": SWITCHHEAD}),
    ("stick_breaking", {"attention": {**SWITCHHEAD, "n_experts": 1}, "norm": "pre"}),
    ("accumulated", {}),
    ("accumulated", {"attention": SWITCHHEAD, "norm": "pre"}),
    ("basic", {"norm": "post", "depth": {"group": 1, "repeats": 5}}),
    ("stick_breaking", {"feed_forward": {**SIGMA_MOE, "balance": {"kind": "mim", "mim": "released", "scope": "sequence"}}}),
    ("stick_breaking", {"feed_forward": {**SIGMA_MOE, "balance": {"kind": "bias"}}}),
    ("accumulated", {"feed_forward": {**SIGMA_MOE, "balance": {"kind": "bias"}}}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_skipping_is_masking(name: str, changes: dict[str, Any]) -> None:
    """Logits, losses and all gradients are those of the form that computes everything; and tokens do halt at different passes."""
    model, tokens_BT = halting_model(HALTINGS[name], **changes), tiny_tokens(3, 9)
    expected, output = reference(model, tokens_BT), model(tokens_BT)
    assert relative(output.logits, expected.logits) <= 1e-12
    assert relative(output.ponder_B, expected.ponder_B) <= 1e-12
    torch.testing.assert_close(output.balance_B, expected.balance_B.expand(3), rtol=1e-12, atol=1e-14)
    counts = [int(active.sum()) for active in expected.active]
    assert counts[0] == 27 and len(set(counts)) > 2 and counts[-1] < 27
    assert [visit.queries for visit in output.computed] == [count for count in counts for _ in model.layers]
    difference, where = worst(gradients(model, tokens_BT), reference_gradients(model, tokens_BT))
    assert difference <= 1e-10, where


@pytest.mark.parametrize("name", list(HALTINGS))
def test_skipped_tokens_add_no_routes(name: str) -> None:
    model = halting_model(HALTINGS[name], attention=SWITCHHEAD)
    output = model(tiny_tokens(3, 9))
    for visit, load, record in zip(output.computed, output.loads, output.records, strict=True):
        assert load.sum() == visit.queries * SIGMA_MOE["top_k"]
        assert record["loads"]["attention.output"].sum() == visit.queries * 2 * 2
        assert record["loads"]["attention.value"].sum() == visit.keys * 2 * 2
    assert output.computed[-1].keys < 27


@pytest.mark.parametrize("attention", [DENSE, SWITCHHEAD])
@pytest.mark.parametrize("group", [1, 2])
def test_gates_that_never_halt_are_no_gates(group: int, attention: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"attention": attention, "depth": {"group": group, "repeats": 3}}
    model, plain = certain(halting_model(STICK, **changes), 0.0, monkeypatch), tiny_model(**changes)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("halting.")})
    output, expected = model(tiny_tokens()), plain(tiny_tokens())
    assert relative(output.logits, expected.logits) <= 1e-12
    assert relative(output.balance_B, expected.balance_B) <= 1e-12
    assert relative(output.ponder_B, torch.full((2,), 0.01 * 2)) <= 1e-6


@pytest.mark.parametrize("attention", [DENSE, SWITCHHEAD])
def test_gates_that_always_halt_leave_one_pass(attention: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is h_1, and the rest of the visits cost nothing but the first gate."""
    model = certain(halting_model(STICK, attention=attention), 1.0, monkeypatch)
    once = tiny_model(attention=attention, depth={"group": 2, "repeats": 1})
    once.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("halting.")})
    output, expected = model(tiny_tokens()), once(tiny_tokens())
    assert relative(output.logits, expected.logits) <= 1e-12
    assert relative(output.balance_B, expected.balance_B) <= 1e-12
    assert output.ponder_B.tolist() == [0.0, 0.0]
    assert all(load.sum() == 0 for load in output.loads[2:])
    executed, first = executed_macs(model.config, output.computed, 11, 2), macs(once.config, 11)
    assert executed.body == 2 * first.body + 22 * (36 * 36 + 2 * 36)


@pytest.mark.parametrize("kind", ["stick_breaking", "act"])
def test_weights_and_what_is_left_sum_to_one(kind: str) -> None:
    """Of states that are all ones the weighted sum is one."""
    model = halting_model(STICK if kind == "stick_breaking" else ACT)
    generator, x_BTD = torch.Generator().manual_seed(3), torch.ones(4, 13, 36, dtype=torch.float64)
    state = model.halting.begin(x_BTD, x_BTD[..., 0], repeats=model.config.depth.repeats, cached=False).state
    drawn = [torch.rand(4 * 13, generator=generator, dtype=torch.float64) for _ in range(4)]

    class Gate(torch.nn.Module):
        config = model.halting.config

        def forward(self, x_ND: Tensor) -> Any:
            p_N = drawn.pop()[: len(x_ND)]
            return ((1 - p_N).log(), p_N.log()) if kind == "stick_breaking" else p_N

    state.module = Gate()
    rows = Rows(torch.ones(4, 13, dtype=torch.bool))
    for _ in range(4):
        rows, _ = state.gate(x_BTD, rows)
        if isinstance(state, StickBreakingState):
            assert relative(state.source(x_BTD), x_BTD) <= 1e-15
    assert 0 < len(rows) < 52
    assert relative(state.leave(x_BTD)[0], x_BTD) <= 1e-15
    ponder_BT = state.leave(torch.zeros_like(x_BTD))[1] / 0.01
    assert (ponder_BT >= (0 if kind == "stick_breaking" else 1)).all() and (ponder_BT <= (3 if kind == "stick_breaking" else 5)).all()


def test_gates_start_at_one_half_and_learn_from_the_output() -> None:
    """Without a loss of its own the gate's last layer gets a gradient through what the head reads."""
    model = MoEUT(tiny_config(halting={"kind": "stick_breaking", "loss_weight": 0.0})).init_parameters(3).double()
    go_on_N, halt_N = model.halting(torch.randn(5, 36, dtype=torch.float64))
    assert torch.equal(go_on_N.exp(), torch.full((5,), 0.5).double()) and torch.equal(halt_N, go_on_N)
    assert (gradients(model, tiny_tokens())["halting.choice.weight"].abs().sum(1) > 0).all()


def test_act_starts_near_its_bias() -> None:
    model = MoEUT(tiny_config(halting={"kind": "act"})).init_parameters(3)
    assert model.halting.linear.bias.tolist() == [1.0]


@pytest.mark.parametrize("name", list(HALTINGS))
def test_a_later_token_changes_nothing_before_it(name: str) -> None:
    model, tokens_BT = halting_model(HALTINGS[name]), tiny_tokens(3, 9)
    other_BT = tokens_BT.clone()
    other_BT[:, 5:] = (other_BT[:, 5:] + 7) % 61
    assert relative(model(other_BT).logits[:, :5], model(tokens_BT).logits[:, :5]) <= 1e-12
    assert relative(model(tokens_BT[:, :5]).logits, model(tokens_BT).logits[:, :5]) <= 1e-12


@pytest.mark.parametrize("name", list(HALTINGS))
def test_sequences_do_not_feel_each_other(name: str) -> None:
    """Logits, both losses and what was computed of a batch are those of its sequences alone."""
    model, tokens_BT = halting_model(HALTINGS[name], attention=SWITCHHEAD), tiny_tokens(4, 9)
    together, alone = model(tokens_BT), [model(row_BT) for row_BT in tokens_BT.split(1)]
    for of in ("logits", "balance_B", "ponder_B"):
        assert relative(getattr(together, of), torch.cat([getattr(output, of) for output in alone])) <= 1e-12
    for visit, rows in zip(together.computed, zip(*(output.computed for output in alone), strict=True), strict=True):
        assert visit == tuple(map(sum, zip(*rows, strict=True)))


@pytest.mark.parametrize("attention", [SWITCHHEAD, MOMHA], ids=["switchhead", "momha"])
@pytest.mark.parametrize("name", list(HALTINGS))
def test_decoding_equals_the_full_forward(name: str, attention: dict[str, Any]) -> None:
    model, tokens_BT = halting_model(HALTINGS[name], attention=attention).eval(), tiny_tokens(2, 9)
    cache = KVCache(8)
    with torch.no_grad():
        parts = [model(part_BT, cache=cache).logits for part_BT in tokens_BT.split([4, 1, 1, 3], dim=1)]
        assert relative(torch.cat(parts, dim=1), model(tokens_BT).logits) <= 1e-12


@pytest.mark.parametrize("name", list(HALTINGS))
def test_documents_are_read_apart(name: str) -> None:
    model, tokens_BT = halting_model(HALTINGS[name]), tiny_tokens(2, 9)
    logits = model(tokens_BT, segments_BT=torch.tensor([[0] * 4 + [1] * 5] * 2)).logits
    apart = torch.cat([model(part_BT).logits for part_BT in tokens_BT.split([4, 5], dim=1)], dim=1)
    assert relative(logits, apart) <= 1e-12


@pytest.mark.parametrize("name", list(HALTINGS))
def test_recomputed_visits_change_nothing(name: str) -> None:
    tokens_BT, found = tiny_tokens(), []
    for recompute in ("none", "visit"):
        torch.manual_seed(11)
        found.append(gradients(halting_model(HALTINGS[name], recompute=recompute, dropout=0.3, attention=SWITCHHEAD), tokens_BT))
    difference, where = worst(found[1], found[0])
    assert difference <= 1e-12, where


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_was_executed_is_what_was_counted(kind: str) -> None:
    """To the unit where nobody halts; 0.999 is out of reach of two gates that start at one half."""
    changes = {key: value for key, value in KINDS[kind].items() if kind != "act" or key != "halting"}
    model = MoEUT(tiny_config(**changes)).init_parameters(1)
    executed, counted = executed_macs(model.config, model(tiny_tokens(3)).computed, 11, 3), macs(model.config, 11)
    for part in ("attention", "feed_forward", "residual", "head", "halting", "total"):
        assert getattr(executed, part) == 3 * getattr(counted, part), part


@pytest.mark.parametrize("name", list(HALTINGS))
def test_the_ledger_of_tokens_that_halt(name: str) -> None:
    """Hand counts of dense attention (4 d^2 a token, 2 d T a query) and three experts of width 16 among seven."""
    model = halting_model(HALTINGS[name])
    output = model(tiny_tokens(3, 9))
    executed = executed_macs(model.config, output.computed, 9, 3)
    queries, keys = (sum(getattr(visit, side) for visit in output.computed) for side in ("queries", "keys"))
    assert executed.attention == 2 * 36 * 36 * (queries + keys) + 2 * 36 * 9 * queries
    assert executed.feed_forward == queries * (2 * 36 * 48 + 36 * 7 + 48)
    gate = 36 * 36 + 72 if name == "stick_breaking" else 36
    assert executed.halting == gate * sum(visit.gates for visit in output.computed)
    assert executed.body < 3 * macs(model.config, 9).body


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": {"prelude": 1, "group": 1, "repeats": 2}}, "prelude 1 and coda 0; make both 0"),
        ({"depth": {"group": 2, "repeats": 2, "order": "loop"}}, "order cycle"),
        ({"depth": {"group": 2, "repeats": 1}}, r"depth.repeats >= 2 \(now 1\)"),
        ({"residual": {"kind": "altup"}}, "residual.kind must be single, not 'altup'"),
    ],
)
def test_what_cannot_halt(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        tiny_config(halting=STICK, **changes)


def test_the_official_library_does_not_halt() -> None:
    from model.convert import to_official_config

    with pytest.raises(ModelError, match=r"halting\.kind is 'act'; the official library has none only"):
        to_official_config(tiny_config(halting=ACT))


@pytest.mark.parametrize(("halting", "gates"), [(STICK, 4), (ACT, 5)])
def test_a_gate_is_stored_once_and_met_before_every_repeat_that_asks_it(halting: dict[str, Any], gates: int) -> None:
    with_gates, without = (parameters(tiny_config(depth={"group": 2, "repeats": 5}, halting=kind)) for kind in (halting, {"kind": "none"}))
    one = with_gates.stored - without.stored
    assert one == sum(parameter.numel() for parameter in halting_model(halting).halting.parameters())
    assert (with_gates.unrolled - without.unrolled, with_gates.active - without.active) == (gates * one, gates * one)
