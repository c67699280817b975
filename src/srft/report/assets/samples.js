"use strict";
/* The sample browser: filters and a virtual list on the left, one prompt with its demonstration and
   rollouts on the right, every token coloured by a chosen quantity. */

const QUANTITIES = {
  entropy: { title: "entropy", unit: "nats", hue: "violet", of: (t) => t.entropy, text: DATA.models ? "Entropy of the base's distribution there" : "Entropy of the next-token distribution there" },
  surprise: { title: "probability", unit: "", hue: "amber", of: (t) => (t.logprob === null ? null : -t.logprob), text: "Darker: less probable (colour by −log p, figures in p)" },
  advantage: { title: "advantage", unit: "", signed: true, of: (t) => t.advantage, text: "Advantage of the response within its group" },
  loss: { title: "loss share", unit: "", signed: true, of: (t) => t.share, text: "The token's part in its response's sum of |loss|, with its sign" },
  base: { title: "change against the base", unit: "nats", signed: true, of: (t) => (t.base === null || t.logprob === null ? null : t.logprob - t.base), text: "log p under the model − log p under the base" },
  jsd: { title: "divergence", unit: "nats", hue: "violet", of: (t) => t.jsd, text: "Jensen–Shannon divergence of the two distributions there" },
  none: { title: "no colour", unit: "", of: () => null, text: "" },
};
const HUES = { violet: [124, 92, 214], amber: [217, 119, 6], plus: [22, 140, 92], minus: [205, 62, 74] };
const TOKENS_AT_ONCE = 1500;
const ROW = 58;

