"""Whether a folder is a whole Hugging Face checkpoint, as far as its files tell without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.model_files import INDEX, MOST_BYTES, check_folder, read_object, weight_map
from megatron_ext.checkpoint.tokenizer_files import VOCABULARY_FILES
from pipeline.hub import local_files
from pipeline.hub.tied_weights import INPUT, OUTPUT, own_output

SINGLE = "model.safetensors"  # read where it is there, whatever an index says, as transformers does
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
OTHERS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
FLOATS = ("F64", "F32", "F16", "BF16")
POINTER = b"version https://git-lfs"  # what git leaves in place of a large file that it has not loaded
SHOWN = 3
UNQUANTISED = "they cannot be trained on; take the model's unquantised checkpoint"

Tensors = dict[str, dict[str, Any]]


class Incomplete(ValueError):
    """What keeps a folder from being a checkpoint; the message follows the folder's name in a sentence."""


def fault(folder: Path) -> str | None:
    """What keeps ``folder`` from being a Hugging Face checkpoint with its tokenizer, or ``None``."""
    try:
        if not folder.is_dir():
            raise Incomplete("is not a folder")
        _described(folder)
        _tied(folder, weights(folder))
        _tokenizer(folder)
    except Incomplete as error:
        return str(error)
    return None


def fault_of_description(folder: Path) -> str | None:
    """As ``fault``, of a folder that has all files but the weights."""
    try:
        _described(folder)
        _tokenizer(folder)
    except Incomplete as error:
        return str(error)
    return None


def weights(folder: Path) -> Tensors:
    """Type and shape of every tensor, as the headers of a folder's weight files say them.

    Raises:
        Incomplete: A file is missing, was cut short, or holds quantised weights.
    """
    named = {} if (folder / SINGLE).is_file() else _index(folder)
    files = sorted(set(named.values())) or [SINGLE] * (folder / SINGLE).is_file()
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        raise Incomplete(f"lacks {', '.join(lacking)}, which {INDEX} names")
    if not files:
        others = sorted(file.name for pattern in OTHERS for file in folder.glob(pattern))
        other = f"; {others[0]} is not read: convert it to safetensors" if others else ""
        parts = [file.name for file in local_files.model_files(folder) if file.suffix == ".safetensors"]
        if parts:
            raise Incomplete(f"has {_some(parts)}, but neither {SINGLE} nor {INDEX}")
        raise Incomplete(f"has no *.safetensors file{other}")
    found: Tensors = {}
    for name in files:
        tensors = header(folder / name)
        absent = [tensor for tensor, file in named.items() if file == name and tensor not in tensors]
        if absent:
            raise Incomplete(f"lacks the tensor {absent[0]!r} in {name}, where {INDEX} says that it is")
        found |= tensors
    other_types = {name: entry["dtype"] for name, entry in found.items() if entry["dtype"] not in FLOATS}
    matrices = [f"{name} ({kind})" for name, kind in other_types.items() if name.endswith(("weight", "weight_packed"))]
    if matrices:
        raise Incomplete(f"holds quantised weights, {_some(matrices)}: {UNQUANTISED}")
    return found


def header(file: Path) -> Tensors:
    """Type, shape and place of every tensor of a safetensors file.

    Raises:
        Incomplete: The file is not whole, or none.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(POINTER))
        if start == POINTER:
            raise Incomplete(f"has a pointer in place of {file.name}: load it with 'git lfs pull'")
        length = int.from_bytes(start[:8], "little")
        stream.seek(8)
        text = stream.read(length) if length <= min(size - 8, MOST_BYTES) else b""
    try:
        found = json.loads(text)
        found.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in found.values() if entry["dtype"] and entry["shape"] is not None]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Incomplete(f"has a {file.name} that is no safetensors file, or not all of one ({size} bytes)") from None
    if size != whole:
        raise Incomplete(f"has not all of {file.name}: it has {size} bytes, and its header speaks of {whole}")
    return found


def _index(folder: Path) -> Mapping[str, str]:
    """Which file holds each tensor; nothing where a folder has no index."""
    if not (folder / INDEX).is_file():
        return {}
    try:
        weight_map(folder)
    except FileNotFoundError:  # what an index names and is not there is said by its caller
        pass
    except (OSError, ValueError) as error:
        raise Incomplete(f"cannot be taken: {error}") from None
    return dict(read_object(folder / INDEX)["weight_map"])


def _described(folder: Path) -> None:
    """Refuse what is no model that can be trained on, by its config, and what leads out of the folder."""
    try:
        check_folder(folder)
    except (OSError, ValueError) as error:
        raise Incomplete(f"cannot be taken: {error}") from None
    adapter = [name for name in ADAPTER if (folder / name).is_file()]
    if adapter:
        raise Incomplete(
            f"is a LoRA adapter ({adapter[0]}), not a model: name its base model and this folder as its 'adapter', or "
            "the folder that 'unlearn merge' makes of both"
        )
    if not (folder / "config.json").is_file():
        raise Incomplete("has no config.json")
    config = local_files.architecture(folder)
    if config is None:
        raise Incomplete("has a config.json that is not a JSON object")
    _one_kind(config)
    _ends(folder)
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise Incomplete(f"holds quantised weights (quantization_config: {method}): {UNQUANTISED}")


def _ends(folder: Path) -> None:
    """Refuse end tokens that are no numbers of tokens, in the config or in that of generation."""
    for name in ("config.json", "generation_config.json"):
        try:
            stated = read_object(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        except (OSError, ValueError) as error:
            raise Incomplete(f"cannot be taken: {error}") from None
        numbers = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if any(type(number) is not int or not 0 <= number < 2**32 for number in numbers):
            allowed = "the number of a token, or a list of them"
            raise Incomplete(f"has a {name} with eos_token_id {stated!r:.60}; allowed: {allowed}")


def _one_kind(config: Mapping[str, Any]) -> None:
    """Refuse a config whose ``model_type``, which transformers goes by, contradicts ``architectures``."""
    kind, names = config.get("model_type", ""), config.get("architectures")
    if kind == "" and "model_type" not in config:
        return
    named = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    head = named.removesuffix("ForCausalLM").lower()
    if isinstance(kind, str) and (head == named.lower() or kind.replace("_", "").removesuffix("text") == head):
        return
    raise Incomplete(f"has a config.json with model_type {kind!r:.60}, which is not that of {named or names!r:.60}")


def _tied(folder: Path, found: Tensors) -> None:
    """Refuse an output layer that the config says is the embedding, and that is another."""
    if OUTPUT not in found or INPUT not in found:
        return
    files = {folder / name for name in ([SINGLE] if (folder / SINGLE).is_file() else _index(folder).values())}
    if own_output(local_files.architecture(folder) or {}, {file: header(file) for file in sorted(files)}):
        raise Incomplete(
            f"says in config.json that {OUTPUT!r} is {INPUT!r} (tie_word_embeddings), and holds another one: set "
            f"tie_word_embeddings to false to use it, or remove {OUTPUT!r} from the weights"
        )


def _tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise Incomplete(f"has no tokenizer file: none of {', '.join(VOCABULARY_FILES)}")
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                start = stream.read(len(POINTER))
            if start == POINTER:
                raise Incomplete(f"has a pointer in place of {name}: load it with 'git lfs pull'")
            if not start.lstrip().startswith(b"{"):
                raise Incomplete(f"has a {name} that is not a JSON object")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
