import torch
from transformers import CLIPTextConfig, CLIPTextModel

from instaflow_core.text import encode_prompts, load_tokenizer

# Token ids that CLIP's published vocabulary gives.
KNOWN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "a yellow star on a purple background": [49406, 320, 4481, 1565, 525, 320, 5496, 5994, 49407],
}


def test_the_tokenizer_is_stable_diffusions():
    tokenizer = load_tokenizer()
    assert len(tokenizer) == 49408
    for prompt, ids in KNOWN.items():
        padded = tokenizer(prompt, padding="max_length", max_length=77).input_ids
        assert padded == ids + [49407] * (77 - len(ids))


def test_words_outside_the_vocabulary_become_bytes():
    ids = load_tokenizer()("Ünïcode émojis 😀 & (weights:1.2), it's 1234 <tag>").input_ids
    assert ids[:12] == [49406, 6522, 77, 35689, 3217, 3459, 617, 23515, 7334, 261, 263, 21374]


def test_states_are_the_last_ones_after_the_final_norm():
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    encoder = CLIPTextModel(config).eval()
    states = encode_prompts(encoder, ["a photo of a cat", "word " * 200])
    assert states.shape == (2, 77, 32)
    assert states.requires_grad is False
    torch.testing.assert_close(states.mean(-1), torch.zeros(2, 77), atol=1e-5, rtol=0)
    torch.testing.assert_close(states.std(-1, unbiased=False), torch.ones(2, 77), atol=1e-2, rtol=0)
