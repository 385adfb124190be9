"""The recipe in PyTorch: the yardstick for bert-xla's accuracy.

Fine-tunes a BERT checkpoint, with a flattened dense head, to tell -1, 0 and 1 apart, and prints one JSON line per
epoch. It follows the Keras original where Keras and PyTorch differ: the loss, Adam's epsilon, the head's initial
weights, the gradient of the [PAD] embedding, and no attention mask (padding is attended to).

    pip install torch 'transformers<5' scikit-learn
    python torch_recipe.py --model DIR --train FILE --max-length 64 --learning-rate 5e-5 --epochs 4

DIR holds config.json, tokenizer.json and model.safetensors; each row of FILE is `label;text`, without a header.
`--head cls --mask` is transformers' BertForSequenceClassification with AdamW, as its examples train it: with
`--weight-decay 0.01 --warmup 0.1 --schedule linear`.
To time the step alone, `--random-weights --steps N` needs no model.safetensors and prints each step's seconds.
"""

import argparse
import csv
import json
import math
import sys
import time

import torch
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, get_scheduler

CLASS_OF_LABEL = {"-1": 1, "0": 2, "1": 3}
NUM_CLASSES = 4  # class 0 is never used


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--train", required=True, help="rows of label;text")
    parser.add_argument("--max-length", type=int, default=140)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=0.3, help="of the head")
    parser.add_argument("--encoder-dropout", type=float, help="default: the two rates of config.json")
    parser.add_argument("--head", choices=["dense", "lstm", "bilstm", "cls"], default="dense")
    parser.add_argument("--mask", action="store_true", help="hide the padding")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--warmup", type=float, default=0.0, help="share of all steps")
    parser.add_argument("--schedule", choices=["constant", "linear"], default="constant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--random-weights", action="store_true", help="read config.json alone, no weights")
    parser.add_argument("--steps", type=int, help="stop after this many steps and print their seconds")
    return parser.parse_args()


def read_rows(path):
    """Texts and classes, in the file's order, without bad labels and repeated texts; and the count of each of those."""
    rows, bad_labels, duplicates = {}, 0, 0
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file, delimiter=";"):
            if len(row) < 2 or row[0] not in CLASS_OF_LABEL:
                bad_labels += 1
            elif row[1] in rows:
                duplicates += 1
            else:
                rows[row[1]] = CLASS_OF_LABEL[row[0]]
    return list(rows), list(rows.values()), {"rows": len(rows), "bad_labels": bad_labels, "duplicates": duplicates}


def tokenize(model_dir, texts, max_length):
    """[text, 2, max_length]: ids, truncated and padded with [PAD], and 1 for each that is no padding."""
    tokenizer = Tokenizer.from_file(f"{model_dir}/tokenizer.json")
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([[encoding.ids, encoding.attention_mask] for encoding in encoded])


class Classifier(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.mask = args.mask
        config = BertConfig.from_pretrained(args.model)
        if args.encoder_dropout is not None:
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.encoder_dropout
        if args.random_weights:
            self.bert = BertModel(config, add_pooling_layer=False)
        else:
            self.bert = BertModel.from_pretrained(args.model, config=config, add_pooling_layer=False)
        # PyTorch would withhold the gradient of the [PAD] row; Keras does not, and padding is attended to here.
        self.bert.embeddings.word_embeddings.padding_idx = None
        sides = {"dense": 0, "lstm": 1, "bilstm": 2}[args.head]
        self.lstm = nn.LSTM(config.hidden_size, 128, batch_first=True, bidirectional=sides == 2) if sides else None
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * sides or args.max_length * config.hidden_size, 512), nn.ReLU(), nn.Dropout(args.dropout),
            nn.Linear(512, 440), nn.ReLU(), nn.Dropout(args.dropout),
            nn.Linear(440, NUM_CLASSES), nn.Softplus(),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # Glorot's
                nn.init.zeros_(layer.bias)

    def forward(self, tokens):
        """[batch, 2, max_length] -> [batch, class], positive and not normalised."""
        input_ids, mask = tokens[:, 0], tokens[:, 1]
        mask = mask if self.mask else torch.ones_like(input_ids)
        states = self.bert(input_ids, attention_mask=mask).last_hidden_state
        if self.lstm:
            # The last states of both directions, one after the other. Padding is read as any other token.
            states = self.lstm(states)[1][0].transpose(0, 1)
        return self.head(states)

    def losses(self, output, labels):
        """Keras' categorical_crossentropy of outputs that are not logits, one per row."""
        probabilities = output / output.sum(dim=1, keepdim=True)
        return -probabilities.clamp(1e-7, 1 - 1e-7).log().gather(1, labels[:, None])[:, 0]


