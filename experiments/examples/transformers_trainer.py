"""Hugging Face `transformers.Trainer`: a tiny BERT with three classifiers, made on the spot.

    pip install transformers accelerate
    python -m experiments.examples.transformers_trainer

`compute_loss` returns one loss, weighted by `weigh`; the Trainer accumulates, clips and logs it.

What can go wrong:

- Evaluation also calls `compute_loss`, without gradients: weigh only in training.
- The rule's state is in no checkpoint: a callback has to write `balancer.state_dict()`.
- fp16, several processes: see mixed_precision.py, data_parallel.py.
"""

import math
import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import mtlfunc as mf
from experiments.examples.problem import TASKS


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes: Any = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2}
        self.trunk = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **sizes))
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in range(TASKS))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = self.trunk(input_ids).last_hidden_state.mean(1)
        out = torch.stack([head(z) for head in self.heads], 2)  # [sample, class, task]
        return {"losses": nn.functional.cross_entropy(out, labels, reduction="none").mean(0)}


class Plain(transformers.Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs=False, *_: Any, **__: Any):
        out = model(**inputs)
        return (out["losses"].mean(), out) if return_outputs else out["losses"].mean()


class Balanced(Plain):
    balancer: mf.Balancer
    weights: Tensor

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs=False, *_: Any, **__: Any):
        if not torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs)
        out = model(**inputs)
        self.weights, _ = self.balancer.weigh(out["losses"])  # 2
        return self.weights @ out["losses"]  # instead of the mean


def questions(count: int) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 32, (count, 6), generator=torch.Generator().manual_seed(0))
    answers = torch.stack([ids[:, 0] > 15, ids.sum(1) > 93, ids[:, 1] < ids[:, 2]], 1).long()
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, answers, strict=True)]


def main(kind: type[transformers.Trainer], folder: str, steps: int = 100, **options: Any):
    common: Any = {"report_to": "none", "use_cpu": True, "learning_rate": 3e-3}
    arguments = transformers.TrainingArguments(folder, max_steps=steps, **common | options)
    network: Any = Classifier()
    trainer = kind(network, arguments, None, questions(512), questions(64))
    if isinstance(trainer, Balanced):
        trainer.balancer = mf.Balancer(network, mf.cagrad(0.4), "trunk.*")  # 1
    trainer.train()
    return trainer


if __name__ == "__main__":
    for kind in (Plain, Balanced):
        loss = main(kind, tempfile.mkdtemp()).evaluate()["eval_loss"]
        print(f"{kind.__name__:9} mean loss after training {loss:.3f}, {math.log(2):.3f} by chance")
