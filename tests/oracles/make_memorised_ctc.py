"""Makes memorised_ctc/: a small Wav2Vec2 with a CTC head that knows the bundled English clips by heart.

    python tests/oracles/make_memorised_ctc.py --steps 500 --more-steps 100

Its attention stays at zero, so that it hears no further than a second around a frame, wherever that lies: what windows make of
a recording can be compared with one pass to the last digit. It is not trained by CTC, which takes long, but to say the
characters of a clip evenly spread over the sounds in it.
Made with torch 2.13.0 on a CPU in some minutes.
"""

import json
from typing import Any

import numpy as np
import torch
from memorised import CTC, RATE, Clip, Losses, Recording, Sentence, clips, learn, recordings
from torch import nn

from phonograph import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

BATCH = 4
STEP = 320
FIELD = 730


def processor() -> Wav2Vec2Processor:
    """Of the published base model's form, with its 32 tokens."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    CTC.mkdir(exist_ok=True)
    vocabulary = CTC / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}) + "\n")
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(vocabulary))


def model() -> Wav2Vec2ForCTC:
    """Small, of the family with layer norms."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=(64, 64, 64),
        conv_kernel=(20, 16, 8),
        conv_stride=(10, 8, 4),
        num_conv_pos_embeddings=96,
        num_conv_pos_embedding_groups=8,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        layerdrop=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        final_dropout=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    learner = Wav2Vec2ForCTC(config)
    for layer in learner.wav2vec2.encoder.layers:
        nn.init.zeros_(layer.attention.out_proj.weight)
        layer.attention.out_proj.weight.requires_grad = False
    return learner


def frame_labels(clip: Clip, tools: Wav2Vec2Processor) -> np.ndarray:
    """The token of each 20 ms of a clip: each character for most of its share of them, then the blank."""
    ids = tools.tokenizer(f"{clip.sentence.english.upper()}|").input_ids
    loudness = np.sqrt((clip.samples[: len(clip.samples) // STEP * STEP].reshape(-1, STEP) ** 2).mean(1))
    reached = np.cumsum(loudness > 0.02 * loudness.max())
    place = ((reached - 1).clip(0) * len(ids) // reached[-1]).astype(int)
    labels = np.array(ids)[place]
    labels[np.flatnonzero((place[1:] != place[:-1]) & (np.diff(place, prepend=-1)[:-1] == 0))] = tools.tokenizer.pad_token_id
    return labels


def targets(batch: list[Recording], frames: int, known: dict[Sentence, np.ndarray]) -> torch.Tensor:
    """(batch, frames): what each of the model's frames is to say; 0, the blank, outside of clips."""
    labels = torch.zeros(len(batch), frames, dtype=torch.long)
    centres = np.arange(frames) * STEP + FIELD // 2
    for row, recording in zip(labels, batch, strict=True):
        for clip, start in zip(recording.clips, recording.starts, strict=True):
            spoken = known[clip.sentence]
            place = (centres - start) // STEP
            inside = (place >= 0) & (place < len(spoken))
            row[torch.from_numpy(inside)] = torch.from_numpy(spoken[place[inside]])
    return labels


def main() -> None:
    """Train, print the loss, write the folder."""
    tools = processor()
    known = {clip.sentence: frame_labels(clip, tools) for clip in clips()}

    def losses(learner: Wav2Vec2ForCTC, most_clips: int, random: np.random.Generator) -> Losses:
        for batch in recordings(BATCH, most_clips, random):
            inputs = tools([recording.samples for recording in batch], sampling_rate=RATE, padding=True, return_tensors="pt")

            def loss(batch: list[Recording] = batch, inputs: Any = inputs) -> torch.Tensor:
                logits = learner(**inputs).logits
                return nn.functional.cross_entropy(logits.transpose(1, 2), targets(batch, logits.shape[1], known))

            yield loss

    learner = learn(model, lambda: Wav2Vec2ForCTC.from_pretrained(CTC, dtype="float32"), losses)
    learner.half().save_pretrained(CTC)
    tools.save_pretrained(CTC)


if __name__ == "__main__":
    main()
