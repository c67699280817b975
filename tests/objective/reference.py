"""The objective once more, slowly: plain Python floats, one token at a time, gradients by hand.

Shares no code with the package and no tensor library. Starts from logits. Every derivative below
was worked out on paper: a loss l(lp) gives dl/dlp, the chain rule to the logits is
dlp/dz_k = 1[k = y] - p_k and dH/dz_k = -p_k (log p_k + H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SRFT = (
    "srft", "srft-official", "srft-hpt", "srft-wsft1", "srft-wrl1", "srft-no-sft",
    "srft-no-demo-rl", "srft-no-rollout", "srft-official-luffy",
)  # fmt: skip
TERMS = {
    **{name: ("demo_sft", "demo_rl", "srft_rollout") for name in SRFT},
    "sft+rl": ("demo_sft", "rollout"),
    "sft": ("demo_sft",),
    "dft": ("dft",),
    "eaft": ("eaft",),
    "asft": ("dft", "distill_demo"),
    **{
        name: ("rollout",)
        for name in ("grpo", "dr-grpo", "dapo", "gspo", "rloo", "relift", "ghpo", "rlsd")
    },
    "opd": ("distill", "rollout"),
    "sdft": ("distill", "rollout"),
    "sdpo": ("distill", "rollout"),
    "gkd": ("distill", "distill_demo", "rollout"),
    "rl-plus": ("demo_rl", "rollout"),
    "cispo": ("cispo",),
    "luffy": ("demo_rl", "rollout"),
    "hpt": ("demo_sft", "rollout"),
    "chord": ("demo_sft", "rollout"),
    "chord-phi": ("chord_phi", "rollout"),
    "uft": ("hint", "rollout"),
    "prefix-rft": ("prefix_rollout",),
}
ON_DEMOS = ("demo_sft", "dft", "eaft", "chord_phi", "demo_rl", "distill_demo")
SUPERVISED = ("demo_sft", "dft", "eaft", "chord_phi", "hint")
SUPERVISED_ONLY = ("sft", "dft", "eaft", "asft")
RL = ("demo_rl", "rollout", "srft_rollout", "literal", "literal_right", "literal_wrong")


@dataclass
class Seq:
    """One response. ``logits[t]`` are the model's at that position; the rest is data. ``teacher[t]``
    are the teacher's logits, ``masked[t]`` is true at tokens no loss may cover."""

    group: int
    demo: bool
    reward: float
    correct: bool
    targets: list[int]
    logits: list[list[float]]
    truncated: bool = False
    prefix: int = 0
    old: list[float] = field(default_factory=list)
    old_entropy: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    sampler: list[float] = field(default_factory=list)
    teacher: list[list[float]] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)


def log_softmax(logits):
    top = max(logits)
    norm = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - norm for z in logits]


def entropy_of(logits):
    return -sum(math.exp(lp) * lp for lp in log_softmax(logits))


def advantages(seqs, s):
    """Eq. 7 and its relatives, group by group."""
    if s["baseline"] == "none":
        return [q.reward for q in seqs]
    result = [0.0] * len(seqs)
    for group in {q.group for q in seqs}:
        rows = [i for i, q in enumerate(seqs) if q.group == group]
        members = [i for i in rows if s["demos_in_group"] or not seqs[i].demo]
        if all(seqs[i].demo for i in rows):  # compared with the rollouts of all other prompts
            members = [i for i, q in enumerate(seqs) if not q.demo]
        rewards = [seqs[i].reward for i in members]
        if not rewards:
            continue
        n, mean = len(rewards), sum(rewards) / len(rewards)
        equal = min(rewards) == max(rewards)
        below = n - 1 if s["std"] == "sample" else n
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / below) if not equal else 0.0
        for i in rows:
            reward = seqs[i].reward
            if i in members:
                if equal:
                    continue
                if s["baseline"] == "leave-one-out":
                    others = [seqs[j].reward for j in members if j != i]
                    value = reward - sum(others) / len(others)
                else:
                    value = reward - mean
            else:
                value = reward - mean
            if s["normalize_std"] and not equal:
                value /= spread + s["advantage_epsilon"]
            result[i] = value
    return result


