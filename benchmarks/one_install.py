"""One device takes one release: check, fetch, verify, stage. Prints the seconds that took, the start-up not counted.

python -m benchmarks.one_install http://127.0.0.1:8000/ STATE_DIR
"""

import sys
import time
from pathlib import Path

from modelagent.sources.http import HttpSource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.slots import SlotStore


def main() -> None:
    """See the head of the file."""
    before, url, state = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    root = (state.parent / "keys" / "root.json").read_bytes()
    for part in ("models", "incoming"):
        (state / part).mkdir()
    Acquirer(state, HttpSource(before), root, time.time).check("digits", "stable")
    acquirer = Acquirer(state, HttpSource(url), root, time.time)
    store = SlotStore(state, "digits")
    begun = time.monotonic()
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None, "the channel names nothing"  # noqa: S101 - a figure of nothing is none
    acquirer.acquire(offer)
    store.stage(offer.digest, state / "incoming", None)
    print(time.monotonic() - begun)


if __name__ == "__main__":
    main()
