"""modelagent: over-the-air model updates for Linux edge devices.

Packages are named by verb and stacked by knowledge; `docs/architecture.md` has the layers, and
import-linter holds them.
"""

__version__ = "0.1.0"
