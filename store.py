"""Files that are there whole or not at all, and results that a killed run finds again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = {"numbers": ".json", "tensors": ".safetensors"}
"""Of files, by what they hold."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new file beside `path` to write to, which takes its place at the end, at once.

    On an error `path` stays as it was. Raises OSError naming `path`.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises OSError naming `path`."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


class Store:
    """Results by name: in memory, and in a folder if there is one, each in a file of its own.

    key: of what the results are about; results under another key are not seen. A file that cannot be
    read is as good as none.
    """

    def __init__(self, folder: str | Path | None, key: str):
        """Raises OSError where the folder cannot be made."""
        self._held: dict[str, Any] = {}
        self.folder = None if folder is None else Path(folder) / key[:24]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str, kind: str) -> Path | None:
        if self.folder is None:
            return None
        shown, mark = re.sub(r"[^\w.-]", "_", name)[:80], hashlib.sha256(name.encode()).hexdigest()[:8]
        return self.folder / f"{shown}.{mark}{SUFFIX[kind]}"

    def numbers(self, name: str) -> Any:
        """What was kept under the name, or None."""
        path = self._path(name, "numbers")
        if name not in self._held and path is not None and path.is_file():
            with contextlib.suppress(OSError, ValueError):
                self._held[name] = json.loads(path.read_text(encoding="utf-8"))
        return self._held.get(name)

    def keep(self, name: str, numbers: Any) -> Any:
        """Keep what json can write."""
        path = self._path(name, "numbers")
        if path is not None:
            write(path, json.dumps(numbers))
        self._held[name] = numbers
        return numbers

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """The tensors kept under the name, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(name, "tensors")
        if name not in self._held and path is not None and path.is_file():
            with contextlib.suppress(OSError, ValueError, SafetensorError):
                self._held[name] = load_file(path)
        return self._held.get(name)

    def keep_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors by name."""
        from safetensors.torch import save_file

        held = {n: x.detach().cpu().clone().contiguous() for n, x in tensors.items()}
        path = self._path(name, "tensors")
        if path is not None:
            with replacing(path) as file:
                save_file(held, file)
        self._held[name] = held
