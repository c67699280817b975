"""The mutations: a snippet that stands once in its file, what it becomes, and the tests that should notice.

Snippets, not lines, so that a file may grow above them; ``test_mutants.py`` tells when one is gone.
"""

# ruff: noqa: E501 - a snippet stands on one line as it stands in its file
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``src/srft/<file>``; ``tests`` are paths below ``tests/``."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def room(self) -> str:
        return self.file.partition("/")[0]

    @property
    def title(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or 'nothing'}"


_OBJECTIVE = ("objective/test_by_hand.py", "objective/test_against_reference.py")
_METHODS = (*_OBJECTIVE, "objective/test_methods.py")

# (file, tests): the changes.
_CHANGES: dict[tuple[str, tuple[str, ...]], tuple[tuple[str, str], ...]] = {
    ("objective/advantage.py", _OBJECTIVE): (
        ("std_S + switches.advantage_epsilon", "std_S"),
        ("count_S / (count_S - 1).clamp(min=1)", "count_S / count_S.clamp(min=1)"),
        ('count_G - 1 if std == "sample" else count_G', "count_G"),
        ("silent_S = (constant_S & member_S) | (count_S == 0)", "silent_S = count_S == 0"),
        ("torch.where(silent_S | ~known_S", "torch.where(silent_S"),
        ("torch.full_like(alone_S, switches.demos_in_group)", "torch.full_like(alone_S, True)"),
        ("torch.where(alone_S, of_all, of_group)", "of_group"),
        ("torch.where(constant_S, 1.0, std_S", "torch.where(count_S < 0, 1.0, std_S"),
    ),
    ("objective/entropy_weights.py", _OBJECTIVE): (
        ("torch.exp(sign * _entropy", "torch.exp(-sign * _entropy"),
        ("weight_T.clamp(max=switches.weight_cap)", "weight_T"),
        ('[0 if where == "demonstrations" else 1]', "[0]"),
        (
            "sequence_mean(entropy_T, batch.index)[batch.index.sequence_T]",
            "entropy_T.mean().expand_as(entropy_T)",
        ),
    ),
    ("objective/terms.py", _METHODS): (
        ("& ~in_prefix(index)", ""),
        ("rollout_S & ~table.truncated_S if switches.mask_truncated", "rollout_S if False"),
        ("return table.is_demo_S | rollouts(table, switches)", "return torch.ones_like(table.is_demo_S)"),
        ("log_ratio_T.clamp(max=_FAR)", "log_ratio_T"),
        ("table.is_demo_S & (table.advantage_S != 0)", "table.is_demo_S & (table.advantage_S > 0)"),
        ("batch.logprob_T - batch.old_logprob_T\n    if switches.ratio_level",
         "batch.old_logprob_T - batch.logprob_T\n    if switches.ratio_level"),
        ("weight_T.clamp(switches.importance_floor, switches.importance_cap)",
         "weight_T.clamp(max=switches.importance_cap)"),
        ("weight_T.clamp(switches.importance_floor, switches.importance_cap)",
         "weight_T.clamp(min=switches.importance_floor)"),
        ("return ratio(batch, switches) * k3_T", "return ratio(batch, switches).detach() * k3_T"),
        ("(weight_T < switches.importance_floor)", "(weight_T < 0)"),
        ("return weight_T.masked_fill(given_T, 1.0)", "return weight_T"),
        ("-sft_weight(batch, switches) * batch.logprob_T", "-batch.logprob_T"),
        ("-torch.exp(batch.logprob_T.detach()) * batch.logprob_T", "-torch.exp(batch.logprob_T)"),
        ("torch.minimum(ratio_T * advantage_T", "torch.maximum(ratio_T * advantage_T"),
        ("ratio_T.clamp(1 - switches.clip_low", "ratio_T.clamp(1 - switches.clip_high"),
        ("ratio_T.clamp(max=switches.ratio_cap)", "ratio_T"),
        ("torch.where(advantage(batch) > 0, rl_weight", "torch.where(advantage(batch) < 0, rl_weight"),
        ("torch.where(right_T, -rl_weight(batch, switches), 1.0)",
         "torch.where(right_T, -rl_weight(batch, switches), -1.0)"),
        ("ratio(batch, switches).detach().clamp", "ratio(batch, switches).clamp"),
        ("return difference_T**2 / 2", "return difference_T.abs()"),
        ("torch.expm1(difference_T) - difference_T", "torch.expm1(difference_T)"),
        ("return -batch.entropy_grad_T", "return -batch.entropy_T"),
        ("torch.ceil(share_S - 1e-9)", "torch.ceil(share_S)"),
    ),
    ("objective/loss.py", _METHODS): (
        ("return float(mask_T.sum())", "return float(mask_T.numel())"),
        ("return term.mask(index, switches) & index.loss_mask_T", "return term.mask(index, switches)"),
        ("loss_T = loss_T / length_T.to(loss_T.dtype)", "loss_T = loss_T / length_T.to(loss_T.dtype).mean()"),
        ("return sequences * switches.constant_length", "return sequences"),
        ("sum(found[name] for name in shared)", "max(found[name] for name in shared)"),
        ('if t.source == "rl" and t.weight != 0]', 'if t.source == "rl"]'),
        ("finished[name] = value / merged", "finished[name] = value * merged"),
        ("merged[key] = max(merged[key], value)", "merged[key] = value"),
        ("weight * _average(term, part", "_average(term, part"),
    ),
    ("objective/schedules.py", _METHODS): (
        ("right_S <= switches.gate * rollouts_S.double() + 1e-9", "right_S <= switches.gate * rollouts_S"),
        ("switches.mu_start * progress.step / warmup", "switches.mu_start"),
        ("if rollout >= switches.prefix_rollouts:", "if rollout > switches.prefix_rollouts:"),
        ("math.floor(share * length + uniform)", "math.floor(share * length)"),
        ("round(k / slices * length)", "round((k + 1) / slices * length)"),
    ),
    ("objective/distillation.py", (*_OBJECTIVE, "trainer/test_teachers.py")): (
        ("batch.teacher_logprob_T - batch.logprob_T.detach()",
         "batch.logprob_T.detach() - batch.teacher_logprob_T"),
        ("torch.exp(torch.sign(advantage_T) * gap_T)", "torch.exp(gap_T)"),
    ),
    ("data/folders.py", ("data/test_reading.py",)): (
        ('if shard and (folders == ["data"] or split_word(shard[1])):', "if False:"),
        ("if not any(map(_is_hidden, path.relative_to(folder).parts))", "if True"),
        ("if len(alike) == 1:", "if alike:"),
    ),
    ("data/messages.py", ("data/test_columns.py",)): (("if not filled or item is not None", "if True"),),
    ("data/message_forms.py", ("data/test_conversations.py",)): (('return type(call.get("arguments"))', "return None"),),
    ("data/formats.py", ("trainer/test_given.py",)): (
        ('return "prompt" in mapping or _recognised(rows, seen_columns(rows), mapping) is not None', 'return "prompt" in rows[0]'),
    ),
    ("data/packing.py", ("data/test_packing.py", "model/test_scoring.py", "trainer/test_update.py")): (
        ("positions.extend(range(len(prompt), len(prompt) + len(response)))",
         "positions.extend(range(len(response)))"),
        ("torch.where(index.position_T == 0, prompt_end_T, place_T) - 1", "place_T - 1"),
        ("if not parts or filled + lengths[row] > capacity:", "if not parts or filled > capacity:"),
        ("if unit is None or _tokens(sequences, [*unit, row]) > token_budget:", "if unit is None:"),
        ("torch.where(behind_P < 0, in_prompt, in_response)", "torch.where(behind_P < 1, in_prompt, in_response)"),
        ("for chosen in parts[rank::ranks]", "for chosen in parts[rank:]"),
    ),
    ("data/sampler.py", ("data/test_sampler.py",)): (
        ('f"{self.seed}/{self._epoch}"', 'f"{self.seed}"'),
        ("self._carried = tuple(batch) if count <= self.n else ()", "self._carried = ()"),
        ('self._position = int(state["position"])', "self._position = 0"),
        ('self._room = int(state["room"])', "self._room = 0"),
    ),
    ("data/tokenization.py", ("data/test_tokenization.py", "data/test_template.py", "data/test_conversations.py")): (
    ),
    ("model/head.py", ("model/test_head.py",)): (
        ("weighted[t] = factor * (weighted[t] + shift * total[t])", "weighted[t] = factor * weighted[t]"),
        ("dz = logp.add_(saved.entropy[t, None])", "dz = logp.sub_(saved.entropy[t, None])"),
        ("1.0 - (z / head.softcap).square_()", "1.0 - (z / head.softcap)"),
        ("factor = head.logit_scale / head.temperature", "factor = head.logit_scale"),
        ("grad_bias[v] += dz.sum", "grad_bias[v] = dz.sum"),
        ("inside = (target >= v.start) & (target < v.stop)", "inside = target < v.stop"),
    ),
    ("model/packed_attention.py", ("model/test_attention.py", "model/test_scoring.py")): (
        ("seen & (k > q - self.window)", "seen & (k >= q - self.window)"),
        ("seen & (k // self.chunk == q // self.chunk)", "seen"),
        ("torch.tanh(scores / options.softcap) * options.softcap", "scores"),
        ("weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]", "weights = scores.softmax(dim=-1)"),
        ("pads.append((start + torch.minimum(place, length - 1)).flatten())",
         "pads.append((start + torch.minimum(place, length * 0)).flatten())"),
    ),
    ("model/adapters.py", ("model/test_adapters.py", "rollout/test_weights.py")): (
        ("delta = (b @ a) * scale", "delta = b @ a"),
        ("layer.enable_adapters(False)", "layer.enable_adapters(True)"),
        ("return delta.t() if layer.fan_in_fan_out else delta", "return delta"),
        ("for module, training in modes:\n            module.training = training", "pass"),
        ("return lambda: nullcontext(frozen)", "return lambda: nullcontext(model)"),
        ("parameter.requires_grad_(trains)", "pass"),
    ),
    ("rollout/sampling.py", ("rollout/test_sampling.py", "rollout/test_embedded.py")): (
        ("logits = logits / params.temperature", "logits = logits * params.temperature"),
        ("logits.masked_fill(logits < kth, float", "logits.masked_fill(logits <= kth, float"),
        ("index, before >= top_p", "index, before > top_p + 1"),
        ("- total_A1.log()", "- 0 * total_A1.log()"),
        ("_mix(_mix(seed + _GOLDEN) ^ np.uint64(0xD1B54A32D192ED03))", "seed"),
        ("torch.searchsorted(running_AK, rest_A1, right=True)", "torch.searchsorted(running_AK, rest_A1 * 0.5, right=True)"),
    ),
    ("rollout/response_end.py", ("rollout/test_stopping.py",)): (
        ("kept = token_ids[:-1] if ended_by_token else token_ids", "kept = token_ids"),
        ("return text[: min(found)] if found else text", "return text[: max(found)] if found else text"),
        ("{*end_ids, *params.stop_token_ids}", "{*params.stop_token_ids}"),
        ("token_ids[-self._tail :], skip_special_tokens=False", "token_ids[-self._tail :], skip_special_tokens=True"),
        ("key = (params.stop, params.stop_token_ids, ends", "key = (params.stop, ends"),
    ),
    ("rollout/rows.py", ("rollout/test_embedded.py",)): (
        ("np.roll(drawn, self.column, axis=1)", "drawn"),
        ("requests[t.request].seed + t.sample", "requests[t.request].seed"),
        ("return self.clock - self.birth[:a] + 1 >= self.limit[:a]", "return self.clock - self.birth[:a] >= self.limit[:a]"),
        ("for ring in (self.tokens, self.logprobs, self.uniforms):", "for ring in (self.tokens, self.logprobs):"),
    ),
    ("rollout/requests.py", ("rollout/test_stopping.py",)): (
        ("most = request.most_tokens(params)", "most = params.max_tokens"),
    ),
    ("environments/episodes.py", ("environments/test_episodes.py",)): (
        ("if len(run.ids) + len(ids) >= run.limit:", "if len(run.ids) + len(ids) > run.limit:"),
        ("last = turn == self.max_turns", "last = turn == (self.max_turns or 0) + 1"),
        ("self.mask += (logprobs is not None,) * len(ids)", "self.mask += (True,) * len(ids)"),
        ("ended = run.ids[-1] in self.stop_ids", "ended = True"),
        ("request_seed(run.seed, turn)", "run.seed"),
        ("run.limit - len(run.ids),", "run.limit,"),
        ("        self.toolbox.leave(self._places)\n", ""),
    ),
    ("environments/toolbox.py", ("environments/test_toolbox.py",)): (
        ("if place.environment is not None and not place.stuck:", "if place.environment is not None:"),
        ('row.pop("environment")', "pass"),
        ("and not n.startswith(\"_\")]", "]"),
    ),
    ("data/turns.py", ("environments/test_turns.py",)): (
        ("if not whole.startswith(learned):", "if False:"),
        ("end = self.call_end if len(before) + 1 < total else None", "end = None"),
    ),
    ("environments/call_formats.py", ("environments/test_turns.py",)): (
        ("found = json.loads(groups[\"json\"])", "found = dict(name=groups[\"json\"])"),
        ('if kind == "string":', "if False:"),
        ("if closed or not text[end:].strip() else", "if True else"),
        ("if not (opened or thinks):", "if not opened:"),
    ),
    ("rollout/embedded.py", ("rollout/test_embedded.py", "rollout/test_modes.py")): (
        ("seen |= torch.eye(width, dtype=torch.bool)", "pass"),
        ('reason: FinishReason = "stop" if stopped else "length"', 'reason: FinishReason = "stop"'),
        ("position = (torch.arange(width) - start[:, None]).clamp_(min=0)", "position = torch.arange(width).expand(len(chosen), -1)"),
        ("check_finite(completion, request, sample)", "pass"),
    ),
    ("rollout/transfer.py", ("rollout/test_vllm_servers.py",)): (
        ('post("/reset_prefix_cache")', "pass"),
        ('version})\n                server.call("POST", "/reset_prefix_cache")', 'version})'),
        ('{"weight_version": version})\n        except', '{"weight_version": "none"})\n        except'),
        ("if self.described is None:", "if self.described is None and self.sender:"),
    ),
    ("rollout/vllm_wire.py", ("rollout/test_vllm_servers.py",)): (
        ('"ignore_eos": True', '"ignore_eos": False'),
        ('"seed": request.seed + sample', '"seed": 0'),
        ("by_token = stopped and not isinstance(stop_reason, str)", "by_token = stopped"),
    ),
    ("rollout/fleet.py", ("rollout/test_vllm_servers.py",)): (
        ("self.waiting.append(job)", "pass"),
        ("if job.tries == self.config.attempts:", "if False:"),
    ),
    ("rollout/check.py", ("rollout/test_modes.py", "rollout/test_vllm_servers.py", "rollout/test_embedded.py")): (
        ("if not found.item() <= tolerance:", "if False:"),
        ("if not worst <= tolerance:\n        raise RolloutError(", "if False:\n        raise RolloutError("),
    ),
    ("rewards/answers.py", ("rewards/test_answers.py", "rewards/test_verifiers.py")): (
        ("left.casefold()", "left"),
    ),
    ("rewards/countdown.py", ("rewards/test_verifiers.py",)): (
        ('used == given if options.get("use_all", True) else used <= given', "used <= given"),
        ("value == goal and allowed", "value == goal"),
    ),
    ("rewards/verifiers.py", ("rewards/test_verifiers.py", "rewards/test_precedence.py", "rewards/test_spellings.py")): (
        ("return left != right and not product", "return False"),
        ("abs(value - target) <= max(allowed, relative * abs(target))", "abs(value - target) <= allowed"),
        ("if number and _APART.fullmatch(last) and read_quantity(last) is None:", "if False:"),
        (" or _RELATION.match(said or alone)", ""),
    ),
    ("rewards/undone.py", ("rewards/test_undone.py",)): (
        (" or _asks_for(asked, gold)", ""),
        ("any(_is_number(one) for _, one in found)", "False"),
        ("math.gcd(int(_value(top)), below) == 1", "True"),
        ("if any(_squeezed(side).casefold() in truths for side in sides):", "if False:"),
        ("if not _GOES_ON.search(before) and not _GOES_BACK.match(after):", "if True:"),
    ),
    ("rewards/scorer.py", ("rewards/test_scorer.py",)): (
        ("part.weight * value for part", "value for part"),
        ("reward > self.correct_threshold, status", "reward >= self.correct_threshold, status"),
        ("math.fsum(applicable) if applicable else math.nan", "math.fsum(applicable)"),
        ("self._extras[column] = list(values)", "pass"),
    ),
    ("rewards/scorer.py", ("rewards/test_undone.py",)): (
        ("columns[ASKED] = example.asked", "pass"),
    ),
    ("rewards/functions.py", ("rewards/test_scorer.py", "rewards/test_deadline.py")): (
        ("if isinstance(value, numbers.Real) and math.isfinite(value):", "if isinstance(value, numbers.Real):"),
        ("if len(rewards) != len(batch):", "if len(rewards) < len(batch):"),
        ('batch = call_within(timeout_s, "the search for the sample", culprit)', "batch = culprit()"),
        ("awaited.result(timeout_s)", "awaited.result(90)"),
    ),
    ("rewards/deadline.py", ("rewards/test_deadline.py",)): (
        ("class _Late(BaseException)", "class _Late(Exception)"),
        ("signal.signal(signal.SIGVTALRM, previous)", "pass"),
    ),
    ("rewards/pool.py", ("rewards/test_pool.py",)): (
        ("tries[status] >= _TRIES.get(status, 1)", "True"),
        ("self._served >= self._state.recycle_after", "False"),
        ('if rss > self._state.nursery.resting_rss + self._state.memory_bytes:', "if False:"),
    ),
    ("trainer/update.py", ("trainer/test_update.py", "trainer/test_methods_train.py")): (
        ("clip_to(model, norm, config.max_grad_norm)", "pass"),
        ("policy.model.eval()  # it is the one that was sampled: without dropout", "pass"),
        ("if not (all_finite and norm < float(\"inf\")):", "if not norm < float(\"inf\"):"),
        ("finite &= loss.isfinite() & _all_finite(batch)", "finite &= loss.isfinite()"),
        ("part_counts = counts(method, token_index(part_table, loss_mask(whole)))",
         "part_counts = counts(method, token_index(take_rows(part_table, active(method, part_table))))"),
        ("place * parts // len(units)", "0"),
        ("if len({unit_of[row] for row in kept}) < parts:", "if False:"),
        ("old_entropy_T=earlier.entropy_T", "old_entropy_T=scores.entropy_T.detach() * 0"),
        ("1 - figures.pop(\"sequences\") / len(sequences)", "0 * figures.pop(\"sequences\")"),
        ("apart = _sampled_apart(method, batches, old)", "apart = 0.0, 0.0"),
        ("return UpdateResult({**extra, **figures}, reason, len(norms))", "return UpdateResult({**extra, **figures}, reason)"),
    ),
    ("objective/preparation.py", ("trainer/test_update.py", "trainer/test_methods_train.py")): (
        ("return Before((_mean(demos), _mean(rollouts)), threshold)",
         "return Before((_mean(rollouts), _mean(demos)), threshold)"),
    ),
    ("trainer/optimization.py", ("trainer/test_update.py", "trainer/test_optimizer.py")): (
        ("if p.ndim < 2], \"weight_decay\": 0.0", "if p.ndim < 2], \"weight_decay\": config.weight_decay"),
        ("peak * (step + 1) / config.warmup_steps", "peak * step / config.warmup_steps"),
        ("low + (1 - low) * shape", "shape"),
        ('"betas": config.betas', '"betas": (0.9, 0.99)'),
        ("max(1, total - 1 - config.warmup_steps)", "max(1, total - config.warmup_steps)"),
    ),
    ("trainer/optimization.py", ("trainer/test_api.py",)): (
        ('_DRIVEN = ("lr", "momentum", "betas")', '_DRIVEN = ("momentum", "betas")'),
        ('_DRIVEN = ("lr", "momentum", "betas")', '_DRIVEN = ("lr", "momentum")'),
    ),
    ("trainer/setup.py", ("trainer/test_collect.py", "test_python_api.py")): (
        ("self.policy.at(self.sampling.temperature if method.rollouts else 1.0)", "self.policy.at(1.0)"),
        ("if method.rollouts else 1.0)", "if True else 1.0)"),
    ),
    ("trainer/collect.py", ("trainer/test_collect.py", "faults/test_numerical.py", "trainer/test_methods_train.py")): (
        ("if score.scorable:", "if True:"),
        ("groups = [group for group in (*collected.rollouts, *collected.dropped) if group]",
         "groups = [*collected.rollouts, *collected.dropped]"),
        ("self.dropped.append(rollouts)", "pass"),
        ("_check_logprobs([sequence for _, _, sequence in drawn])", "pass"),
        ("if only_mixed and len({r.sequence.reward for r in rollouts}) < 2:", "if False:"),
        ("self.logged = session.metrics", "pass"),
        ("whole[: len(whole) - (len(decode(completion.token_ids)) - len(completion.text))]", "whole"),
        ("self.sampled_groups += other.sampled_groups", "self.sampled_groups += len(other.examples)"),
        ("seed = request_seed(setup.config.train.seed, round_)", "seed = request_seed(setup.config.train.seed)"),
    ),
    ("trainer/collector.py", ("trainer/test_collect.py", "trainer/test_servers.py", "trainer/test_reward_functions.py")): (
        ("self.go_on(self._position)", "pass"),
        ("if every and (step + 1) % every == 0:", "if False:"),
        ("return self._position if self._next is not None else self._state()", "return self._state()"),
        ("self.setup.scorer.trainer_state = trl_state(self.setup, step)", "pass"),
    ),
    ("trainer/collector.py", ("trainer/test_methods_train.py", "trainer/test_resume.py")): (
        ("seed = request_seed(train.seed, 1)", "seed = train.seed"),
        ("alone = replace(method, rollouts=False)", "alone = method"),
        ('if self.further is not None and "further" in position:', "if False:"),
        ("groups = range(asked, asked + len(rows))", "groups = range(len(rows))"),
    ),
    ("trainer/sample_log.py", ("trainer/test_collect.py", "trainer/test_reward_functions.py")): (
        ("replace(scored, batch_entropy=seen.entropy, ", "replace(scored, "),
        ("mine = batch.index.sequence_T == place", "mine = batch.index.sequence_T == row"),
        ("if row not in kept:", "if False:"),
        ("first = rows.stop", "pass"),
        ("for place, row in enumerate(packed.rows):", "for place, row in enumerate(sorted(packed.rows)):"),
    ),
    ("trainer/contexts.py", ("trainer/test_teachers.py",)): (
        ("key = (repr(example.prompt), repr(example.tools), field, text)", 'key = (example.source, "", field, text)'),
    ),
    ("trainer/gradients.py", ("trainer/test_update.py",)): (
        ('torch.random.fork_rng([device] if device.type == "cuda" else [])', "torch.enable_grad()"),
    ),
    ("trainer/checkpoint.py", ("trainer/test_resume.py",)): (
        ("old = found[: found.index(target) + 1][:-keep]", "old = found[:-keep]"),
        ("**_random_states(model, self.world.rank),", ""),
        ("if _sha256(path / name) != expected:", "if False:"),
        ("found = {**aside, **", "found = {**"),
        ("torch.cuda.set_rng_state(into[f\"random_cuda.{rank}\"], device)", "pass"),
    ),
    ("trainer/state.py", ("trainer/test_resume.py",)): (
        ("return flat or self.step - self.stage_start >= stage.steps", "return self.step - self.stage_start >= stage.steps"),
        ("return self.stage_over(stages) and self.next_stage(stages)", "return False"),
    ),
    ("trainer/trainer.py", ("trainer/test_resume.py", "trainer/test_best_model.py", "faults/test_numerical.py")): (
        ('if self.world.from_main(lambda: state == self.saved, "a checkpoint"):', "if False:"),
        ("self.setup.evaluation and not self.train_state.is_evaluated:", "self.setup.evaluation:"),
        ('"sampler": self.collector.position(),', '"sampler": {**self.collector.position(), "position": 0},'),
        ("state.refused_in_a_row + 1 if result.refused else 0", "0"),
        ("if model_dir and (self.train_state.step > first or not self._exported()):", "if model_dir:"),
    ),
    ("trainer/clean_stop.py", ("trainer/test_clean_stop.py",)): (
        ("return work() if self.requested is None else None", "return work()"),
        ("if self._leaves:", "if False:"),
    ),
    ("trainer/trainer.py", ("trainer/test_clean_stop.py",)): (
        ("if self.train_state.evaluation_due:", "if self.train_state.evaluation_due and not self.train_state.step:"),
    ),
    ("trainer/trainer.py", ("trainer/test_servers.py",)): (
        ("self.setup.engine.update_weights()\n        end", "end"),
    ),
    ("trainer/evaluating.py", ("trainer/test_best_model.py",)): (
        ('value > best if self._settings.best_mode == "max" else value < best', "value > best"),
        ("return value if improved else None", "return value"),
        ("if best is None or not math.isfinite(best):", "if best is None:"),
        (' or not math.isfinite(value := metrics[f"eval/{name}"]):', ' or (value := metrics[f"eval/{name}"]) is None:'),
    ),
    ("trainer/best.py", ("trainer/test_best_model.py",)): (
        ("if later or state.best_of not in (None, measure):", "if later:"),
        ("(exported_step(run.best) or 0) > state.step", "False"),
        ("(exported_step(run.best) or 0) > state.step", "(exported_step(run.best) or 0) > 0"),
    ),
    ("trainer/method_checks.py", ("trainer/test_collect.py",)): (
        ("given = demo if any(method.continues for method in methods) else 0", "given = 0"),
    ),
}  # fmt: skip


def mutants() -> Iterator[Mutant]:
    """All of them, in the order of the rooms."""
    for (file, tests), changes in _CHANGES.items():
        for old, new in changes:
            yield Mutant(file, old, new, tests)
