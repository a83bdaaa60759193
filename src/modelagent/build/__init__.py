"""The workshop: compresses, converts, measures and chooses, on the engineer's desk or in CI.

This package knows training tools (tensorflow, tfmot, litert-quantizer), which it imports only when a step needs one. It
knows neither keys nor repositories, and must never run on a device. `pipeline.build` is its one entry:

    plan = plans.read(Path("build.toml"))
    outcome = pipeline.build(plan, Path("out"), command="modelagent build build.toml")
    outcome.chosen                              # the variant that fits, or None with the reasons in outcome.refusals

Measuring runs each .tflite in a child process, on the device's own runtime; nothing here loads one.
"""
