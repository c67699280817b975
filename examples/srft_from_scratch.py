"""SRFT (arXiv 2506.19767) from top to bottom, on this package's public functions and its built-in tasks.

    python examples/srft_from_scratch.py --steps 40

One step: rollouts of some prompts, rewards, one group of rollouts and demonstration for each prompt,
advantages (Eq. 6 and 7), then one backward pass over the sum of four losses (Eq. 13):

    demonstrations   w_sft . SFT (Eq. 8)      - A . p      (Eq. 9 and 10)     w_sft = 0.5 exp(-H)
    rollouts         w_rl . clipped surrogate, right ones    clipped surrogate, wrong ones (Eq. 11 and 12)

``srft train`` does the same with checkpoints, logs, several processes and much that can go wrong.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

import torch

from srft.config import SRFTConfig
from srft.data.packing import pack
from srft.data.reading import load_examples
from srft.data.template import Template
from srft.data.tokenization import tokenize_dataset
from srft.evaluation.evaluate import evaluate
from srft.model.loading import load_model, load_tokenizer
from srft.model.policy import Policy
from srft.objective.loss import active, compute_loss, counts
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.objective.table import loss_mask, sequence_table, take_rows, token_index
from srft.rewards.scorer import Scorer
from srft.rollout.engine import build_engine
from srft.trainer.update import forward
from srft.types import RolloutRequest, TrainingSequence

GROUP, PROMPTS, MAX_TOKENS = 8, 16, 64


def main(steps: int, learning_rate: float = 2e-4, seed: int = 0) -> tuple[float, float]:
    """Trains, and returns the accuracy on held-out problems before and after."""
    torch.manual_seed(seed)
    config = SRFTConfig(model={"path": "lab"}, rollout={"max_tokens": MAX_TOKENS})

    # The model, what samples from it, and the verifier: one for rollouts and demonstrations.
    tokenizer = load_tokenizer(config.model)
    policy = Policy(load_model(config.model), tokenizer, config.model)
    engine = build_engine(policy.model, tokenizer, config.rollout)
    ends = Template(tokenizer, config.data).stop_token_ids(policy.model.generation_config)
    sampling = replace(config.rollout.sampling_params(), stop_token_ids=ends)
    scorer = Scorer("exact")

    # Prompts with demonstrations, as tokens; those whose answer is wrong would be left out here.
    train, report = tokenize_dataset(load_examples("lab", limit=1000), tokenizer, config.data)
    held_out, _ = tokenize_dataset(
        load_examples("lab", evaluation=True, limit=60), tokenizer, config.data
    )
    print(report.summary())

    method = get_method("srft", longest_response=MAX_TOKENS)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=learning_rate, weight_decay=0.0)
    order = random.Random(seed)

    def accuracy() -> float:
        return evaluate(engine, tokenizer, held_out, scorer, sampling, seed=seed).accuracy

    before = accuracy()
    print(f"accuracy before: {before:.1%}")
    for step in range(steps):
        batch = order.sample(train, PROMPTS)

        # 1. Rollouts: GROUP completions of each prompt, with the log-probabilities they were drawn with.
        requests = [
            RolloutRequest(e.prompt_ids, GROUP, seed=1000 * step + i) for i, e in enumerate(batch)
        ]
        completions = engine.generate(requests, sampling)

        # 2. Rewards, and groups: the demonstration is a member of its prompt's group (Eq. 6).
        sequences: list[TrainingSequence] = []
        for group, (row, sampled) in enumerate(zip(batch, completions, strict=True)):
            scores = scorer.score([row.example] * GROUP, [c.text for c in sampled])
            for completion, score in zip(sampled, scores, strict=True):
                sequences.append(
                    TrainingSequence(
                        row.prompt_ids,
                        completion.token_ids,
                        group,
                        is_demo=False,
                        reward=score.reward,
                        correct=score.correct,
                        truncated=completion.finish_reason == "length",
                        sampler_logprobs=completion.logprobs,
                    )
                )
            demonstration = row.demonstration_ids[0]
            sequences.append(
                TrainingSequence(
                    row.prompt_ids, demonstration, group, is_demo=True, reward=1.0, correct=True
                )
            )

        # 3. Advantages (Eq. 7), and the count that each loss is divided by, over the whole step.
        table = sequence_table(sequences)
        table = replace(table, advantage_S=method.advantage(table, method.switches))
        divide_by = counts(method, token_index(table, loss_mask(sequences)))

        # 4. Sequences that have a gradient, packed without padding under a budget of tokens.
        moving = active(method, table)
        chosen = [s for s, moves in zip(sequences, moving.tolist(), strict=True) if moves]
        packs = pack(
            chosen,
            take_rows(table, moving),
            4096,
            policy.device,
            share_prompts=policy.shares_prompts,
        )

        # 5. One backward pass over all four losses, micro-batch by micro-batch; entropies carry no gradient.
        optimizer.zero_grad()
        total = 0.0
        policy.model.train()
        for packed in packs:
            tokens = forward(policy, packed)  # log p, H and more of each response token
            loss, _ = compute_loss(method, tokens, divide_by, Progress(step, steps))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        policy.model.eval()

        # 6. The next rollouts are by the new weights.
        engine.update_weights()
        rewards = [s.reward for s in sequences if not s.is_demo]
        print(
            f"step {step + 1}/{steps}  reward {sum(rewards) / len(rewards):.2f}  loss {total:+.3f}"
        )

    after = accuracy()
    print(f"accuracy after: {after:.1%}")
    scorer.close()
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    main(parser.parse_args().steps)
