"""What is said where a file, a folder or a state dict cannot be used."""

DOWNLOAD_AGAIN = "Download the file again and compare its size with the one on the page it came from."
WEIGHTS_EXPECTED = "a safetensors file (or an older PyTorch .bin / .ckpt that holds nothing but tensors)"


class FormatError(ValueError):
    """A file, a folder or a state dict that cannot be used here.

    The message says what was found, what was expected, and what to do next.
    """

    def __init__(self, found: str, expected: str, advice: str) -> None:
        super().__init__(f"{found}. Expected {expected}. {advice}")
