"""Time of one step, part by part, in seconds: a roofline with the assumptions' shares of the peaks.

generate   prompts (arithmetic), then a token of every row at a time: whatever is slower of
           reading the weights and the keys and values, and the arithmetic; plus launching
score      what verifying takes beyond generation, beside which it runs
train      2 FLOPs a parameter and token forward, 4 backward, the forward pass once more with
           checkpointing; attention and the head; gathering that computing does not hide
transfer   new weights to the engine
"""

from __future__ import annotations

from dataclasses import dataclass

from srft.planning.memory import Case, base_weight_bytes

_LAUNCH_US = {"vllm": 8.0, "embedded": 250.0, "cpu": 60.0}


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float
    how: str


@dataclass(frozen=True)
class Times:
    """ahead: the next step's rollouts are generated while this one trains."""

    parts: tuple[Part, ...]
    tokens: float
    ahead: bool = False

    @property
    def seconds(self) -> float:
        seconds = {part.name: part.seconds for part in self.parts}
        total = sum(seconds.values())
        hidden = min(seconds.get("generate", 0.0), seconds.get("train", 0.0))
        return total - hidden if self.ahead else total

    @property
    def tokens_per_second(self) -> float:
        """Generated and trained tokens of all processes."""
        return self.tokens / self.seconds if self.seconds else 0.0


def plan_times(case: Case, rows: int) -> Times:
    """rows: rollouts that the engine of a process decodes side by side."""
    generate = _generate(case, rows)
    parts = [generate, _score(case, generate.seconds), _train(case), _transfer(case)]
    usual = case.work.usual
    everything = usual.total + usual.prompts * usual.group * usual.response
    shown = tuple(p for p in parts if p.seconds > 0)
    return Times(shown, everything * case.layout.world, case.config.rollout.ahead > 0)


def engines(case: Case) -> float:
    """Engines that share the rollouts of a step: one a process, or the servers' groups."""
    if case.engine != "vllm-server":
        return case.layout.world / (
            case.config.rollout.vllm.tensor_parallel_size if case.vllm_here else 1
        )
    parallel = case.config.rollout.vllm.tensor_parallel_size
    devices = case.assumed.server_devices or parallel * len(case.config.rollout.servers)
    return devices / parallel


def _generate(case: Case, rows: int) -> Part:
    usual, shape, device, assumed = case.work.usual, case.shape, case.device, case.assumed
    share = case.layout.world / engines(case)
    rollouts = usual.prompts * usual.group * share
    if not rollouts:
        return Part("generate", 0.0, "")
    if not rows:
        return Part("generate", 0.0, "no room for a single sequence")
    rows = min(
        rows if case.samples_itself else max(1, round(rows * share)), max(1, round(rollouts))
    )
    parallel = 1 if case.samples_itself else case.config.rollout.vllm.tensor_parallel_size
    flops = device.tflops * 1e12 * parallel
    weights = shape.parameters - (shape.head if not shape.tied else 0)  # the embedding is looked up
    prefill = 2 * weights * usual.prompts * share * usual.prompt / (flops * assumed.prefill_mfu)
    launch = assumed.decode_us_per_layer
    if launch is None:
        launch = _LAUNCH_US[
            "cpu" if device.is_cpu else "embedded" if case.samples_itself else "vllm"
        ]

    def step(running: float, context: float) -> float:
        read = case.engine_itemsize * (weights + running * context * shape.kv_width)
        memory = read / (device.bandwidth_gbs * 1e9 * parallel * assumed.decode_bandwidth)
        scores = 4 * shape.attention_width * context
        arithmetic = running * (2 * weights + scores) / (flops * assumed.prefill_mfu)
        return max(memory, arithmetic) + launch * 1e-6 * shape.layers

    # Rows are refilled until nothing waits; then the longest run on while the others end.
    limit = case.config.rollout.max_tokens
    full = usual.response * rollouts / rows
    tail = limit - usual.response
    context = usual.prompt + usual.response / 2
    seconds = prefill + full * step(rows, context) + tail * step(rows / 4, usual.prompt + limit / 2)
    return Part(
        "generate",
        seconds,
        f"{rollouts:,.0f} rollouts an engine, {rows} side by side, "
        f"{(full + tail):,.0f} decoding steps of {step(rows, context) * 1e3:,.1f} ms",
    )


