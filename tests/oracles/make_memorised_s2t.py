"""Makes memorised_s2t/: a small Speech2Text that knows the bundled English clips by heart, in English and in German.

    python tests/oracles/make_memorised_s2t.py --steps 1500 --more-steps 1400

It has the form of the published multilingual checkpoints: sentencepiece pieces, and a language's token that comes first. Made
with torch 2.13.0 and sentencepiece 0.2.1 on a CPU in some minutes.
"""

import io
import json

import numpy as np
import sentencepiece
import torch
from memorised import RATE, S2T, SENTENCES, Losses, Recording, learn, recordings
from torch import Tensor

from phonograph import (
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)

LANGUAGES = {"en": lambda sentence: sentence.english, "de": lambda sentence: sentence.german}
BATCH = 8


def processor() -> Speech2TextProcessor:
    """Of the published form, with a vocabulary of the sentences alone."""
    S2T.mkdir(exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for sentence in SENTENCES.values() for text in sentence),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    written = [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    tokens = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *written, *(f"<lang:{language}>" for language in LANGUAGES)])
    (S2T / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False))
    (S2T / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    tokenizer = Speech2TextTokenizer(S2T / "vocab.json", S2T / "sentencepiece.bpe.model", lang_codes=list(LANGUAGES))
    return Speech2TextProcessor(Speech2TextFeatureExtractor(), tokenizer)


def model(vocab_size: int) -> Speech2TextForConditionalGeneration:
    """Small, with the generation settings of the published ones."""
    torch.manual_seed(0)
    config = Speech2TextConfig(
        vocab_size=vocab_size,
        d_model=96,
        encoder_layers=2,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_ffn_dim=256,
        decoder_attention_heads=4,
        conv_channels=128,
        dropout=0.05,
        max_target_positions=256,
    )
    learner = Speech2TextForConditionalGeneration(config)
    settings = {"num_beams": 5, "max_length": 200, "early_stopping": True}
    vars(learner.generation_config).update(settings)
    return learner


def labels_of(batch: list[Recording], tools: Speech2TextProcessor, random: np.random.Generator) -> Tensor:
    """(batch, time), each in a language by chance."""
    rows = []
    for recording in batch:
        tools.tokenizer.tgt_lang = language = str(random.choice(list(LANGUAGES)))
        rows.append(
            torch.tensor(tools.tokenizer(" ".join(LANGUAGES[language](clip.sentence) for clip in recording.clips)).input_ids)
        )
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def main() -> None:
    """Train, print the loss, write the folder."""
    tools = processor()

    def losses(learner: Speech2TextForConditionalGeneration, most_clips: int, random: np.random.Generator) -> Losses:
        for batch in recordings(BATCH, most_clips, random):
            inputs = tools([recording.samples for recording in batch], sampling_rate=RATE, padding=True, return_tensors="pt")
            labels = labels_of(batch, tools, random)
            yield lambda inputs=inputs, labels=labels: learner(**inputs, labels=labels, label_smoothing=0.05).loss

    stored = Speech2TextForConditionalGeneration.from_pretrained
    learner = learn(lambda: model(len(tools.tokenizer)), lambda: stored(S2T, dtype="float32"), losses)
    tools.tokenizer.tgt_lang = "en"
    learner.half().save_pretrained(S2T)
    tools.save_pretrained(S2T)


if __name__ == "__main__":
    main()
