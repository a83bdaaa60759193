"""The steps that change weights: prune, distil, train for int8. Each takes a network and gives another.

This file knows Keras. It does not know files, formats or figures.

    pruned = prune(network, train, sparsity=0.5, start=0.0, every=10, epochs=3, rate=1e-3, batch=32, seed=7)
    small = distil(teacher, student, train, temperature=4.0, alpha=0.1, ...)
    ready = qat(network, train, ...)            # a Keras 2 copy, wrapped by tfmot

Pruning is by magnitude, layer by layer, on a cubic schedule (Zhu and Gupta, "To prune, or not to prune", 2017). What it
costs depends on how slowly it goes: MobileNetV2 at 50 % lost 2.6 points in 4 epochs and 0.2 in 12.
Distillation adds the teacher's softened answers to the labels (Hinton, Vinyals and Dean, 2015). Zeros that a network
brings along stay zero through every later step. What a network is trained towards follows from its output and the
labels: classes, one probability, target numbers, or its own input (of ordinary samples alone: one that was taught to
give the strange ones back finds nothing strange).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from modelagent.build import toolbox
from modelagent.build.data import Samples
from modelagent.build.source import feed
from modelagent.errors import UsageError

Told = Callable[[str], None]  # hears what is going on, for the progress display
_SPARSE_ALREADY: Final = 0.05  # a kernel with more zeros than this share was pruned, and is kept so
_LAST_RATE: Final = 0.01  # of the first one
_RAMP: Final = 0.7  # share of the training in which sparsity rises; the rest recovers accuracy


def quiet(text: str) -> None:
    """For callers that want no progress."""
    del text


def prune(
    network: Any,
    train: Samples,
    *,
    sparsity: float,
    start: float,
    every: int,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    told: Told = quiet,
) -> Any:
    """A copy of the network in which `sparsity` of each large kernel is zero, fine-tuned meanwhile.

    Args:
        network: a Keras 3 model.
        train: to fine-tune on.
        sparsity: the share that ends as zero.
        start: the share that begins as zero.
        every: batches between two rises of the share.
        epochs: 0 prunes at once, without training.
        rate: learning rate of Adam at the start; it falls along a cosine.
        batch: samples a batch.
        seed: of shuffling and dropout.
        told: hears of each epoch.

    Raises:
        UsageError: `cannot-prune`: the network has no kernel to prune; `cannot-train`: output and labels do not fit.
    """
    toolbox.set_seed(seed)
    train = _taught(network, train)
    network = _copy(network)
    kernels = _kernels(network)
    if not kernels:
        raise UsageError(
            f"prune: {network.name} has no convolution or dense kernel that can be pruned; leave this step out",
            code="cannot-prune",
        )
    total = epochs * -(-len(train) // batch)
    ramp = max(1, int(total * _RAMP))
    masks = [np.ones(kernel.shape, np.float32) for kernel in kernels]

    def after_batch(step: int) -> None:
        if step <= ramp and (step % every == 0 or step == ramp):
            left = 1.0 - min(1.0, step / ramp)
            masks[:] = [_mask(kernel, sparsity + (start - sparsity) * left**3) for kernel in kernels]
        for kernel, mask in zip(kernels, masks, strict=True):
            kernel.assign(kernel.numpy() * mask)

    if total:
        _fit(
            network,
            train,
            epochs=epochs,
            # What is pruned last is repaired by small steps: at a constant rate the last batches undo each other.
            rate=toolbox.keras3().optimizers.schedules.CosineDecay(rate, total, alpha=_LAST_RATE),
            batch=batch,
            after_batch=after_batch,
            told=told,
            step="prune",
        )
    # Whatever the number of batches and the rhythm, the end is what was asked for.
    for kernel in kernels:
        kernel.assign(kernel.numpy() * _mask(kernel, sparsity))
    return network


def distil(
    teacher: Any,
    student: Any,
    train: Samples,
    *,
    temperature: float,
    alpha: float,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    told: Told = quiet,
) -> Any:
    """Train the student on labels (weight `alpha`) and on the teacher's softened answers (the rest).

    Args:
        teacher: any callable Keras model over the same inputs and classes.
        student: a Keras 3 model, trained or not; it is changed.
        train: inputs and labels; where these are no classes, the student learns a mix of them and the answers.
        temperature: by which both answers are softened.
        alpha: 1 is ordinary training.
        epochs: as for `prune`.
        rate: as for `prune`.
        batch: as for `prune`.
        seed: as for `prune`.
        told: as for `prune`.

    Raises:
        UsageError: `cannot-distil`: the two answer with different numbers of classes; `cannot-train`: output and labels
            do not fit.
    """
    toolbox.set_seed(seed)
    for one in (teacher, student):
        _one_output(one)
    train = _taught(student, train)
    tf = toolbox.tensorflow()
    ops = toolbox.keras3().ops
    said = np.asarray(teacher.predict(feed(teacher, train.inputs), batch_size=batch, verbose=0))
    classes = said.shape[-1]
    if tuple(student.output_shape[1:]) != said.shape[1:]:
        raise UsageError(
            f"distil: the teacher answers with {list(said.shape[1:])} numbers, the student with "
            f"{list(student.output_shape[1:])}; give a student with the same classes",
            code="cannot-distil",
        )
    towards = _towards(student, train, toolbox.keras3())
    if not towards.classes:
        # These losses are linear in what they aim at, so a mixed aim is a mixed loss; nothing is there to soften.
        mixed = alpha * towards.targets + (1.0 - alpha) * _probabilities(teacher, said, towards)
        _fit(student, train, towards=towards.instead(mixed), epochs=epochs, rate=rate, batch=batch, told=told,
             step="distil")  # fmt: skip
        return student
    wanted = _logits(teacher, said)
    soft = tf.nn.softmax(wanted / temperature).numpy()
    hard = np.eye(classes, dtype=np.float32)[train.labels]
    targets = np.concatenate([hard, soft.astype(np.float32)], axis=-1)
    gives_probabilities = is_probability(student)

    def loss(truth: Any, answer: Any) -> Any:
        logits = ops.log(ops.clip(answer, 1e-7, 1.0)) if gives_probabilities else answer
        labels, softened = truth[..., :classes], truth[..., classes:]
        by_label = -ops.sum(labels * ops.log_softmax(logits), axis=-1)
        # Times T squared, so that gradients keep their size as T grows (Hinton et al., section 2).
        by_teacher = -ops.sum(softened * ops.log_softmax(logits / temperature), axis=-1) * temperature**2
        return alpha * by_label + (1.0 - alpha) * by_teacher

    _fit(student, train, towards=_Towards(targets, loss, True), epochs=epochs, rate=rate, batch=batch, told=told,
         step="distil")  # fmt: skip
    return student


def qat(
    network: Any, train: Samples, *, epochs: int, rate: float, batch: int, seed: int, io: str = "", told: Told = quiet
) -> Any:
    """A Keras 2 copy of the network, trained with int8 rounding in every layer; what was zero stays zero.

    Args:
        network: a Keras 3 model of standard layers.
        train: to fine-tune on.
        epochs: as for `prune`.
        rate: as for `prune`.
        batch: as for `prune`.
        seed: as for `prune`.
        io: unused here; the conversion reads it.
        told: as for `prune`.

    Raises:
        UsageError: `cannot-qat`, with the tool's own words; `cannot-train`: output and labels do not fit.
    """
    del io
    mot = toolbox.tfmot()
    toolbox.set_seed(seed)
    train = _taught(network, train)
    try:
        ready = mot.quantization.keras.quantize_model(legacy_copy(network))
    except (RuntimeError, ValueError, TypeError) as error:
        said = str(error).strip().splitlines()
        raise UsageError(
            f"qat: tfmot cannot take {network.name}: {said[0] if said else type(error).__name__}; use int8 after "
            "training instead",
            code="cannot-qat",
        ) from error
    kept = []
    # The wrapper's `layer.kernel` is the rounded one; the variable behind it is among what is trained.
    for kernel in [item for item in ready.trainable_variables if _is_kernel(item)]:
        mask = (kernel.numpy() != 0).astype(np.float32)
        if mask.mean() < 1.0 - _SPARSE_ALREADY:
            kept.append((kernel, mask))

    def after_batch(_step: int) -> None:
        for kernel, mask in kept:
            kernel.assign(kernel.numpy() * mask)

    if epochs:
        _fit(
            ready,
            train,
            epochs=epochs,
            rate=rate,
            batch=batch,
            after_batch=after_batch if kept else None,
            told=told,
            step="qat",
            old=True,
        )
    return ready


def legacy_copy(network: Any) -> Any:
    """The same network in Keras 2, weights included.

    Raises:
        UsageError: `cannot-qat`: a layer that Keras 2 does not have or that takes other options.
    """
    old = toolbox.tf_keras()
    made: dict[str, Any] = {}

    def translate(layer: Any) -> Any:
        if layer.name not in made:
            made[layer.name] = _legacy_layer(old, layer)
        return made[layer.name]

    keras = toolbox.keras3()
    functional = network
    if isinstance(network, keras.Sequential):
        functional = keras.Model(network.inputs, network.outputs)
    if not hasattr(functional, "_run_through_graph"):
        raise UsageError(
            f"qat: {network.name} is a subclassed model, whose graph cannot be read; build it from layers, or use "
            "int8 after training",
            code="cannot-qat",
        )
    inputs = [old.Input(given.shape[1:], name=given.name.split(":")[0]) for given in functional.inputs]
    run = functional._run_through_graph  # noqa: SLF001 - what Keras's own clone_model calls; there is no public door
    copy = old.Model(inputs, run(inputs, operation_fn=translate))
    for layer in functional.layers:
        if layer.name in made and layer.weights:
            made[layer.name].set_weights(layer.get_weights())
    return copy


def _legacy_layer(old: Any, layer: Any) -> Any:
    kind = type(layer).__name__
    known = getattr(old.layers, kind, None)
    config = {
        name: value
        for name, value in layer.get_config().items()
        # Weights are copied and nothing is regularised anew; the rest is what Keras 3 added.
        if not name.endswith(("_initializer", "_regularizer", "_constraint"))
        and name not in {"dtype", "batch_shape", "sparse", "ragged", "optional", "synchronized", "seed", "autocast"}
        and name != "quantization_config"
    }
    try:
        if known is None:
            raise TypeError("Keras 2 has no such layer")
        return known(**config)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"qat: the layer {layer.name} ({kind}) cannot be written in Keras 2: {error}; use int8 after training",
            code="cannot-qat",
        ) from error


def is_probability(network: Any) -> bool:
    """Whether the network ends with a softmax; others are taken to answer with logits."""
    return _ends_with(network, "softmax")


def _ends_with(network: Any, activation: str) -> bool:
    layer = network.layers[-1]
    layer = getattr(layer, "layer", layer)  # the quantising wrapper of tfmot
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    config = str(layer.get_config().get("activation", "")) if hasattr(layer, "get_config") else ""
    return any(activation in text.lower() for text in (type(layer).__name__, name, config))


@dataclass(frozen=True)
class _Towards:
    """What a network is trained towards: one target a sample, the loss, and whether targets are classes."""

    targets: Any
    loss: Any
    classes: bool

    def instead(self, targets: Any) -> "_Towards":
        """The same loss towards other targets."""
        return replace(self, targets=targets)


def _towards(network: Any, train: Samples, keras: Any) -> _Towards:
    """Read off output and labels what is meant.

    Raises:
        UsageError: `cannot-train`.
    """
    inner = _one_output(network)
    labels = train.labels
    losses = keras.losses
    if labels.dtype.kind == "f":
        return _Towards(_shaped(labels, inner, network), losses.MeanSquaredError(), False)
    if _gives_back(inner, train):
        return _Towards(train.inputs[0], losses.MeanSquaredError(), False)
    if inner[-1] == 1 or inner == labels.shape[1:]:
        _counted(network, labels, 2)
        loss = losses.BinaryCrossentropy(from_logits=not _ends_with(network, "sigmoid"))
        return _Towards(_shaped(labels.astype(np.float32), inner, network), loss, False)
    _counted(network, labels, inner[-1])
    return _Towards(labels, losses.SparseCategoricalCrossentropy(from_logits=not is_probability(network)), True)


def _one_output(network: Any) -> tuple[int, ...]:
    """Its shape without the batch."""
    shape = network.output_shape
    if isinstance(shape, list | dict) or (shape and not isinstance(shape[-1], int)):
        raise UsageError(
            f"{network.name} has several outputs or outputs of open size, and what each is trained towards is not "
            "known; train it in an entry point, and leave this step out",
            code="cannot-train",
        )
    return tuple(shape[1:])


def _gives_back(inner: tuple[int, ...], train: Samples) -> bool:
    """Whether a network of this output is meant to give its input back, so that the distance tells what is strange."""
    marks = train.labels.ndim == 1 and train.labels.dtype.kind in "iu" and int(train.labels.max()) <= 1
    return marks and inner == train.inputs[0].shape[1:] and int(np.prod(inner)) > 2


def _taught(network: Any, train: Samples) -> Samples:
    """What it may learn from: all samples, or the ordinary ones (label 0) where it gives its input back."""
    if not _gives_back(_one_output(network), train):
        return train
    ordinary = np.flatnonzero(train.labels == 0).astype(np.int64)
    if not len(ordinary):
        raise UsageError(
            f"{network.name} gives its input back and would be trained on the {len(train)} samples of the training "
            "part, all labelled 1 (strange); label ordinary samples 0",
            code="cannot-train",
        )
    return train.take(ordinary)


def _counted(network: Any, labels: Any, classes: int) -> None:
    """Refuse labels that the output has no number for: the tools either crash on them or learn nonsense."""
    highest = int(labels.max())
    if highest >= classes:
        raise UsageError(
            f"{network.name} tells {classes} classes apart, and the labels go up to {highest}, counted from 0; give it "
            "an output for each class, or correct the labels",
            code="cannot-train",
        )


def _shaped(labels: Any, inner: tuple[int, ...], network: Any) -> Any:
    if labels[0].size != np.prod(inner, dtype=int):
        raise UsageError(
            f"{network.name} answers with {list(inner)} numbers, the labels hold {list(labels.shape[1:])} a sample; "
            "give it labels of its own shape",
            code="cannot-train",
        )
    return labels.reshape(len(labels), *inner)


def _probabilities(network: Any, answers: Any, towards: _Towards) -> Any:
    """A teacher's answers as the student's loss takes its targets."""
    if "crossentropy" in type(towards.loss).__name__.lower() and not _ends_with(network, "sigmoid"):
        return 1.0 / (1.0 + np.exp(-answers))
    return answers


def _fit(
    network: Any,
    train: Samples,
    *,
    towards: _Towards | None = None,
    epochs: int,
    rate: Any,  # a number or a schedule
    batch: int,
    after_batch: Callable[[int], None] | None = None,
    told: Told,
    step: str,
    old: bool = False,
) -> None:
    keras = toolbox.tf_keras() if old else toolbox.keras3()
    towards = towards or _towards(network, train, keras)
    network.compile(keras.optimizers.Adam(rate), towards.loss)

    base: Any = keras.callbacks.Callback

    class Watch(base):  # type: ignore[misc]  # Keras comes without types
        """Counts batches over all epochs."""

        done = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - Keras names them
            Watch.done += 1
            if after_batch is not None:
                after_batch(Watch.done)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            told(f"{step}: epoch {epoch + 1} of {epochs}, loss {float((logs or {}).get('loss', 0.0)):.3f}")

    network.fit(
        feed(network, train.inputs), towards.targets, batch_size=batch, epochs=epochs, verbose=0, callbacks=[Watch()]
    )


def _copy(network: Any) -> Any:
    copy = toolbox.keras3().models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


def _kernels(network: Any) -> list[Any]:
    """Kernels worth pruning: of convolutions and dense layers; a depthwise one is small and everything to its layer."""
    found = []
    for layer in _flat(network.layers):
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and "Depthwise" not in type(layer).__name__ and len(kernel.shape) >= 2:
            found.append(kernel)
    return found


def _is_kernel(variable: Any) -> bool:
    name = variable.name.split("/")[-1]
    return name.startswith("kernel") and len(variable.shape) >= 2


def _flat(layers: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for layer in layers:
        found += _flat(layer.layers) if hasattr(layer, "layers") else [layer]
    return found


def _mask(kernel: Any, sparsity: float) -> Any:
    sizes = np.abs(kernel.numpy())
    count = round(sparsity * sizes.size)
    mask = np.ones(sizes.size, np.float32)
    # By rank and not by threshold: equal weights would otherwise all go or all stay.
    mask[np.argsort(sizes, axis=None, kind="stable")[:count]] = 0.0
    return mask.reshape(sizes.shape)


def _logits(network: Any, answers: Any) -> Any:
    return np.log(np.clip(answers, 1e-7, 1.0)) if is_probability(network) else answers
