"""Files from strangers: read only if they are regular files, within limits, and before anything is made of them.

A model directory may come from anywhere. Opening a pipe waits for ever, a device never ends, and a few bytes of JSON
can ask for more memory than a machine has; none of it may do more than end in one clear line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentiment.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

# Of a config, a manifest or an index; ours have a few kilobytes, an index of a thousand shards a hundred.
MAX_CONFIG_BYTES = 1 << 20
# Of a tokenizer, a vocabulary, figures or a card; the tokenizer of XLM-R has 17 MB, of XLM-V with a million words 55.
MAX_TEXT_BYTES = 64 << 20
# Of weights; DeBERTa-v2-xxlarge, the largest encoder of a kind that is read, has 6.3 GB in float32.
MAX_WEIGHTS_BYTES = 8 << 30
# Of a safetensors file's header: a tensor takes about 120 bytes in it.
_MAX_HEADER_BYTES = 4 << 20
# The functions by which torch.nn and transformers initialize weights.
_FILLERS = ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "mul_", "zero_", "fill_")


def size_of(path: Path, max_bytes: int) -> int:
    """Size of a file in bytes, once it is clear that it may be opened.

    Raises:
        BundleError: It is missing, no regular file (a pipe, a device, a directory), or larger than `max_bytes`.
    """
    try:
        exists, is_file = path.exists(), path.is_file()
        size = path.stat().st_size if is_file else 0
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise BundleError(f"{path} can't be read: {error}") from error
    if not exists:
        raise BundleError(f"{path} is missing: copy, save or train the model again")
    if not is_file:
        raise BundleError(f"{path} can't be read: it is no regular file but a folder, a pipe or a device")
    if size > max_bytes:
        raise BundleError(f"{path} can't be read: it has {size:,} bytes, more than the {max_bytes:,} that are accepted")
    return size


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read all of a file of at most `max_bytes`.

    Raises:
        BundleError: As `size_of`; or it can't be read.
    """
    size_of(path, max_bytes)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)  # A file of /proc has no size and yet no end.
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise BundleError(f"{path} can't be read: it has more than the {max_bytes:,} bytes that are accepted")
    return content


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that every parser reads alike: names that occur twice, of which some keep the first, are refused.

    Raises:
        ValueError: It is none, or nested too deeply; says why.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        return found

    try:
        return json.loads(content, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number format, such as F32, and shape of each tensor of a safetensors file, from its header alone.

    Raises:
        BundleError: As `size_of`; or it isn't safetensors: its header is damaged or doesn't agree with its size.
    """
    from safetensors import SafetensorError, safe_open

    size_of(path, MAX_WEIGHTS_BYTES)
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise BundleError(f"{path} can't be read: a head of {header_bytes:,} bytes isn't safetensors")
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            return {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} can't be read: {error}") from error


@contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made inside have shapes but no numbers: a config can ask for any size at no cost."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Uninitialized(TorchFunctionMode):
        # Filling what isn't there imports torch's compiler, 4 s.
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in _FILLERS and (args or kwargs):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), Uninitialized():
        yield


def check_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise BundleError for weights of `path` that are NaN or infinite: so would be whatever is computed from them."""
    for name, weight in weights.items():
        # Both ends are NaN if anything is; one pass, and no copy as isfinite makes.
        if weight.is_floating_point() and weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
            raise BundleError(f"{path}: {name} holds NaN or infinite numbers; train or copy the model again")
