"""Make tests/oracles/memorised_whisper: a small Whisper, as CTranslate2 stores it, that knows the bundled English clips alone.

    python tests/oracles/make_memorised_whisper.py    # made with ctranslate2 4.8.5, faster-whisper 1.2.1, transformers 5.23.0

Its tokens are bytes, with the special ones of Whisper; its audio window is Whisper's 30 s.
"""

import argparse
import tempfile
from pathlib import Path

import ctranslate2
import memorised
import numpy as np
import torch
import transformers
from faster_whisper.audio import pad_or_trim
from faster_whisper.feature_extractor import FeatureExtractor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FOLDER = Path(__file__).parent / "memorised_whisper"
TIMES = [f"<|{place * 0.02:.2f}|>" for place in range(1501)]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
SPECIAL += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", *TIMES]


def tokenizer() -> Tokenizer:
    """Bytes, and letters with a space before them, as faster-whisper forbids the token of a space alone."""
    letters = [*"abcdefghijklmnopqrstuvwxyz-'"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{letter}" for letter in letters)]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, [("Ġ", letter) for letter in letters]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def fresh(tokens: Tokenizer) -> transformers.WhisperForConditionalGeneration:
    """A model of one encoder and one decoder layer."""
    end = tokens.token_to_id("<|endoftext|>")
    config = transformers.WhisperConfig(
        vocab_size=tokens.get_vocab_size(),
        num_mel_bins=80,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokens.token_to_id("<|startoftranscript|>"),
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.alignment_heads = [[0, 0]]
    model.generation_config.lang_to_id = {"<|en|>": tokens.token_to_id("<|en|>")}
    model.generation_config.no_timestamps_token_id = tokens.token_to_id("<|notimestamps|>")
    return model


def learn(model: transformers.WhisperForConditionalGeneration, tokens: Tokenizer, steps: int) -> None:
    """All clips at each step, each at a level of its own, a little later than it is, in a little noise."""
    extractor = FeatureExtractor()
    clips, random = memorised.clips(), np.random.default_rng(0)
    begin = [tokens.token_to_id(token) for token in ("<|startoftranscript|>", "<|notimestamps|>")]
    end = tokens.token_to_id("<|endoftext|>")
    texts = [[*begin, *tokens.encode(" " + clip.sentence.english).ids, end] for clip in clips]
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = pad([torch.tensor(text[:-1]) for text in texts], batch_first=True, padding_value=end)
    labels = pad([torch.tensor(text[1:]) for text in texts], batch_first=True, padding_value=-100)
    labels[:, 0] = -100  # the prompt
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(1, steps + 1):
        features = [pad_or_trim(extractor(changed(clip.samples, random))[:, :-1]) for clip in clips]
        logits = model(input_features=torch.from_numpy(np.stack(features)), decoder_input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(step, round(loss.item(), 4), flush=True)
    model.eval()


def changed(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    late = np.zeros(random.integers(0, memorised.RATE // 4), np.float32)
    noise = random.uniform(0, 0.003) * random.standard_normal(len(samples), dtype=np.float32)
    return np.concatenate([late, random.uniform(0.3, 1.5) * samples + noise]).astype(np.float32)


def save(model: transformers.WhisperForConditionalGeneration, tokens: Tokenizer) -> None:
    """By way of the hub's layout, which the converter reads."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
        tokens.save(f"{folder}/tokenizer.json")
        end = "<|endoftext|>"
        names = {"eos_token": end, "bos_token": end, "unk_token": end}
        transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", **names).save_pretrained(folder)
        converter = ctranslate2.converters.TransformersConverter(
            folder, copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(FOLDER), quantization="int8", force=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    torch.manual_seed(0)
    letters = tokenizer()
    whisper = fresh(letters)
    learn(whisper, letters, parser.parse_args().steps)
    save(whisper, letters)
