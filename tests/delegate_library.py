"""A real external delegate's library, compiled for the test: the runtime opens it, asks it, and it takes no operator.

    library = build_delegate(tmp_path)        # skips the test by name where there is no C compiler

What it leaves alone runs on the processor, so every model answers as it does without it.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

# The layout of TfLiteDelegate in tensorflow/lite/core/c/common.h, and the two names that an external delegate exports
# (tensorflow/lite/delegates/external/external_delegate_interface.h).
_SOURCE: Final = """
#include <stddef.h>
#include <stdint.h>

struct delegate {
    void *data;
    int (*prepare)(void *context, struct delegate *self);
    void *from_buffer, *to_buffer, *free_buffer;
    int64_t flags;
    void *builder;
};

static int prepare(void *context, struct delegate *self) { (void)context; (void)self; return 0; }
static struct delegate only = {NULL, prepare, NULL, NULL, NULL, 0, NULL};

struct delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *))
{
    (void)keys; (void)values; (void)count; (void)report;
    return &only;
}

void tflite_plugin_destroy_delegate(struct delegate *self) { (void)self; }
"""


def build_delegate(directory: Path) -> Path:
    """The library's path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a delegate's library with")
    source, library = directory / "delegate.c", directory / "libnpu.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return library
