"""vLLM's side of sampler.py, run by a Python that has vLLM: a job a line on standard input, its time on
standard output. Engine settings are those that measured fastest for it on one thread of a CPU."""

from __future__ import annotations

import json
import sys
import time

from vllm import LLM, SamplingParams, TokensPrompt


def main() -> None:
    engine = LLM(
        sys.argv[1],
        dtype=sys.argv[2],
        enforce_eager=True,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        max_model_len=1024,
    )
    for line in sys.stdin:
        job = json.loads(line)
        prompts, params = [], []
        for ids, lengths in zip(job["prompts"], job["lengths"], strict=True):
            for length in lengths:
                prompts.append(TokensPrompt(prompt_token_ids=ids))
                params.append(
                    SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False, logprobs=0)
                )
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print("RESULT " + json.dumps({"wall": wall, "cpu": cpu, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
