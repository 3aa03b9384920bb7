"""How a batch is shared out to processes and to the parts that one goes through in turn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of equal parts of a batch: what one process does of it at a time."""

    part: int = 0
    parts: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this part.

        Raises:
            ValueError: the batch cannot be shared out evenly.
        """
        size, rest = divmod(batch_size, self.parts)
        if rest:
            raise ValueError(
                f"A batch of {batch_size} cannot be shared out to {self.parts} parts (processes times accumulation). "
                f"Give a batch size that is a multiple of {self.parts}."
            )
        return slice(self.part * size, (self.part + 1) * size)
