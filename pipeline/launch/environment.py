"""The environment of a step's program, which follows from its specification, whatever the caller's is."""

from __future__ import annotations

import os

from megatron_ext.specs import ModelStepSpec, StepSpec
from pipeline.launch.image import INSIDE
from pipeline.specs import JudgeSpec

# Variables that open accounts. Only a step that loads from the hub gets the hub's, and only the judge gets its own.
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# A variable with the names of further ones, separated by commas: an experiment chooses how its judge's key is called.
SECRET_NAMES = "UNLEARN_SECRETS"
# The results that a workflow works on, in the environment of the steps that it has started.
RUN = "UNLEARN_RUN"


def set_environment(spec: StepSpec) -> None:
    """Set what a step and its children run with, before numerical libraries are loaded."""
    threads = str(spec.threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}
    # Threads decide how sums are rounded: as many as specified, also on fewer cores.
    os.environ |= {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
    os.environ.pop("OMP_THREAD_LIMIT", None)
    # Threads that spin while they wait make a step three times slower as soon as the machine does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A tokenizer's own thread pool would come on top of these; hashing of strings decides no result.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(spec, ModelStepSpec) and spec.runtime.layout.tensor > 1:
        # megatron-core's order of kernels, in which communication starts before the product that hides it.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    fetches = spec.program.startswith("fetch")
    if not fetches:
        # Compute nodes have no internet: what a step needs has been fetched, or the step says at once that it lacks it.
        os.environ["HF_HUB_OFFLINE"] = "1"
    own = {spec.settings.api_key_env} if isinstance(spec, JudgeSpec) else set(SECRETS) if fetches else set()
    for name in {*SECRETS, *filter(None, os.environ.get(SECRET_NAMES, "").split(","))} - own:
        os.environ.pop(name, None)
        os.environ.pop(f"{INSIDE}{name}", None)
