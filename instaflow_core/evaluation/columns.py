"""Numbers of every picture in files, a batch each: what was computed once is not computed again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..atomic import replacing


class Columns:
    """Columns of numbers over `count` pictures, batch by batch: `folder`/NAME/000003.npy is batch 3 of NAME.

    Batches do not depend on how many processes share them out, and each file appears when it is whole: what a killed
    run has computed, and what other processes have, is read.
    """

    def __init__(self, folder: Path, count: int, batch_size: int) -> None:
        self.folder, self.count, self.batch_size = folder, count, batch_size

    def batches(self, part: int = 0, parts: int = 1) -> Iterator[tuple[int, range]]:
        """The batches of one of several processes: their numbers and the pictures in them."""
        for batch in range(part, -(-self.count // self.batch_size), parts):
            first = batch * self.batch_size
            yield batch, range(first, min(first + self.batch_size, self.count))

    def keep(self, name: str, batch: int, make: Callable[[], Tensor]) -> None:
        """Write one batch of a column, what `make` gives with a row for each picture, unless it is there."""
        path = self._path(name, batch)
        if not path.exists():
            values = make().detach().float().cpu().numpy()
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, values, allow_pickle=False)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A whole column, batch by batch, float32."""
        for batch, _ in self.batches():
            path = self._path(name, batch)
            if path.exists():  # a column of the first pictures alone has no more
                yield torch.from_numpy(np.load(path, allow_pickle=False))

    def read(self, name: str) -> Tensor:
        """A whole column, float32."""
        return torch.cat(list(self.blocks(name)))

    def _path(self, name: str, batch: int) -> Path:
        return self.folder / name / f"{batch:06d}.npy"
