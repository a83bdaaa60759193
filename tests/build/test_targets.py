"""What the training steps train towards: target numbers, one probability, a network's own input.

Each network is trained on a small synthetic task first; a step must keep what it learnt and never teach it something
else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from modelagent.build import toolbox, train
from modelagent.build.data import Samples
from modelagent.errors import UsageError

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]

RANDOM = np.random.RandomState(3)
INPUTS = RANDOM.randn(400, 12).astype(np.float32)
NUMBERS = (INPUTS @ RANDOM.randn(12, 2)).astype(np.float32)
MARKS = (NUMBERS[:, 0] > 0).astype(np.int64)
FIT: dict[str, Any] = {"epochs": 6, "rate": 5e-3, "batch": 32, "seed": 1}
STEPS = ("prune", "qat", "distil")


def dense(outputs: int, activation: str | None = None, *, hidden: int = 32, inputs: int = 12) -> Any:
    toolbox.set_seed(1)
    keras = toolbox.keras3()
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((inputs,)), layers.Dense(hidden, activation="relu"), layers.Dense(outputs, activation=activation)]
    )


def fitted(network: Any, loss: Any, truth: Any, inputs: Any = INPUTS, *, epochs: int = 30) -> Any:
    network.compile(toolbox.keras3().optimizers.Adam(5e-3), loss)
    network.fit(inputs, truth, epochs=epochs, batch_size=32, verbose=0)
    return network


def itself(network: Any) -> Any:
    return network


def run(step: str, network: Any, student: Callable[[], Any], samples: Samples) -> Any:
    if step == "prune":
        return train.prune(network, samples, sparsity=0.4, start=0.0, every=1, **FIT)
    if step == "qat":
        return train.qat(network, samples, **FIT)
    return train.distil(network, student(), samples, temperature=4.0, alpha=0.5, **{**FIT, "epochs": 25})


def answers(network: Any, inputs: Any = INPUTS) -> Any:
    return np.asarray(network.predict(inputs, verbose=0))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("width", [1, 2])
def test_target_numbers_stay_hit(step: str, width: int) -> None:
    truth = NUMBERS[:, :width]
    network = fitted(dense(width), "mse", truth)
    # One number a sample may come without an axis of its own.
    samples = Samples((INPUTS,), truth[:, 0] if width == 1 else truth, ())
    made = run(step, network, lambda: dense(width, hidden=12), samples)
    assert answers(made).shape == truth.shape
    assert np.abs(answers(made) - truth).mean() < 0.2 * np.abs(truth).mean()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("ends", "edge"), [("sigmoid", 0.5), (None, 0.0)])
def test_one_output_stays_a_probability_or_its_logit(step: str, ends: str | None, edge: float) -> None:
    loss = toolbox.keras3().losses.BinaryCrossentropy(from_logits=ends is None)
    network = fitted(dense(1, ends), loss, MARKS)
    made = run(step, network, lambda: dense(1, ends, hidden=8), Samples((INPUTS,), MARKS, ("0", "1")))
    found = answers(made).reshape(-1)
    assert ((found > edge) == MARKS).mean() > 0.95
    if ends is None:
        assert found.min() < -1.0  # no probability has been made of it
    else:
        assert 0.0 <= found.min() <= found.max() <= 1.0


@pytest.mark.parametrize(("teacher", "student", "edge"), [("sigmoid", None, 0.0), (None, "sigmoid", 0.5)])
def test_a_student_may_answer_in_logits_where_its_teacher_gives_probabilities(
    teacher: str | None, student: str | None, edge: float
) -> None:
    loss = toolbox.keras3().losses.BinaryCrossentropy(from_logits=teacher is None)
    network = fitted(dense(1, teacher), loss, MARKS)
    # The teacher alone is listened to, so a mistaken scale of its answers could not hide behind the labels.
    made = train.distil(
        network, dense(1, student, hidden=8), Samples((INPUTS,), MARKS, ("0", "1")), temperature=1.0, alpha=0.0,
        **{**FIT, "epochs": 25},
    )  # fmt: skip
    assert ((answers(made).reshape(-1) > edge) == MARKS).mean() > 0.95


@pytest.mark.parametrize("step", STEPS)
def test_what_gives_its_input_back_never_learns_the_strange_ones(step: str) -> None:
    plain = INPUTS * np.linspace(2.0, 0.1, 12, dtype=np.float32)
    strange = plain + 8.0 * MARKS[:, None].astype(np.float32)
    network = fitted(dense(12, hidden=8), "mse", plain, plain)
    made = run(step, network, lambda: dense(12, hidden=6), Samples((strange,), MARKS, ("0", "1")))
    distance = ((answers(made, strange) - strange) ** 2).mean(axis=1)
    assert distance[MARKS == 0].mean() < 1.0
    assert distance[MARKS == 1].mean() > 20.0


def test_pictures_are_given_back_too() -> None:
    keras = toolbox.keras3()
    toolbox.set_seed(1)
    layers = [keras.layers.Conv2D(4, 3, padding="same", activation="relu"), keras.layers.Conv2D(1, 3, padding="same")]
    network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    pictures = RANDOM.rand(64, 8, 8, 1).astype(np.float32)
    made = train.prune(
        network, Samples((pictures,), np.zeros(64, np.int64), ("0", "1")), sparsity=0.3, start=0.0, every=1, **FIT
    )
    assert ((answers(made, pictures) - pictures) ** 2).mean() < ((answers(network, pictures) - pictures) ** 2).mean()


def test_labels_that_an_output_has_no_number_for_are_refused() -> None:
    two, one = dense(2, "softmax"), dense(1, "sigmoid")
    beyond = Samples((INPUTS,), MARKS * 2, ("0", "1", "2"))
    for step in STEPS:
        for network in (two, one):
            with pytest.raises(UsageError, match="go up to 2") as caught:
                run(step, network, partial(itself, network), beyond)
            assert caught.value.code == "cannot-train"
    with pytest.raises(UsageError, match="labels hold"):
        run("prune", two, lambda: two, Samples((INPUTS,), NUMBERS[:, 0], ()))
    with pytest.raises(UsageError, match="all labelled 1"):
        run("prune", dense(12), lambda: two, Samples((INPUTS,), np.ones(400, np.int64), ("0", "1")))
    keras = toolbox.keras3()
    given = keras.Input((12,))
    several = keras.Model(given, [keras.layers.Dense(2)(given), keras.layers.Dense(3)(given)])
    for step in STEPS:
        with pytest.raises(UsageError, match="several outputs"):
            run(step, several, lambda: several, Samples((INPUTS,), MARKS, ("0", "1")))
