"""Chains, plans, constraints and the rule: everything that is decided before and after the work."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.build import chains, choose, plans
from modelagent.build.choose import AgainstParent, Figures
from modelagent.build.plans import Constraints, Parent
from modelagent.errors import UsageError

# --- chains -----------------------------------------------------------------------------------------------------


def test_a_chain_has_its_defaults_and_ends_with_a_format() -> None:
    prune, int8 = chains.parse("prune:sparsity=0.8,epochs=2 + int8")
    assert prune.kind == "prune"
    assert (prune.options["sparsity"], prune.options["epochs"], prune.options["batch"]) == (0.8, 2, 32)
    assert (int8.kind, int8.options["io"]) == ("int8", "float32")
    assert [step.kind for step in chains.parse("")] == ["float32"]
    assert [step.kind for step in chains.parse("prune")] == ["prune", "float32"]
    assert [step.kind for step in chains.parse("qat:io=int8")] == ["qat", "int8"]
    assert chains.parse("qat:io=int8")[1].options["io"] == "int8"
    assert chains.parse("distil:student=a.b:c,alpha=0.5")[0].options["student"] == "a.b:c"
    assert [step.kind for step in chains.parse("near-parent")] == ["float32", "near-parent"]
    assert [step.kind for step in chains.parse("prune+qat+near-parent")] == ["prune", "qat", "int8", "near-parent"]
    assert [step.trains for step in chains.parse("prune+near-parent")] == [True, False, False]


@pytest.mark.parametrize(
    "text",
    ["", "int8", "prune:sparsity=0.8+float16", "distil:student=x.keras+prune+qat+int8", "int8+near-parent:keep=0.8"],
)
def test_a_chain_is_printed_as_it_could_be_typed(text: str) -> None:
    assert chains.parse(chains.show(chains.parse(text))) == chains.parse(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("shrink", "shrink"),
        ("int8+prune", "as the last step"),
        ("int8+float16", "one format"),
        ("qat+prune", "last step that trains"),
        ("qat+float16", "qat with int8"),
        ("prune+distil:student=x.keras", "distil first"),
        ("distil", "without a student"),
        ("prune:sparsity=1.5", "0.01 to 0.99"),
        ("prune:sparsity=much", "sparsity"),
        ("prune:speed=3", "sparsity"),
        ("prune:sparsity", "name=value"),
        ("int8:io=float64", "float32, int8, uint8"),
        ("float32:x=1", "no option"),
        ("near-parent+int8", "near-parent once, as the last step"),
        ("int8+near-parent+near-parent", "near-parent once"),
        ("int8+near-parent:evaluations=1", "4 to 1000"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        chains.parse(text)
    assert caught.value.code == "bad-chain"
    assert word in caught.value.message


# --- plans ------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"model": {"source": "net.keras"}, "data": {"source": "data.npz"}}


def test_a_plan_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "build.toml"
    file.write_text(
        '[model]\nname = "digits"\nsource = "net.keras"\nseed = 3\nshapes = [[1, 8, 8, 1]]\n'
        '[data]\nsource = "data.npz"\nshares = { canary = 0.5 }\n'
        '[variants]\nfloat32 = ""\nsmall = "prune+int8"\n'
        '[choose]\nmax_bytes = 20000\nprefer = "latency"\n'
        '[parent]\nfile = "old.tflite"\n[card]\nintended_use = "reads"\n'
    )
    plan = plans.read(file, seed=9, name=None)
    assert (plan.name, plan.seed, plan.shapes) == ("digits", 9, ((1, 8, 8, 1),))
    assert list(plan.all_variants()) == ["float32", "small"]
    assert plan.choose.max_bytes == 20000
    assert plan.parent.file == Path("old.tflite")
    assert plan.card == {"intended_use": "reads"}


def test_without_variants_every_format_is_built() -> None:
    assert list(plans.make(GOOD).all_variants()) == ["float32", "float16", "dynamic", "int8"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": {}}, "model.source"),
        ({"data": {}}, "data.source"),
        ({"modle": {}}, "modle"),
        ({"model": []}, "a table"),
        ({"model": {"source": "x", "seeds": 1}}, "model.seeds"),
        ({"model": {"source": "x", "seed": -1}}, "model.seed"),
        ({"model": {"source": 3}}, "a text"),
        ({"model": {"source": "x", "inputs": "scan"}}, "a list of texts"),
        ({"choose": {"prefer": "beauty"}}, "choose.prefer"),
        ({"choose": {"max_bytes": "few"}}, "choose.max_bytes"),
        ({"choose": {"max_size": 3}}, "choose.max_size"),
        ({"parent": {"file": 3}}, "parent.file"),
        ({"evaluate": {"threads": 0}}, "evaluate.threads"),
        ({"variants": {"Big One": ""}}, "variants.Big One"),
        ({"variants": {"float32": "int8"}}, "variants.float32"),
        ({"variants": {"x": 3}}, "variants.x"),
        ({"model": {"source": "x", "shapes": [1, 8]}}, "model.shapes"),
        ({"model": {"source": "x", "shapes": [[1, "8"]]}}, "model.shapes"),
        ({"data": {"source": "x", "shares": {"train": "most"}}}, "data.shares"),
        ({"data": {"source": "x", "shares": 0.5}}, "data.shares"),
        ({"choose": {"max_loss": float("nan")}}, "choose.max_loss"),
        ({"choose": {"confidence": 1.0}}, "choose.confidence"),
        ({"parent": {"max_size_ratio": float("inf")}}, "parent.max_size_ratio"),
    ],
)
def test_a_bad_plan_is_refused_by_key(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        plans.make({**GOOD, **change})
    assert caught.value.code == "plan"
    assert word in caught.value.message


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (None, "[model"):
        file = tmp_path / "build.toml"
        if content is not None:
            file.write_text(content)
        with pytest.raises(UsageError, match=r"build\.toml"):
            plans.read(file)


# --- choosing ---------------------------------------------------------------------------------------------------


def figures(name: str = "a", **changes: Any) -> Figures:
    values: dict[str, Any] = {
        "size": 1000,
        "compressed": 900,
        "size_ratio": 0.5,
        "value": 0.95,
        "loss": 0.01,
        "loss_bound": -0.03,
        "latency_ratio": 1.0,
        "memory_mb": 50.0,
    }
    return Figures(name=name, **{**values, **changes})


@pytest.mark.parametrize(
    ("wanted", "change", "word"),
    [
        ({"max_bytes": 999}, {}, "too big"),
        ({"max_size_ratio": 0.4}, {}, "too big"),
        ({"max_loss": 0.005}, {}, "not good enough"),
        ({"margin": 0.02}, {}, "not shown to be good enough"),
        ({"floor": 0.96}, {}, "not good enough"),
        ({"max_latency_ratio": 0.9}, {}, "too slow"),
        ({"max_memory_mb": 40}, {}, "too much memory"),
        ({}, {"unsupported": ("FlexErf",)}, "FlexErf"),
        ({}, {"idle": ("int8 did nothing",)}, "int8 did nothing"),
    ],
)
def test_each_constraint_refuses_with_its_reason(wanted: dict[str, Any], change: dict[str, Any], word: str) -> None:
    assert choose.refusals(figures(), Constraints()) == []
    (reason,) = choose.refusals(figures(**change), Constraints(**wanted))
    assert word in reason


def test_bigger_slower_or_worse_than_the_parent_is_refused() -> None:
    good = AgainstParent(size_ratio=0.9, latency_ratio=1.0, change=0.0, change_bound=-0.02, samples=400)
    assert choose.parent_refusals(good, Parent(), 0.95) == []
    bad = AgainstParent(size_ratio=1.1, latency_ratio=2.0, change=-0.04, change_bound=-0.07, samples=400)
    reasons = choose.parent_refusals(bad, Parent(), 0.95)
    assert [reason.split()[0] for reason in reasons] == ["bigger", "slower", "worse"]


def test_the_rule_prefers_and_breaks_ties() -> None:
    small = figures("small", compressed=500, value=0.93, latency_ratio=1.2)
    fast = figures("fast", compressed=700, value=0.94, latency_ratio=0.5)
    exact = figures("exact", compressed=900, value=0.97, latency_ratio=1.0)
    for prefer, best in (("size", small), ("latency", fast), ("metric", exact)):
        assert choose.best([exact, fast, small], prefer=prefer) is best
    # Half a per cent of time is noise: then size decides.
    nearly = figures("nearly", compressed=600, latency_ratio=0.503)
    assert choose.best([fast, nearly], prefer="latency") is nearly
    assert choose.best([], prefer="size") is None
    # What devices fetch that have the parent; where there is none, they fetch the file.
    near = figures("near", compressed=800, update=80)
    assert choose.best([near, figures("plain", compressed=500, update=300)], prefer="update") is near
    assert choose.best([exact, fast, small], prefer="update") is small


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_the_front_is_never_empty_and_never_beaten(points: list[tuple[int, int, int]]) -> None:
    found = [
        figures(str(index), compressed=size, value=right / 5, latency_ratio=time)
        for index, (size, right, time) in enumerate(points)
    ]
    front = choose.pareto(found)
    assert front
    for prefer in plans.PREFERENCES:
        best = choose.best(found, prefer=prefer)
        assert best is not None
        assert prefer == "latency" or best.name in front  # latency is ranked in steps
