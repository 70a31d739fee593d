"""After how many tokens an answer is cut: what was asked for, else what the model was trained for, else enough."""

from __future__ import annotations

from drivekd.evaluate.answering import Budgets
from drivekd.evaluate.answering.budgets import DEFAULT_TOKENS

KNOWN = {"planning": 40, "perception": 16}


def test_what_is_asked_for_comes_first() -> None:
    budgets = Budgets.chosen({"planning": 8}, KNOWN, "contract.json")
    assert [budgets.of(name) for name in ("planning", "perception")] == [8, 16]
    assert budgets.told() == "perception 16, planning 8 (max_new_tokens)"
    assert Budgets.chosen(7, KNOWN, "contract.json").told() == "7 (max_new_tokens)"


def test_then_what_the_model_was_trained_for() -> None:
    budgets = Budgets.chosen(None, KNOWN, "contract.json")
    assert budgets.told() == "perception 16, planning 40 (contract.json)"
    assert budgets.of("reasoning") == 40, "a capability that it does not know gets the longest"


def test_else_as_drivebench_decodes() -> None:
    assert Budgets.chosen(None, {}, "contract.json").of("planning") == DEFAULT_TOKENS == 512
    assert Budgets.chosen({"planning": 8}, {}, "contract.json").of("perception") == DEFAULT_TOKENS