class SequenceClassifier(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.mask = args.mask
        self.model = BertForSequenceClassification.from_pretrained(args.model, num_labels=NUM_CLASSES)

    def forward(self, tokens):
        """[batch, 2, max_length] -> [batch, class]: logits."""
        input_ids, mask = tokens[:, 0], tokens[:, 1]
        return self.model(input_ids, attention_mask=mask if self.mask else torch.ones_like(input_ids)).logits

    def losses(self, output, labels):
        return nn.functional.cross_entropy(output, labels, reduction="none")


def adamw(model, args):
    """AdamW as transformers' Trainer sets it up: no decay of biases and LayerNorm."""
    groups = {0.0: [], args.weight_decay: []}
    for name, parameter in model.named_parameters():
        groups[0.0 if "bias" in name or "LayerNorm" in name else args.weight_decay].append(parameter)
    groups = [{"params": params, "weight_decay": decay} for decay, params in groups.items()]
    return torch.optim.AdamW(groups, lr=args.learning_rate)


class KerasAdam(torch.optim.Optimizer):
    """Adam with epsilon added after the bias correction has moved into the learning rate."""

    def __init__(self, params, lr, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        super().__init__(params, {"lr": lr, "beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon, "step": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            beta_1, beta_2 = group["beta_1"], group["beta_2"]
            rate = group["lr"] * (1 - beta_2 ** group["step"]) ** 0.5 / (1 - beta_1 ** group["step"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                m, v = self.state[p]["m"], self.state[p]["v"]
                m.mul_(beta_1).add_(p.grad, alpha=1 - beta_1)
                v.mul_(beta_2).addcmul_(p.grad, p.grad, value=1 - beta_2)
                p.addcdiv_(m, v.sqrt().add_(group["epsilon"]), value=-rate)


def run_epoch(model, tokens, labels, batch_size, optimizer=None, schedule=None, steps=None):
    """Mean loss, accuracy, and F1 of the labelled classes over the rows. With an optimizer it trains: rows shuffled, dropout on, means running."""
    training = optimizer is not None
    model.train(training)
    order = torch.randperm(len(labels)) if training else torch.arange(len(labels))
    loss_sum, correct, answers = 0.0, 0, torch.zeros_like(labels)
    for rows in order.split(batch_size)[:steps]:
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.set_grad_enabled(training):
            output = model(tokens[rows])
            loss = model.losses(output, labels[rows])
        if training:
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            if schedule:
                schedule.step()
        answers[rows] = 1 + output.detach()[:, 1:].argmax(dim=1)
        loss_sum += loss.sum().item()
        correct += (output.argmax(dim=1) == labels[rows]).sum().item()
        if steps is not None:
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            print(json.dumps({"step_seconds": round(seconds, 4), "cpu_seconds": round(cpu_seconds, 4)}), flush=True)
    return loss_sum / len(labels), correct / len(labels), f1_score(labels, answers, average="macro")


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts, classes, counts = read_rows(args.train)
    print(json.dumps(counts), file=sys.stderr)
    train_texts, val_texts, train_labels, val_labels = train_test_split(
        texts, classes, test_size=0.1, random_state=42
    )
    train, val = (tokenize(args.model, t, args.max_length) for t in (train_texts, val_texts))
    train_labels, val_labels = torch.tensor(train_labels), torch.tensor(val_labels)

    model = Classifier(args) if args.head != "cls" else SequenceClassifier(args)
    optimizer = KerasAdam(model.parameters(), args.learning_rate) if args.head != "cls" else adamw(model, args)
    total = -(-len(train) // args.batch_size) * args.epochs
    schedule = get_scheduler(args.schedule, optimizer, math.ceil(args.warmup * total), total)
    if args.steps is not None:
        run_epoch(model, train, train_labels, args.batch_size, optimizer, schedule, args.steps)
        return
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss, accuracy, _ = run_epoch(model, train, train_labels, args.batch_size, optimizer, schedule)
        val_loss, val_accuracy, val_f1 = run_epoch(model, val, val_labels, args.batch_size)
        line = {"epoch": epoch, "loss": loss, "accuracy": accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy,
                "val_f1": val_f1, "seconds": time.perf_counter() - start}
        print(json.dumps({key: round(value, 6) for key, value in line.items()}), flush=True)


if __name__ == "__main__":
    main()
