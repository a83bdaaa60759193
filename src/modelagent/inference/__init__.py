"""Inference: frames in, decisions out, and a swap that loses no frame.

One process, of which each model has a serving thread (`loop.py`) and one worker child (`worker.py`) that
alone holds the interpreter. The package reads the store's links and writes health; it never writes the store
and never speaks to the repository.
"""