def _score(case: Case, generating: float) -> Part:
    usual = case.work.usual
    workers = case.config.reward.workers or 4
    work = usual.prompts * usual.group * case.assumed.score_seconds / workers
    left = max(0.0, work - generating) + case.assumed.score_seconds * bool(usual.group)
    return Part("score", left, "after the last rollout; the rest runs beside generation")


def train_flops(case: Case) -> float:
    """Arithmetic of a step of one process, FLOPs."""
    usual, shape, work = case.work.usual, case.shape, case.work
    kept = 1 - case.assumed.skipped_share
    lora = case.config.model.lora
    body = shape.parameters - shape.outer
    forward = 2 * body * usual.total
    forward += 2 * usual.context * shape.attention_width * usual.total * usual.padding
    head = 2 * shape.head * usual.responses
    if lora:
        forward += 2 * shape.trained * usual.total
    backward = forward * (1 if lora else 2)
    # The fused head makes its logits again, then two products for gradients (one under adapters).
    head_backward = head * (2 if lora else 3)
    again = forward if case.config.model.gradient_checkpointing else 0.0
    once = forward + head
    return kept * (once + backward + head_backward + again + work.passes * once)


def _train(case: Case) -> Part:
    assumed, layout, device, shape = case.assumed, case.layout, case.device, case.shape
    flops = train_flops(case)
    computing = flops / (device.tflops * 1e12 * assumed.training_mfu)
    gathering = _gathering(case)
    visible = max(0.0, gathering - assumed.overlap * computing)
    # Weights, two moments and gradients are read, all but the gradients written.
    moved = 7 * case.trained_itemsize * shape.trained / layout.shard
    stepping = case.config.train.optimizer_steps_per_batch * moved
    stepping /= device.bandwidth_gbs * 1e9 * assumed.update_bandwidth
    how = f"{flops / 1e12:,.3g} TFLOP in {computing:,.3g} s, optimizer {stepping:,.2g} s"
    if gathering:
        how += f", gathering {gathering:,.3g} s of which {visible:,.3g} s are not hidden"
    return Part("train", computing + visible + stepping, how)


def _gathering(case: Case) -> float:
    """Seconds that a process's link is busy with weights and gradients in one step."""
    layout, shape, assumed = case.layout, case.shape, case.assumed
    if layout.world == 1:
        return 0.0
    fast = case.device.link_gbs * 1e9 * assumed.link_share
    slow = min(assumed.network_gbs, case.device.link_gbs) * 1e9 * assumed.link_share
    link = fast if layout.shard <= layout.node else slow
    n = layout.shard
    passes = (2 if layout.reshard else 1) + case.work.passes
    weights = shape.parameters * layout.gather.itemsize * passes * (n - 1) / n
    gradients = shape.trained * layout.reduce.itemsize * (n - 1) / n
    seconds = case.work.micro_batches * (weights + gradients) / link
    if layout.replicate > 1:
        copies = layout.replicate
        shares = 2 * shape.trained * layout.reduce.itemsize / n * (copies - 1) / copies
        seconds += case.work.micro_batches * shares / slow
    return seconds


def _transfer(case: Case) -> Part:
    layout, shape, device, assumed = case.layout, case.shape, case.device, case.assumed
    if not case.work.usual.group:
        return Part("transfer", 0.0, "")
    own = device.bandwidth_gbs * 1e9 * 0.5 * assumed.link_share
    gather = device.link_gbs if layout.shard <= layout.node else assumed.network_gbs
    gather *= 1e9 * assumed.link_share
    whole = base_weight_bytes(case)
    collected = whole * (layout.shard - 1) / layout.shard / gather
    if case.samples_itself:
        if layout.shard == 1:
            return Part("transfer", 0.0, "")
        return Part("transfer", collected + whole / own, "gathered and copied to the replica")
    sent = shape.parameters * case.engine_itemsize
    link = (
        own
        if case.vllm_here
        else min(assumed.network_gbs, device.link_gbs) * 1e9 * assumed.link_share
    )
    return Part(
        "transfer",
        collected + sent / link,
        f"{sent / 1e9:,.3g} GB to " + ("vLLM in the process" if case.vllm_here else "the servers"),
    )
