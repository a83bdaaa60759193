"""Updates of digits networks that were really trained on: what `near-parent` saves, and what it keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.build import data, pipeline, plans, source
from modelagent.build.near_parent import rounded
from modelagent.build.pairing import Family
from modelagent.build.pipeline import Outcome
from modelagent.publish import deltas

# Tensorflow and its relatives warn of each other's deprecations at every turn.
pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]
SHARES = {"train": 0.5, "validation": 0.3, "canary": 0.2}
FORMATS = {"float32": "", "int8": "int8", "pruned": "prune:epochs=3+int8"}


def build(out: Path, network: str, variants: dict[str, str], parent: Path | None = None) -> Outcome:
    beside = {"margin": 0.1, "max_latency_ratio": 20, "max_size_ratio": 1.1}
    document: dict[str, Any] = {
        "model": {"name": "digits", "source": network, "seed": 5},
        "data": {"source": "small_networks:samples", "shares": SHARES},
        "variants": variants,
        "evaluate": {"rounds": 3},
        "choose": {"max_loss": 0.03, "prefer": "update"},
        "parent": beside if parent is None else {**beside, "file": str(parent)},
    }
    return pipeline.build(plans.make(document), out, delta_size=deltas.size)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return build(tmp_path_factory.mktemp("published"), "small_networks:published", FORMATS)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The network after more training, as a file: trained once for all formats."""
    parts = data.split(data.read("small_networks:samples", "accuracy"), seed=5, shares=SHARES)
    made = source.call("small_networks:retrained", parts.train, seed=5)
    file = tmp_path_factory.mktemp("retrained") / "retrained.keras"
    made.save(file)
    return str(file)


@pytest.mark.parametrize(("chain", "most"), [("", 0.4), ("int8", 0.6), ("prune:epochs=3+int8", 0.8)])
def test_a_retrained_network_becomes_a_small_update(
    published: Outcome, retrained: str, tmp_path: Path, chain: str, most: float
) -> None:
    parent = next(item.file for item in published.variants.values() if FORMATS.get(item.name) == chain)
    assert parent is not None
    variants = {"plain": chain or "float32", "near": f"{chain or 'float32'}+near-parent"}
    made = build(tmp_path / "out", retrained, variants, parent)
    plain, near = made.variants["plain"], made.variants["near"]
    assert near.failure == ""
    assert near.near is not None
    assert near.file is not None
    assert plain.file is not None
    assert plain.delta is not None
    assert near.delta is not None
    assert near.plain_delta == plain.delta
    assert near.delta < most * plain.delta
    assert near.figures is not None
    assert near.near.loss_bound > -0.03  # what was asked of it, against the plain file
    family = Family(parent.read_bytes(), plain.file.read_bytes())
    result = Family(parent.read_bytes(), near.file.read_bytes())
    for pair, found, step in zip(family.pairs, result.pairs, near.near.steps, strict=True):
        assert np.array_equal(found.new, rounded(pair, step, zeros="prune" in chain))
    if "prune" in chain:
        assert near.inside is not None
        assert plain.inside is not None
        assert near.inside.zeros > 0.9 * plain.inside.zeros
    if chain == "int8":
        again = build(tmp_path / "out", retrained, variants, parent).variants["near"]
        assert (again.digest, again.reproduced) == (near.digest, "the same bytes as the build before")
