"""A manifest's arithmetic, tied to the arrays of one worker: frames in, decisions out.

This file knows how a frame reaches a slot of the mailbox and how a decision is read from one. It does not know the
arithmetic itself (`prepare.py`, `readout.py`), nor where frames come from or where decisions go.

    decider = Decider(manifest)                      # ModelError when the manifest asks for something unknown
    binding = decider.bind(slot)                     # one slot of the mailbox
    binding.fill(frame.arrays)                       # FrameError: this frame does not fit this model
    ...
    binding.decide()                                 # Decision(prediction=7, label="7", confidence=0.98, detail=None)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelagent.inference.exchange import Array, Open, Slot
from modelagent.inference.prepare import FrameError, preparations
from modelagent.inference.readout import Decision, readout
from modelagent.manifest import Manifest

__all__ = ["Binding", "Decider", "Decision", "FrameError"]


class Decider:
    """The manifest's arithmetic.

    Raises:
        ModelError: `contract` when `preprocess` or `postprocess` is of no known kind or lacks a value.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.inputs = manifest.inputs
        self.steps = preparations(manifest.preprocess, manifest.inputs)
        self.read = readout(manifest)

    def bind(self, slot: Slot) -> "Binding":
        """Tie the arithmetic to one slot of the mailbox."""
        return Binding(self, slot)

    def prepare(self, index: int, array: Array) -> Array:
        """Input `index` as the model wants it, of batch 1.

        Args:
            index: which input.
            array: one sample, with or without the leading axis of 1.

        Raises:
            FrameError: `frame` for a wrong shape or dtype.
        """
        return self.steps[index].prepare(array)

    def decide(self, outputs: Sequence[Array], inputs: Sequence[Array] = ()) -> Decision:
        """The decision on one sample's outputs; `inputs` are what the model was given."""
        return self.read(outputs, inputs)


class Binding:
    """One slot's arrays: fills its inputs and reads its outputs."""

    __slots__ = ("_decider", "_inputs", "_open", "_outputs", "_plain", "_slot")

    def __init__(self, decider: Decider, slot: Slot) -> None:
        self._decider = decider
        self._slot: Slot | None = slot
        self._open = any(isinstance(item, Open) for item in (*slot.inputs, *slot.outputs))
        self._inputs: tuple[Any, ...] = slot.inputs
        self._outputs: tuple[Any, ...] = slot.outputs
        # The common case in one comparison and one copy: same shape, same dtype, nothing to compute.
        self._plain: tuple[tuple[Array, tuple[int, ...], np.dtype[Any]], ...] | None = None
        if not self._open and all(step.plain for step in decider.steps):
            arrays = [item for item in slot.inputs if not isinstance(item, Open)]
            views = [array[0] if array.shape[:1] == (1,) and array.ndim > 1 else array for array in arrays]
            self._plain = tuple((view, view.shape, view.dtype) for view in views)

    def fill(self, arrays: Sequence[Array]) -> None:
        """Write one frame into the model's inputs.

        Raises:
            FrameError: `frame`; some inputs may have been written.
        """
        if len(arrays) != len(self._inputs):
            raise FrameError(
                f"a frame of {len(arrays)} arrays, the model takes {len(self._inputs)} inputs; set the source to "
                "give them all",
                code="frame",
            )
        if self._plain is not None:
            for (view, shape, dtype), array in zip(self._plain, arrays, strict=True):
                if array.shape != shape or array.dtype != dtype:
                    break
                view[...] = array
            else:
                return
        for index, array in enumerate(arrays):
            target, step = self._inputs[index], self._decider.steps[index]
            if isinstance(target, Open):
                try:
                    target.write(step.prepare(array))
                except ValueError as error:
                    raise FrameError(f"input {index}: {error}; send smaller frames", code="frame") from error
            else:
                step.into(array, target)

    def decide(self) -> Decision:
        """The decision on what the outputs hold now.

        Raises:
            ValueError: an output of open size is impossible: the worker is not to be believed.
        """
        if self._open and self._slot is not None:
            return self._decider.read(self._slot.read_outputs(), self._slot.read_inputs())
        return self._decider.read(self._outputs, self._inputs)

    def release(self) -> None:
        """Let go of the arrays, so that their memory can be unmapped."""
        self._inputs = self._outputs = ()
        self._plain = self._slot = None