def divergence(logits, teacher, beta, top_k):
    """The generalized Jensen-Shannon divergence and its derivative by every logit."""
    p = [math.exp(x) for x in log_softmax(logits)]
    q = [math.exp(x) for x in log_softmax(teacher)]
    likeliest = sorted(range(len(p)), key=lambda v: -p[v])
    kept = likeliest if top_k is None or top_k >= len(p) else likeliest[:top_k]
    bins = [[v] for v in kept] + (
        [[v for v in likeliest if v not in kept]] if len(kept) < len(p) else []
    )
    value, slope = 0.0, [0.0] * len(p)
    for members in bins:
        a, b = sum(p[v] for v in members), sum(q[v] for v in members)
        m = (1 - beta) * a + beta * b
        if beta == 0:
            value += b * math.log(b / a)
            f = -b / a
        elif beta == 1:
            value += a * math.log(a / b)
            f = math.log(a / b) + 1
        else:
            value += beta * b * math.log(b / m) + (1 - beta) * a * math.log(a / m)
            f = (1 - beta) * math.log(a / m)
        for v in members:
            slope[v] = f
    mean = sum(pv * f for pv, f in zip(p, slope, strict=True))
    return value, [pv * (f - mean) for pv, f in zip(p, slope, strict=True)]


class Objective:
    def __init__(self, name, s, seqs, step, total, previous_entropy=None, batch_entropy=None):
        self.name, self.s, self.seqs = name, s, seqs
        self.step, self.total, self.previous = step, total, previous_entropy
        self.lp = [
            [log_softmax(z)[y] for z, y in zip(q.logits, q.targets, strict=True)] for q in seqs
        ]
        self.h = [[entropy_of(z) for z in q.logits] for q in seqs]
        known = name not in SUPERVISED_ONLY
        self.advantage = advantages(seqs, s) if known else [0.0] * len(seqs)
        self.batch_entropy = batch_entropy

    def token_advantage(self, i, t):
        """RLSD's, or the sequence's."""
        a, q = self.advantage[i], self.seqs[i]
        if self.name != "rlsd" or a == 0 or not q.teacher:
            return a
        gap = log_softmax(q.teacher[t])[q.targets[t]] - self.old(i, t)
        bound, mix = self.s["rlsd_clip"], self.s["rlsd_mix"]
        weight = min(max(math.exp(gap if a > 0 else -gap), 1 - bound, 0.0), 1 + bound)
        return a * (1 - mix + mix * weight)

    # Which tokens.

    def covered(self, term, i):
        masked = self.seqs[i].masked
        return [t for t in self.of_term(term, i) if not (masked and masked[t])]

    def of_term(self, term, i):
        q, n = self.seqs[i], len(self.seqs[i].targets)
        if term in ("distill", "distill_demo") and not q.teacher:
            return []
        if q.truncated and self.s["mask_truncated"]:
            return []
        if term == "entropy" and self.s["entropy_tokens"] == "all":
            return list(range(n))
        if term in ON_DEMOS:
            return list(range(n)) if q.demo else []
        if q.demo:
            return []
        if term == "hint":
            return list(range(q.prefix))
        if term == "literal_right" and not q.correct:
            return []
        if term == "literal_wrong" and q.correct:
            return []
        return list(range(n)) if term == "prefix_rollout" else list(range(q.prefix, n))

    def average(self, term):
        if term == "entropy":
            return "token"
        if term in SUPERVISED and self.s["sft_average"]:
            return self.s["sft_average"]
        return self.s["average"]

    def count(self, term):
        shared = [other for other in self.terms() if other in RL and self.term_weight(other) != 0]
        if self.s["shared_count"] and term in shared:
            return sum(map(self.own_count, shared))
        return self.own_count(term)

    def own_count(self, term):
        lengths = [len(self.covered(term, i)) for i in range(len(self.seqs))]
        average = self.average(term)
        if average == "token":
            return float(sum(lengths))
        present = float(sum(1 for n in lengths if n))
        return present * self.s["constant_length"] if average == "constant" else present

    # Weights.

    def entropy_weight(self, i, t, coefficient, sign, tokens):
        level = self.s["entropy_level"]
        if level == "token":
            h = self.h[i][t]
        elif level == "sequence":
            h = sum(self.h[i][u] for u in tokens) / len(tokens)
        else:
            h = self.batch_entropy[0 if self.seqs[i].demo else 1]
        weight = coefficient * math.exp(sign * h)
        cap = self.s["weight_cap"]
        return weight if cap is None else min(weight, cap)

    def importance(self, i, t):
        cap, q = self.s["importance_cap"], self.seqs[i]
        if cap is None or t < q.prefix:
            return 1.0
        sampled = [u for u in range(q.prefix, len(q.targets)) if not (q.masked and q.masked[u])]
        gaps = {u: self.old(i, u) - q.sampler[u] for u in sampled}
        level = self.s["importance_level"]
        gap = gaps[t] if level == "token" else sum(gaps.values())
        weight = math.exp(gap / len(sampled) if level == "geometric" else gap)
        if self.s["importance_mode"] == "truncate":
            return min(cap, max(self.s["importance_floor"], weight))
        return weight if self.s["importance_floor"] <= weight <= cap else 0.0

    def old(self, i, t):
        return self.seqs[i].old[t] if self.seqs[i].old else self.lp[i][t]

    def term_weight(self, term):
        s = self.s
        if self.name.startswith("chord"):
            warm, decay = s["mu_warmup"] * self.total, s["mu_decay"] * self.total
            if self.step < warm:
                mu = s["mu_start"] * self.step / warm
            elif self.step >= warm + decay:
                mu = s["mu_end"]
            else:
                fall = (1 + math.cos(math.pi * (self.step - warm) / decay)) / 2
                mu = s["mu_end"] + (s["mu_start"] - s["mu_end"]) * fall
            if term in ("demo_sft", "chord_phi"):
                return mu
            if term == "rollout":
                return 1 - mu
        if term == "kl":
            return s["kl_coefficient"]
        if term == "entropy":
            if s["entropy_target"] is None or self.previous is None:
                return s["entropy_coefficient"]
            return s["entropy_coefficient"] * s["entropy_target"] / max(self.previous, 1e-4)
        if term == "hint":
            return s["hint_coefficient"]
        if term in ("demo_sft", "dft", "eaft"):
            return s["weight_sft"]
        if term == "distill":
            return s["weight_distill"]
        if term == "distill_demo":
            return s["weight_distill_demo"]
        if term == "demo_rl":
            return s["weight_demo_rl"]
        return s["weight_rollout"]

    # Losses of one sequence: values[t] and slopes[t][u] = d values[t] / d lp[u].

    def token_loss(self, term, i, t, tokens):
        s, lp, a = self.s, self.lp[i][t], self.advantage[i]
        p = math.exp(lp)
        if term == "demo_sft":
            w = self.entropy_weight(i, t, s["sft_coefficient"], s["sft_entropy_sign"], tokens)
            return -w * lp, -w
        if term == "dft":
            return -p * lp, -p
        if term == "eaft":
            return -self.h[i][t] / math.log(20) * lp, -self.h[i][t] / math.log(20)
        if term == "chord_phi":
            return -p * (1 - p) * lp, -p * (1 - p)
        if term == "hint":
            return -lp, -1.0
        if term == "demo_rl":
            a *= (1 - p) ** s["demo_focus"]
            if s["demo_ratio"] == "probability":
                return -a * p, -a * p
            if s["demo_ratio"] == "one":
                return -a, -a
            if s["demo_ratio"] == "mixture":
                value = -a * 2 * p / (1.5 * math.exp(self.old(i, t)) + 0.5)
                return value, value
            g = s["demo_shaping"]
            return -a * p / (p + g), -a * g * p / (p + g) ** 2
        if term == "kl":
            d = self.seqs[i].reference[t] - lp
            if s["kl_estimator"] == "k1":
                return -d, 1.0
            if s["kl_estimator"] == "k2":
                return d * d / 2, -d
            return math.exp(d) - 1 - d, 1 - math.exp(d)
        assert term.startswith("literal")
        ratio = math.exp(lp - self.old(i, t))
        score, slope = {
            "logprob": (lp, 1.0),
            "probability": (p, p),
            "ratio": (ratio, ratio),
            "log-ratio": (lp - self.old(i, t), 1.0),
        }[s["literal_score"]]
        sign = 1.0
        if self.seqs[i].correct:
            sign = -self.entropy_weight(i, t, s["rl_coefficient"], s["rl_entropy_sign"], tokens)
        sign *= self.importance(i, t)
        return sign * score, sign * slope

    def ratio_loss(self, term, i, tokens):
        """Terms with a ratio, which may be the whole sequence's."""
        s, n = self.s, len(tokens)
        values, slopes = [], []
        for t in tokens:
            a, factor = self.token_advantage(i, t), self.importance(i, t)
            if term == "srft_rollout" and a > 0:
                factor *= self.entropy_weight(
                    i, t, s["rl_coefficient"], s["rl_entropy_sign"], tokens
                )
            if term == "prefix_rollout" and not self.kept(i, t):
                factor = 0.0
            if s["ratio_level"] == "sequence":
                ratio = math.exp(sum(self.lp[i][u] - self.old(i, u) for u in tokens) / n)
                own = [ratio / n] * n
            else:
                ratio = math.exp(self.lp[i][t] - self.old(i, t))
                own = [ratio if u == t else 0.0 for u in tokens]
            if term == "kl":  # ratio * k3
                d = self.seqs[i].reference[t] - self.lp[i][t]
                k3, slope = math.exp(d) - 1 - d, 1 - math.exp(d)
                values.append(ratio * k3)
                slopes.append(
                    [
                        g * k3 + (ratio * slope if u == t else 0.0)
                        for g, u in zip(own, tokens, strict=True)
                    ]
                )
                continue
            if term == "cispo":
                weight = min(ratio, 1 + s["clip_high"])
                values.append(-weight * a * self.lp[i][t] * factor)
                slopes.append([-weight * a * factor if u == t else 0.0 for u in tokens])
                continue
            moving = True
            gain = ratio * a
            if term == "distill":
                gap = log_softmax(self.seqs[i].teacher[t])[self.seqs[i].targets[t]] - self.lp[i][t]
                bound = s["distill_clip"]
                a = gap if bound is None else min(max(gap, -bound), bound)
                gain = ratio * a
            elif s["clip"]:
                low, high = 1 - s["clip_low"], 1 + s["clip_high"]
                capped = ratio if s["ratio_cap"] is None else min(ratio, s["ratio_cap"])
                moving = capped == ratio
                gain = capped * a
                limited = min(max(ratio, low), high) * a
                if limited < gain:
                    gain, moving = limited, False
                elif limited == gain:
                    moving = moving or low < ratio < high
            values.append(-gain * factor)
            slopes.append([-a * d * factor if moving else 0.0 for d in own])
        return values, slopes

    def kept(self, i, t):
        q = self.seqs[i]
        if t >= q.prefix:
            return True
        entropy = q.old_entropy or self.h[i]
        if self.s["prefix_entropy_scope"] == "batch":
            return entropy[t] >= self.prefix_threshold()
        quota = math.ceil(self.s["prefix_entropy_share"] * q.prefix - 1e-9)
        above = sum(
            1
            for u in range(q.prefix)
            if entropy[u] > entropy[t] or (entropy[u] == entropy[t] and u < t)
        )
        return above < quota

    def prefix_threshold(self):
        """Of all prefix tokens of the step, the last that is kept."""
        every = sorted(
            (q.old_entropy or self.h[i])[t]
            for i, q in enumerate(self.seqs)
            for t in range(q.prefix)
        )
        dropped = int(len(every) * (1 - self.s["prefix_entropy_share"]) + 1e-9)
        return every[dropped] if dropped < len(every) else math.inf

    # All together.

    def terms(self):
        names = []
        distilling = "distill" in TERMS[self.name]
        for term in TERMS[self.name]:
            # A distillation's parts are there only with a weight.
            if distilling and self.term_weight(term) == 0:
                continue
            if term == "srft_rollout" and self.s["rollout_term"] == "literal":
                joint = self.s["literal_means"] == "joint"
                names += ["literal"] if joint else ["literal_right", "literal_wrong"]
            else:
                names.append(term)
        if self.name not in SUPERVISED_ONLY:
            names += ["kl"] if self.s["kl_coefficient"] else []
            names += ["entropy"] if self.s["entropy_coefficient"] else []
        return names

    def run(self):
        """(loss, gradient of every logit as gradient[i][t][k])."""
        loss = 0.0
        gradient = [[[0.0] * len(z) for z in q.logits] for q in self.seqs]
        for term in self.terms():
            weight, count = self.term_weight(term), self.count(term)
            for i, q in enumerate(self.seqs):
                tokens = self.covered(term, i)
                if not tokens:
                    continue
                scale = weight / count
                if self.average(term) == "sequence":
                    scale /= len(tokens)
                if term == "entropy":
                    for t in tokens:
                        loss -= scale * self.h[i][t]
                        for k, lp in enumerate(log_softmax(q.logits[t])):
                            gradient[i][t][k] += scale * math.exp(lp) * (lp + self.h[i][t])
                    continue
                full = term == "distill" and self.s["distill_form"] == "full"
                if full or term == "distill_demo":
                    beta, top_k = self.s["distill_beta"], self.s["distill_top_k"]
                    for t in tokens:
                        factor = scale * (self.importance(i, t) if term == "distill" else 1.0)
                        value, slope = divergence(q.logits[t], q.teacher[t], beta, top_k)
                        loss += factor * value
                        for k, d in enumerate(slope):
                            gradient[i][t][k] += factor * d
                    continue
                with_ratio = term == "kl" and self.s["kl_estimator"] == "k3-ratio"
                with_ratio |= term in (
                    "rollout",
                    "srft_rollout",
                    "prefix_rollout",
                    "cispo",
                    "distill",
                )
                if with_ratio:
                    values, slopes = self.ratio_loss(term, i, tokens)
                else:
                    pairs = [self.token_loss(term, i, t, tokens) for t in tokens]
                    values = [value for value, _ in pairs]
                    slopes = [
                        [pairs[x][1] if x == y else 0.0 for y in range(len(tokens))]
                        for x in range(len(tokens))
                    ]
                loss += scale * sum(values)
                for y, t in enumerate(tokens):
                    slope = scale * sum(row[y] for row in slopes)
                    for k, lp in enumerate(log_softmax(q.logits[t])):
                        hot = 1.0 if k == q.targets[t] else 0.0
                        gradient[i][t][k] += slope * (hot - math.exp(lp))
        return loss, gradient
