#!/usr/bin/env python3
"""Makes the demo model's files in assets/tiny: config.json, vocab.txt and tokenizer.json.

    pip install tokenizers==0.22.2
    python scripts/make_sample_tokenizer.py

A cased WordPiece vocabulary is trained on the texts of assets/sample.csv; the tokenizer splits, normalizes and adds
[CLS] and [SEP] as the tokenizer of bert-base-multilingual-cased does. There are no weights: the demo starts from
random ones. The trainer breaks ties between equally frequent pieces in no fixed order, so a new run gives an equally
good vocabulary that differs in a few entries.
"""

import csv
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
MAX_VOCAB_SIZE = 700


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=MAX_VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def config(vocab_size):
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": vocab_size,
    }


def main():
    with open(ASSETS / "sample.csv", encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    tokenizer = train_tokenizer(texts)
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    assert vocab[:5] == SPECIAL_TOKENS

    folder = ASSETS / "tiny"
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config(len(vocab)), indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {len(vocab)} entries from {len(texts)} texts")


if __name__ == "__main__":
    main()
