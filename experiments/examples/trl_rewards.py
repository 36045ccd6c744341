"""TRL's `GRPOTrainer` with several rewards: a rule weighs them, and TRL makes the loss.

    pip install -e ".[trl]"  # in a clone of this repository
    python -m experiments.examples.trl_rewards

Two methods are overridden. `_generate_and_score_completions` keeps the advantages A of every reward
[sample, reward] next to the one of their sum; `_compute_loss` weighs them, at one backward pass for
any number of rewards, and hands TRL the one advantage A w. With weights of 1 it is TRL's own sum.

What can go wrong:

- The advantages of a reward are centred in its group and not divided by its deviation. Divided
  (GDPO) they would not be gradients of expected rewards, which the rules' promises are about.
- If a generation has several micro-batches, they are weighed once, together, at the first of them.
  This is one more forward pass, and its graph has to fit into memory.
- Gradient checkpointing, which TRL has on by default, runs a block's forward again for every reward
  where rewards are weighed. Turn it off (`gradient_checkpointing=False`) if the memory is there.
- A KL penalty (`beta`) keeps its weight of 1 in TRL's loss, and the rule does not see it; nor does
  it see an entropy bonus. To show the penalty to the rule, add a row with its advantages and set
  its weight to 1 afterwards.
- Samples of an older policy (`num_iterations` above 1) are clipped, which is not linear in the
  advantages. They are refused here; docs/how-to/rewards.md has a form that is linear.
- Also refused is what would weigh another gradient than TRL's: "bnpo" over several micro-batches
  (each has its own divisor), a quantile of entropies, and tokens of tools or an environment.
"""

import tempfile
from typing import Any

import torch
import transformers
import trl  # pyright: ignore[reportMissingImports]
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import mtlfunc as mf

LINEAR = ("dapo", "dr_grpo", "bnpo", "grpo", "cispo", "luspo")  # on the policy's own samples
KEPT = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask", "by_reward")


class Balanced(trl.GRPOTrainer):
    balancer: mf.Balancer
    weights: Tensor  # of the rewards, in this generation batch

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        outputs, args = super()._generate_and_score_completions(inputs), self.args
        if "old_per_token_logps" in outputs or args.loss_type not in LINEAR:
            raise ValueError("the loss is not linear in the advantages; see the top of this file")
        if args.loss_type == "bnpo" and args.steps_per_generation > 1:
            raise ValueError(
                "loss_type 'bnpo' divides each micro-batch by its own number of tokens; take 'dapo'"
            )
        if args.top_entropy_quantile < 1 or "tool_mask" in outputs:
            raise ValueError(
                "TRL leaves out tokens (top_entropy_quantile below 1, or of tools) that are weighed"
            )
        if args.scale_rewards != "none" or args.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError("scale_rewards: expected 'none', and no normalised rewards")
        logs = (
            list(self._logs["rewards"][name])[-len(inputs) :] for name in self.reward_func_names
        )
        rewards = (
            torch.tensor(list(logs), device=self.reward_weights.device).T * self.reward_weights
        )
        if rewards.isnan().any():
            raise ValueError("a reward function returned None: expected one number per completion")
        groups = rewards.unflatten(0, (-1, self.num_generations))
        outputs["by_reward"] = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
        return outputs

    def _compute_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        if model.training:
            if self._step % self.args.steps_per_generation == 0:
                parts: Any = self._buffered_inputs
                *ids, before, after, A = (torch.cat([part[x] for part in parts]) for x in KEPT)
                tokens, mask, keep = (
                    torch.cat(ids, 1),
                    torch.cat([before, after], 1),
                    after.shape[1],
                )
                found = self._get_per_token_logps_and_entropies(model, tokens, mask, keep)[0]
                losses = -(found * after).sum(1)
                if self.args.loss_type == "grpo":  # the mean over a completion's tokens
                    losses = losses / after.sum(1).clamp_min(1)
                losses = losses / len(losses)
                self.weights = self.balancer.weigh(losses, weightings=A.T)[0]
            inputs = inputs | {"advantages": inputs["by_reward"] @ self.weights}
        return super()._compute_loss(model, inputs)


def network() -> tuple[Any, Any]:
    """A tiny Llama with first weights, and a tokenizer of digits."""
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"0123456789", "+", "="])}
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    ends: Any = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = transformers.LlamaConfig(vocab_size=len(words), num_hidden_layers=2, **sizes, **ends)
    made = Tokenizer(models.WordLevel(words))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks: Any = {"pad_token": "<pad>", "eos_token": "<eos>"}
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks)
    return transformers.LlamaForCausalLM(config), own


def even(completions: list[str], **_: Any) -> list[float]:
    return [float(text[-1:] in tuple("02468")) for text in completions]


def large(completions: list[str], **_: Any) -> list[float]:
    return [sum(int(x) for x in text if x.isdigit()) / 9 for text in completions]


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def main(kind: type[trl.GRPOTrainer], folder: str, rule: mf.Rule, steps: int = 20, **options: Any):
    common: Any = {"report_to": "none", "use_cpu": True, "bf16": False, "learning_rate": 3e-3}
    common |= {"per_device_train_batch_size": 64, "num_generations": 8, "save_strategy": "no"}
    common |= {"max_completion_length": 8, "scale_rewards": "none", "logging_steps": 1}
    given = trl.GRPOConfig(folder, max_steps=steps, **common | options)
    questions = Dataset.from_list([{"prompt": f"{i % 10} + {i // 10} ="} for i in range(100)])
    model, own = network()
    trainer = kind(model, [even, large, short], given, questions, processing_class=own)
    if isinstance(trainer, Balanced):  # with the sum, a weight of 1 each is the rule `mf.mean()`
        trainer.balancer = mf.Balancer(trainer.model, rule, reduction="sum")
    trainer.train()
    return trainer


if __name__ == "__main__":
    for kind in (trl.GRPOTrainer, Balanced):
        log = main(kind, tempfile.mkdtemp(), mf.upgrad()).state.log_history
        means = {x: f"{log[-2][f'rewards/{x}/mean']:.2f}" for x in ("even", "large", "short")}
        print(kind.__name__, means)
