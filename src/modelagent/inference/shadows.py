"""Which slot the shadow runs, and when its worker is loaded or dropped.

This file knows the link `shadow` and what it asks for. It does not know how frames are compared (`shadow.py`), nor
which slot serves.

    shadows = Shadows(options, loader, shadow)
    shadows.reconsider(links, running)     # after every change of either
"""

import contextlib
import logging
from typing import Final

from modelagent.errors import ModelError
from modelagent.inference.links import Links, open_slot
from modelagent.inference.options import ModelOptions
from modelagent.inference.shadow import Shadow
from modelagent.inference.workers import SHADOW, Load, Loader, Worker

_log = logging.getLogger(__name__)

_DEATHS: Final = 3  # per activation; a shadow that keeps dying is given up, which costs evidence only


class Shadows:
    """One model's. Everything is called from the main thread."""

    def __init__(self, options: ModelOptions, loader: Loader, shadow: Shadow) -> None:
        self._options = options
        self._loader = loader
        self._shadow = shadow
        self._load: Load | None = None
        self._deaths = 0

    def forgive(self) -> None:
        """Another activation: the shadow gets its chances again."""
        self._deaths = 0

    def died(self, worker: Worker) -> None:
        """The shadow's worker ended or hung."""
        if self._shadow.worker is worker:
            self._shadow.withdraw()
            self._deaths += 1

    def reconsider(self, links: Links, running: Worker | None) -> None:
        """Do what the links ask for, beside the worker that serves."""
        target, wish = links.current, links.shadow
        if wish is None or target is None or not self._options.shadow_share:
            self.drop()
            self._shadow.clear()
            return
        if running is None or running.digest == wish.digest:
            self.drop()
            self._shadow.disarm()
            return
        self._shadow.arm((target.link, wish.link), wish.digest, running.digest, target.link)
        worker = self._shadow.worker
        if (worker is not None and worker.digest != wish.digest) or (
            self._load is not None and self._load.slot.digest != wish.digest
        ):
            self.drop()
        if self._shadow.worker is None and self._load is None and self._deaths < _DEATHS:
            with contextlib.suppress(ModelError):  # looked at again in a second; costs evidence only
                slot = open_slot(self._options.model_dir, wish.digest)
                self._load = self._loader.request(slot, self._options, purpose=SHADOW, done=self._loaded)

    def drop(self) -> None:
        """End the shadow's worker, and the load of one."""
        if self._load is not None:
            self._loader.cancel(self._load)
            self._load = None
        self._shadow.withdraw()

    def _loaded(self, load: Load) -> None:
        self._load = None
        if load.worker is not None:
            self._shadow.give(load.worker)
        else:
            self._deaths += 1
            _log.warning("%s: no shadow: %s", self._options.name, load.reason)
