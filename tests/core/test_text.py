"""The tokenizer and the text states, on this installation and on an older transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_packages import OLDEST_TRANSFORMERS, with_packages
from PIL import Image, ImageChops
from transformers import CLIPTextConfig, CLIPTextModel

from instaflow_core.text import TOKENIZER, encode_prompts, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]

# Token ids that CLIP's published vocabulary gives.
KNOWN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "a yellow star on a purple background": [49406, 320, 4481, 1565, 525, 320, 5496, 5994, 49407],
    "": [49406, 49407],
    "a  photo   of\xa0a\u2003cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "line\none\r\ntwo\u2028three": [49406, 1148, 637, 1237, 2097, 49407],
    "  leading and trailing  ": [49406, 3833, 537, 37427, 49407],
    "\U0001f600\U0001f603 \U0001f3f3\ufe0f\u200d\U0001f308": [49406, 12832, 8520, 32610, 49407],
    "一只猫": [49406, 19759, 222, 34517, 103, 163, 234, 360, 49407],
    "Привет, мир": [49406, 26302, 16370, 29503, 110, 22176, 141, 480, 267, 38018, 16701, 141, 478, 49407],
    "é vs é": [49406, 4166, 1547, 4166, 49407],
    "<|STARTOFTEXT|>": [49406, 27, 347, 993, 6659, 4160, 91, 285, 49407],
    "it's I'll can't 'S 'T": [49406, 585, 568, 328, 1342, 753, 713, 568, 713, 49407],
}
LONG = "word " * 200


def test_the_tokenizer_is_stable_diffusions() -> None:
    tokenizer = load_tokenizer()
    assert len(tokenizer) == 49408
    for prompt, ids in KNOWN.items():
        padded = tokenizer(prompt, padding="max_length", max_length=77).input_ids
        assert padded == ids + [49407] * (77 - len(ids))


def test_a_long_prompt_keeps_its_beginning_and_an_end_token() -> None:
    assert load_tokenizer()(LONG, truncation=True).input_ids == [49406, *[2653] * 75, 49407]


def test_words_outside_the_vocabulary_become_bytes() -> None:
    ids = load_tokenizer()("Ünïcode émojis 😀 & (weights:1.2), it's 1234 <tag>").input_ids
    assert ids[:12] == [49406, 6522, 77, 35689, 3217, 3459, 617, 23515, 7334, 261, 263, 21374]


def test_the_vocabulary_follows_from_its_merges() -> None:
    """The 256 bytes, printable ones first, the same ending a word, one token a merge, and the two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    lines = (TOKENIZER / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    words = [*characters, *(c + "</w>" for c in characters), *(line.replace(" ", "") for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == {word: i for i, word in enumerate(words)}


NEWEST_TRANSFORMERS_4 = ("transformers>=4.57,<5", "huggingface_hub<1", "tokenizers>=0.22,<=0.23.0")


@pytest.mark.slow
@pytest.mark.parametrize("transformers", [OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS_4], ids=["oldest", "newest 4"])
def test_transformers_4_gives_the_same_tokens_and_pictures(transformers: tuple[str, ...], tmp_path: Path) -> None:
    """Their hub client is too old for the newest diffusers."""
    environment = with_packages(tmp_path / "older", [*transformers, "diffusers<0.40"])
    texts = [*KNOWN, LONG]
    ask = (
        "import json, sys, transformers; from instaflow_core.text import load_tokenizer; "
        "ids = load_tokenizer()(json.load(sys.stdin), truncation=True).input_ids; "
        "print(json.dumps([transformers.__version__, ids]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", ask],
        input=json.dumps(texts),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    version, ids = json.loads(asked.stdout)
    assert version.startswith("4.") and ids == load_tokenizer()(texts, truncation=True).input_ids
    pictures = []
    for name, env in (("older", environment), ("here", dict(os.environ, OMP_NUM_THREADS="1"))):
        out = tmp_path / f"{name}.png"
        generate = ["generate", "--prompt", "a yellow star on a purple background", "--device", "cpu", "--out", out]
        subprocess.run([sys.executable, "-m", "instaflow_core", *generate], cwd=ROOT, env=env, check=True)
        pictures.append(Image.open(out))
    assert ImageChops.difference(*pictures).getbbox() is None


def test_states_are_the_last_ones_after_the_final_norm() -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    encoder = CLIPTextModel(config).eval()
    states = encode_prompts(encoder, ["a photo of a cat", LONG])
    assert states.shape == (2, 77, 32)
    assert states.requires_grad is False
    torch.testing.assert_close(states.mean(-1), torch.zeros(2, 77), atol=1e-5, rtol=0)
    torch.testing.assert_close(states.std(-1, unbiased=False), torch.ones(2, 77), atol=1e-2, rtol=0)