/* Blocks decoded so far, newest last; a few are kept. */
const blocks = {
  kept: new Map(),
  async get(i, keep = true) {
    if (!this.kept.has(i)) {
      this.kept.set(i, inflate(`samples-${i}`).then(readBlock));
      if (this.kept.size > 12) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(i);
  },
};

function readBlock(bytes) {
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  const planes = bytes.subarray(4 + size);
  const count = planes.length / (2 + 2 * header.quantities.length);
  const plane = (k) => planes.subarray(k * count, (k + 1) * count);
  const ids = Uint16Array.from(plane(0), (low, i) => low + 256 * planes[count + i]);
  const values = {};
  header.quantities.forEach((name, q) => {
    const high = plane(2 + 2 * q), low = plane(3 + 2 * q);
    const bits = new Uint32Array(count);
    for (let i = 0; i < count; i++) bits[i] = ((high[i] << 24) | (low[i] << 16)) >>> 0;
    values[name] = new Float32Array(bits.buffer);
  });
  let start = 0;
  for (const group of header.groups) {
    group.starts = group.responses.map((length) => { const at = start; start += length; return at; });
  }
  return { ...header, ids, values };
}

const responseText = (block, group, r) => {
  let text = "";
  for (let i = 0; i < group.responses[r]; i++) text += block.vocabulary[block.ids[group.starts[r] + i]];
  return text;
};

async function buildSamples(view) {
  const { total, shown } = DATA.samples;
  if (!shown) {
    view.append(el("p", { class: "note" }, "No samples were saved. `run.samples_every` and `run.samples_prompts` in the recipe say how many are."));
    return;
  }
  const index = await inflateJson("index");
  const starts = [];
  index.responses.reduce((at, n) => { starts.push(at); return at + n; }, 0);
  const state = { run: "", outcome: "", kind: "", stepFrom: "", stepTo: "", rewardFrom: "", rewardTo: "", lengthFrom: "", lengthTo: "", find: "", sort: "step", quantity: DATA.models ? "base" : "entropy", chosen: 0, ...memory.read().samples };
  const browser = new SampleBrowser(view, index, starts, state);
  if (shown < total) view.prepend(el("p", { class: "note" }, `${number(shown)} of ${number(total)} saved prompt groups are in this file, evenly chosen, to keep it small.`));
  browser.filter();
}

class SampleBrowser {
  constructor(view, index, starts, state) {
    Object.assign(this, { index, starts, state, rows: [], found: null, request: 0 });
    this.list = el("div", { class: "list", id: "sample-list", tabindex: 0, role: "listbox", "aria-label": "Prompt groups" });
    this.inner = el("div", { class: "inner" });
    this.list.append(this.inner);
    this.count = el("p", { class: "quiet count", id: "sample-count" });
    this.detail = el("div", { class: "detail", id: "sample-detail" });
    this.list.addEventListener("scroll", () => requestAnimationFrame(() => this.paintList()), { passive: true });
    new ResizeObserver(() => this.paintList()).observe(this.list);
    this.list.addEventListener("keydown", (event) => {
      const move = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
      if (move) { event.preventDefault(); this.step(move); }
    });
    view.append(el("div", { class: "browser" }, el("aside", {}, this.filters(), this.count, this.list), this.detail));
    this.hoverTokens();
  }

  has(column) { return this.index[column].some((v) => v !== null); }

  filters() {
    const set = (part) => { Object.assign(this.state, part); memory.write({ samples: this.state }); this.filter(); };
    const number = (key, label) => el("input", { id: key, type: "number", step: "any", placeholder: label, "aria-label": key, value: this.state[key], oninput: (event) => set({ [key]: event.target.value }) });
    const range = (title, from, to) => el("label", { class: "field range" }, el("span", {}, title), number(from, "from"), number(to, "to"));
    const kinds = el("div", { class: "row" },
      choice("Outcome", [["", "any"], ["right", "right"], ["wrong", "wrong"], ["truncated", "truncated"]], this.state.outcome, (outcome) => set({ outcome }), "outcome"),
      choice("Kind", [["", "any"], ["0", "rollout"], ["1", "demonstration"]], this.state.kind, (kind) => set({ kind }), "kind"));
    return el("div", { class: "filters" },
      el("input", { id: "find", type: "search", placeholder: "Search prompts and responses", value: this.state.find, oninput: (event) => { clearTimeout(this.timer); const find = event.target.value; this.timer = setTimeout(() => set({ find }), 180); } }),
      DATA.runs.length > 1 && choice("Run", [["", "all runs"], ...DATA.runs.map((r, i) => [i, r.name])], this.state.run, (run) => set({ run }), "run"),
      kinds,
      this.has("step") && range("Step", "stepFrom", "stepTo"), this.has("reward") && range("Reward", "rewardFrom", "rewardTo"), range("Length", "lengthFrom", "lengthTo"),
      el("div", { class: "row" },
        choice("Order", [["step", "step"], ["latest", "latest first"], ["reward", "mean reward"], ["-reward", "mean reward, high first"], ["length", "longest response"]], this.state.sort, (sort) => set({ sort }), "sort"),
        el("button", { id: "reset", class: "ghost", onclick: () => this.reset() }, "Clear")));
  }

  reset() {
    const keep = { quantity: this.state.quantity, chosen: this.state.chosen };
    for (const key of Object.keys(this.state)) this.state[key] = key === "sort" ? "step" : "";
    Object.assign(this.state, keep);
    memory.write({ samples: this.state });
    const old = this.list.parentElement.querySelector(".filters");
    old.replaceWith(this.filters());
    this.filter();
  }

  /* Whether response k passes the filters on responses. */
  passes(k) {
    const { index, state } = this;
    if (state.kind !== "" && index.kind[k] !== Number(state.kind)) return false;
    if (state.outcome === "right" && index.correct[k] !== 1) return false;
    if (state.outcome === "wrong" && index.correct[k] !== 0) return false;
    if (state.outcome === "truncated" && !index.truncated[k]) return false;
    return within(index.reward[k], state.rewardFrom, state.rewardTo) && within(index.length[k], state.lengthFrom, state.lengthTo);
  }

  async filter() {
    const { index, state, starts } = this;
    const request = ++this.request;
    const found = state.find ? await this.search(state.find.toLowerCase(), request) : null;
    if (request !== this.request) return;
    this.found = found;
    const rows = [];
    for (let g = 0; g < index.step.length; g++) {
      if (state.run !== "" && index.run[g] !== Number(state.run)) continue;
      if (!within(index.step[g], state.stepFrom, state.stepTo) || (found && !found.has(g))) continue;
      let any = index.responses[g] === 0;
      for (let k = starts[g]; k < starts[g] + index.responses[g] && !any; k++) any = this.passes(k);
      if (any) rows.push(g);
    }
    const over = (g, column) => index[column].slice(starts[g], starts[g] + index.responses[g]);
    const key = { reward: (g) => this.rewardOf(g), "-reward": (g) => -this.rewardOf(g), length: (g) => -Math.max(0, ...over(g, "length")), latest: (g) => -(index.step[g] ?? 0) }[state.sort];
    if (key) { const keys = new Map(rows.map((g) => [g, key(g)])); rows.sort((a, b) => keys.get(a) - keys.get(b)); }
    this.rows = rows;
    this.count.textContent = `${rows.length.toLocaleString("en-US")} of ${index.step.length.toLocaleString("en-US")} prompts`;
    this.inner.style.height = rows.length * ROW + "px";
    if (!rows.includes(state.chosen)) this.list.scrollTop = 0;
    this.paintList();
    await this.open(rows.includes(state.chosen) ? state.chosen : rows[0]);
  }

  rewardOf(g) {
    const { index, starts } = this;
    const rewards = [];
    for (let k = starts[g]; k < starts[g] + index.responses[g]; k++) if (!index.kind[k]) rewards.push(index.reward[k]);
    return mean(rewards) ?? 0;
  }

  /* Groups whose prompt or a response holds the text. Decodes every block once for the first search. */
  async search(text, request) {
    if (!this.texts) {
      this.count.textContent = "reading all samples …";
      this.texts = Promise.all(Array.from({ length: DATA.samples.blocks }, async (_, i) => {
        const block = readBlock(await inflate(`samples-${i}`));
        return block.groups.map((group) => [group.asked || "", group.prompt, group.answer || "", group.source, ...group.responses.map((_, r) => responseText(block, group, r))].join("\n").toLowerCase());
      }));
    }
    const texts = await this.texts;
    const found = new Set();
    this.index.step.forEach((_, g) => { if (texts[this.index.block[g]][this.index.row[g]].includes(text)) found.add(g); });
    return found;
  }

  paintList() {
    const top = this.list.scrollTop, height = this.list.clientHeight || 600;
    const first = Math.max(0, Math.floor(top / ROW) - 4);
    const last = Math.min(this.rows.length, Math.ceil((top + height) / ROW) + 4);
    this.inner.replaceChildren(...this.rows.slice(first, last).map((g, i) => this.row(g, first + i)));
  }

  row(g, place) {
    const { index, starts } = this;
    const marks = [];
    for (let k = starts[g]; k < starts[g] + Math.min(index.responses[g], 24); k++)
      marks.push(el("i", { class: (index.kind[k] ? "demo " : "") + (index.correct[k] ? "right" : index.correct[k] === 0 ? "wrong" : "") }));
    return el("div", {
      class: "item" + (g === this.state.chosen ? " chosen" : ""), role: "option", "aria-selected": String(g === this.state.chosen),
      style: { top: place * ROW + "px" }, onclick: () => this.open(g),
    }, el("div", { class: "head" }, index.head[g] || "(empty prompt)"),
      el("div", { class: "meta" }, el("span", {}, this.place(g)), DATA.runs.length > 1 && el("span", { class: "run" }, el("i", { class: "dot", style: { background: color(DATA.runs[index.run[g]].group) } }), DATA.runs[index.run[g]].name),
        el("span", { class: "marks" }, marks)));
  }

  /* Where a group comes from, in a word: its step, or its source where it has none. */
  place(g) {
    const { step, source } = this.index;
    return step[g] !== null ? `step ${number(step[g])}` : source[g].split("/").pop();
  }

  step(move) {
    const at = this.rows.indexOf(this.state.chosen);
    const next = this.rows[Math.max(0, Math.min(this.rows.length - 1, at + move))];
    const place = this.rows.indexOf(next);
    if (place * ROW < this.list.scrollTop) this.list.scrollTop = place * ROW;
    if ((place + 1) * ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = (place + 1) * ROW - this.list.clientHeight;
    this.open(next);
  }

  async open(g) {
    if (g === undefined) return this.detail.replaceChildren(el("p", { class: "quiet" }, "No sample passes the filters."));
    this.state.chosen = g;
    memory.write({ samples: this.state });
    this.paintList();
    const block = await blocks.get(this.index.block[g]);
    if (g === this.state.chosen) this.paintDetail(g, block);
  }

  paintDetail(g, block) {
    const group = block.groups[this.index.row[g]];
    this.tokens = group.responses.map((_, r) => this.tokensOf(g, block, group, r));
    const quantities = Object.entries(QUANTITIES).filter(([id, q]) => id === "none" || this.tokens.some((tokens) => tokens.some((t) => q.of(t) !== null)));
    if (!quantities.some(([id]) => id === this.state.quantity)) this.state.quantity = quantities[0][0];
    const chosen = QUANTITIES[this.state.quantity];
    const size = scaleOf(this.tokens.flat(), chosen);
    const columns = Object.entries(group.columns || {}).map(([k, v]) => el("span", { class: "chip" }, `${k}: ${typeof v === "string" ? v : JSON.stringify(v)}`));
    this.detail.replaceChildren(
      card(el("div", { class: "prompt-head" }, el("b", {}, "Prompt"), el("span", { class: "quiet" }, [this.index.step[g] !== null && `step ${number(this.index.step[g])}`, group.source].filter(Boolean).join(" · ")), columns, group.answer !== null && el("span", { class: "chip answer" }, "answer ", el("b", {}, group.answer))),
        el("pre", { class: "prompt", dir: "auto" }, group.asked || group.prompt),
        group.asked && group.asked.trim() !== group.prompt.trim() && el("details", { class: "frame" },
          el("summary", { class: "quiet" }, "as the model sees it, with the template"),
          el("pre", { class: "prompt", dir: "auto" }, group.prompt))),
      el("div", { class: "controls tight" },
        el("div", { class: "segments", role: "radiogroup", "aria-label": "Colour tokens by" }, quantities.map(([id, q]) =>
          el("button", { id: "by-" + id, role: "radio", "aria-checked": String(id === this.state.quantity), onclick: () => { this.state.quantity = id; memory.write({ samples: this.state }); this.paintDetail(g, block); } }, q.title))),
        legendOf(chosen, size, this.state.quantity)),
      el("div", { class: "responses" }, this.order(g, group).map((r) => this.response(g, group, r, size, chosen))));
  }

  /* Demonstrations first, then rollouts as saved. */
  order(g, group) {
    const kind = (r) => this.index.kind[this.starts[g] + r];
    return group.responses.map((_, r) => r).sort((a, b) => kind(b) - kind(a) || a - b);
  }

  tokensOf(g, block, group, r) {
    const k = this.starts[g] + r, start = group.starts[r], length = group.responses[r];
    const at = (name, i) => { const v = block.values[name]?.[start + i]; return v === undefined || Number.isNaN(v) ? null : v; };
    let total = 0;
    let scored = false;
    for (let i = 0; i < length; i++) { total += Math.abs(at("loss", i) ?? 0); scored ||= at("logprob", i) !== null; }
    return Array.from({ length }, (_, i) => {
      const loss = at("loss", i), told = scored && at("logprob", i) === null; // by a tool or the template
      return {
        i, told, text: block.vocabulary[block.ids[start + i]], logprob: at("logprob", i), entropy: at("entropy", i), loss,
        share: loss === null || !(total > 0) ? null : loss / total, base: at("base_logprob", i), jsd: at("jsd", i), advantage: told ? null : this.index.advantage[k],
      };
    });
  }

  response(g, group, r, size, chosen) {
    const k = this.starts[g] + r, { index } = this;
    const tokens = this.tokens[r];
    const body = el("div", { class: "tokens", dir: "auto", "data-response": r });
    const add = (from) => {
      const until = Math.min(tokens.length, from + TOKENS_AT_ONCE);
      for (let i = from; i < until; i++) body.append(token(tokens[i], size, chosen));
      if (until < tokens.length) body.append(el("button", { class: "more", onclick: (event) => { event.currentTarget.remove(); add(until); } }, `show the other ${number(tokens.length - until)} tokens`));
    };
    add(0);
    const right = index.correct[k], told = tokens.filter((t) => t.told).length;
    const dim = !this.passes(k);
    const names = index.kind.slice(this.starts[g], k).filter((v) => v === index.kind[k]).length + 1;
    const alike = index.kind.slice(this.starts[g], this.starts[g] + index.responses[g]).filter((v) => v === index.kind[k]).length;
    const label = group.labels ? group.labels[r] : (index.kind[k] ? "Demonstration" : "Rollout") + (alike > 1 || !index.kind[k] ? ` ${names}` : "");
    return el("article", { class: "response " + (index.kind[k] ? "demo" : "rollout") + (dim ? " dim" : "") },
      el("header", {}, el("b", {}, label),
        right !== null && el("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong"),
        index.truncated[k] ? el("span", { class: "wrong" }, "truncated") : null,
        el("small", {}, [index.reward[k] !== null && `reward ${number(index.reward[k])}`, index.advantage[k] !== null && `advantage ${number(index.advantage[k], 3)}`, index.length[k] && `${number(index.length[k])} tokens`, told > 0 && `${number(told)} of them a tool's, not trained`, mean(tokens.map((t) => t.entropy)) !== null && `${DATA.models ? "base's " : ""}mean entropy ${number(mean(tokens.map((t) => t.entropy)), 3)}`].filter(Boolean).join(" · "))),
      body);
  }

  hoverTokens() {
    this.detail.addEventListener("pointerover", (event) => {
      const span = event.target.closest?.("span[data-i]");
      if (!span) return tip.hide();
      const t = this.tokens[Number(span.parentElement.dataset.response)][Number(span.dataset.i)];
      const box = span.getBoundingClientRect();
      tip.show(box.left, box.bottom - 6, el("b", { class: "token" }, JSON.stringify(t.text)), tip.rows([
        ["position", number(t.i)],
        t.told && ["written by", "a tool, or the template around it: not trained"],
        t.logprob !== null && ["probability", `${number(Math.exp(t.logprob), 3)}  (log ${number(t.logprob, 3)})`],
        t.entropy !== null && ["entropy", `${number(t.entropy, 3)} nats`],
        t.advantage !== null && ["advantage", number(t.advantage, 3)],
        t.loss !== null && ["loss", `${number(t.loss, 3)}${t.share === null ? "" : `  (${percent(Math.abs(t.share))} of the response)`}`],
        t.base !== null && ["under the base", `${number(Math.exp(t.base), 3)}  (change ${number(t.logprob - t.base, 3)} nats)`],
        t.jsd !== null && ["divergence", `${number(t.jsd, 3)} nats`],
      ]));
    });
    this.detail.addEventListener("pointerleave", () => tip.hide());
  }
}

function within(value, from, to) {
  if (from === "" && to === "") return true;
  if (value === null || value === undefined) return false;
  return (from === "" || value >= Number(from)) && (to === "" || value <= Number(to));
}

/* Full colour stands for the 98th percentile of what is on the page (at least a hundredth). */
function scaleOf(tokens, chosen) {
  const sizes = tokens.map(chosen.of).filter((v) => v !== null).map(Math.abs).sort((a, b) => a - b);
  return sizes.length ? Math.max(sizes[Math.floor(0.98 * (sizes.length - 1))], 1e-2) : null;
}

function shade(value, size, chosen) {
  const hue = HUES[chosen.signed ? (value >= 0 ? "plus" : "minus") : chosen.hue];
  const strength = Math.min(1, Math.abs(value) / size);
  return `rgba(${hue.join(",")},${(0.72 * Math.sqrt(strength) * (strength > 0.002 ? 1 : 0)).toFixed(3)})`;
}

function token(t, size, chosen) {
  const value = chosen.of(t);
  const span = el("span", { "data-i": t.i, class: t.told ? "told" : "" }, visible(t.text));
  if (value !== null && size) span.style.backgroundColor = shade(value, size, chosen);
  return span;
}

/* Line ends and nothing else are marked, so that every token can be seen and hovered. */
function visible(text) {
  if (text === "") return "⏹";
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t").replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => String.fromCharCode(c.charCodeAt(0) === 127 ? 0x2421 : 0x2400 + c.charCodeAt(0)));
}

function legendOf(chosen, size, id) {
  if (!size || id === "none") return el("span", { class: "quiet" }, id === "none" ? "" : "not recorded for these responses");
  const ends = chosen.signed ? [-size, size] : [0, size];
  const steps = Array.from({ length: 21 }, (_, i) => ends[0] + ((ends[1] - ends[0]) * i) / 20);
  const text = (v) => (id === "surprise" ? "p = " + number(Math.exp(-v), 2) : (v > 0 && chosen.signed ? "+" : "") + number(v, 2));
  return el("span", { class: "scale", title: chosen.text }, el("small", {}, text(ends[0])),
    el("span", { class: "ramp" }, steps.map((v) => el("i", { style: { backgroundColor: shade(v, size, chosen) } }))),
    el("small", {}, text(ends[1]), chosen.unit && " " + chosen.unit), el("small", { class: "quiet" }, chosen.text));
}
