"""The environment of a step's program, which follows from its specification, whatever the caller's is."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from megatron_ext.specs import ModelStepSpec, StepSpec
from pipeline.launch import private_folder
from pipeline.launch.image import IMAGE, INSIDE
from pipeline.specs import JudgeSpec

# The results that a workflow works on, in the environment of the steps that it has started.
RUN = "UNLEARN_RUN"
# Settings of torch's allocator on GPUs, by its old and its new name.
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
# Variables that open accounts, by their names. Only a step that loads from the hub gets the hub's, and only the judge
# gets its own: a judge's key has a name of these forms (`pipeline.judging.settings`).
HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SECRET = re.compile(
    r"(?:.*_)?(?:(?:API|ACCESS|PRIVATE|SECRET)_?KEY(?:_ID)?|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)|JUDGE_.*"
)
IN_CONTAINERS = (INSIDE, "SINGULARITYENV_")  # begin the names of variables that containers see without it


def set_environment(spec: StepSpec) -> None:
    """Set what a step and its children run with, before numerical libraries are loaded."""
    set_numerical(spec.threads)
    if isinstance(spec, ModelStepSpec) and spec.runtime.layout.tensor > 1:
        # megatron-core's order of kernels, in which communication starts before the product that hides it.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    private_folder.set_folders(in_container=IMAGE in os.environ)
    if isinstance(spec, ModelStepSpec) and spec.runtime.device != "cpu" and not ALLOCATOR & os.environ.keys():
        # Batches have many lengths. An allocator of fixed segments would keep a set of blocks for each of them.
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    fetches = spec.program.startswith("fetch")
    if not fetches:
        stay_offline()
    own = (spec.settings.api_key_env,) if isinstance(spec, JudgeSpec) else HUB if fetches else ()
    for name in os.environ.keys() - without_secrets(own).keys():
        del os.environ[name]


def without_secrets(own: Collection[str | None] = ()) -> dict[str, str]:
    """This process's environment without what opens accounts, other than its ``own``."""
    kept = {}
    for name, value in os.environ.items():
        plain = name
        for beginning in IN_CONTAINERS:
            plain = plain.removeprefix(beginning)
        if plain in own or not SECRET.fullmatch(plain):
            kept[name] = value
    return kept


def set_numerical(threads: int) -> None:
    """Set what numerical libraries read when they are loaded."""
    count = str(threads)
    os.environ |= {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONHASHSEED": "0"}
    # Threads decide how sums are rounded: as many as specified, also on fewer cores.
    os.environ |= {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
    os.environ.pop("OMP_THREAD_LIMIT", None)
    # Threads that spin while they wait make a step three times slower as soon as the machine does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A tokenizer's own thread pool would come on top of these; hashing of strings decides no result.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def stay_offline() -> None:
    """Compute nodes have no internet: what a step needs has been fetched, or the step says at once that it lacks it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
