"""A text classifier behind FastAPI, as one is commonly served: the yardstick of bert-xla's `serve`.

    pip install torch 'transformers<5' fastapi 'uvicorn[standard]'
    python serve_transformers.py --model DIR --port 8081 [--batch 32]

DIR is what `bert-xla export --format transformers` writes. `POST /predict` takes {"inputs": "a text" or ["texts"]} and gives
[[{"label", "score"}]]. Texts are padded to the longest of those that are computed together. Without --batch, those are a
request's own; with it, up to so many texts that wait when the model is free.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--batch", type=int, help="the most texts that are computed together")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class Request(BaseModel):
    inputs: str | list[str]


class Classifier:
    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
        self.max_length = args.max_length
        # One thread computes at a time; torch has threads of its own.
        self.executor = ThreadPoolExecutor(1)

    def answer(self, texts):
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        with torch.inference_mode():
            rows = self.model(**inputs).logits.softmax(-1)
        names = self.model.config.id2label
        best = zip(rows.argmax(-1).tolist(), rows.max(-1).values.tolist(), strict=True)
        return [[{"label": names[at], "score": score}] for at, score in best]

    async def ask(self, texts):
        return await asyncio.get_running_loop().run_in_executor(self.executor, self.answer, texts)


class Batches:
    """Computes together what waits when the model is free."""

    def __init__(self, classifier, most):
        self.classifier, self.most = classifier, most
        self.waiting = asyncio.Queue()

    async def run(self):
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.most and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            answers = await self.classifier.ask([text for text, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def ask(self, texts):
        futures = [asyncio.get_running_loop().create_future() for _ in texts]
        for pair in zip(texts, futures, strict=True):
            self.waiting.put_nowait(pair)
        return await asyncio.gather(*futures)


def main():
    args = arguments()
    classifier = Classifier(args)
    app, batches = FastAPI(), None

    @app.on_event("startup")
    async def start():
        nonlocal batches
        if args.batch:
            batches = Batches(classifier, args.batch)
            app.state.task = asyncio.create_task(batches.run())

    @app.post("/predict")
    async def predict(request: Request):
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        return await (batches or classifier).ask(texts)

    @app.get("/health")
    def health():
        return {"status": "ready"}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


main()
