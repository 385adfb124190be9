"""Writes tests/fixtures/sklearn_split.json and tests/fixtures/wordpiece/ (scikit-learn 1.x, transformers 4.x)."""

import json
from pathlib import Path

from sklearn.model_selection import train_test_split
from transformers import BertTokenizer

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


def split(n, test_size, seed):
    train, test = train_test_split(range(n), test_size=test_size, random_state=seed)
    return {
        "n": n, "test_size": test_size, "seed": seed, "n_train": len(train), "n_test": len(test),
        "train_head": train[:20], "test_head": test[:20], "train_tail": train[-5:], "test_tail": test[-5:],
    }


SPLITS = [
    (10, 0.1, 42), (101, 0.1, 42), (3000, 0.1, 42), (70000, 0.1, 42), (2500, 0.25, 42),
    (2, 0.5, 0), (29, 0.2, 7), (1000, 0.33, 2**32 - 1), (65537, 0.15, 123),
]
cases = ",\n".join(json.dumps(split(*case)) for case in SPLITS)
(FIXTURES / "sklearn_split.json").write_text(f"[\n{cases}\n]\n")

TEXTS = [
    "Ahla bik, 3aslema!", "YÉZZI yezzi yézzi", "a [SEP] b [MASK]", "中国 ok", "", "   ", "bahi\tbarcha\u00a0bahi\u0000x",
    "unknown☃ x", "a" * 101 + " b", "barcha " * 30,
]
LETTERS = "abcdefghiklmnorsxyz3!,.é中国"
CASED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "Y", "É", "##A", "##É", "##Z", "##I"]
PIECES = ["ahla", "bik", "bar", "##cha", "bahi", "##slema", "##hla", "yez", "##zi", "ok"]
LENGTH = 16

for name, special in [("cased", CASED), ("uncased", CASED[:5])]:
    folder = FIXTURES / "wordpiece" / name
    folder.mkdir(parents=True, exist_ok=True)
    vocab = special + list(LETTERS) + ["##" + c for c in LETTERS] + PIECES
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizer(folder / "vocab.txt", do_lower_case=name == "uncased")
    ids = [tokenizer(t, max_length=LENGTH, truncation=True, padding="max_length")["input_ids"] for t in TEXTS]
    rows = ",\n".join(json.dumps({"text": t, "ids": i}, ensure_ascii=False) for t, i in zip(TEXTS, ids))
    (folder / "ids.json").write_text(f"[\n{rows}\n]\n")
