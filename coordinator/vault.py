"""Arrays on disk by their digest: deltas of the open round, masters, and the memory of the server step."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fleet import durable
from fleet.errors import TamperedError
from fleet.signing import sha256


class Vault:
    """Write-once arrays. What was put is there after a power cut, and is what was put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, array: npt.NDArray[np.float32]) -> str:
        """Store a float32 array of one or two axes durably; its name is the digest of its bytes."""
        data = array.astype("<f4").tobytes()
        name = sha256(data)
        path = self._folder / name
        if not path.exists():
            durable.write(path, data)
        return name

    def get(self, name: str) -> npt.NDArray[np.float32]:
        """The stored values as one flat float32 vector.

        Raises:
            TamperedError: They are missing, or are not what was put.
        """
        try:
            data = (self._folder / name).read_bytes()
        except OSError as error:
            raise TamperedError(f"vault: {name[:12]} cannot be read: {error.strerror}") from error
        if sha256(data) != name:
            raise TamperedError(f"vault: {name[:12]} was altered")
        return np.frombuffer(data, "<f4").astype(np.float32)

    def clear(self) -> None:
        """Forget every array."""
        for path in self._folder.glob("*"):
            path.unlink()
