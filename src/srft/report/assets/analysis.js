"use strict";
/* The page of srft analyze: token shift, tokens one by one, learning dynamics, gradients. */

let FACTS = {};
const known = (e) => (e && e.value !== null ? e : { value: null, low: null, high: null });
const between = (e, show) => [show(known(e).value), known(e).low !== null && el("small", {}, ` ${show(e.low)} … ${show(e.high)}`)];
const shiftsOf = (kind) => FACTS.shifts.filter((s) => s.kind === kind);
const modelColor = (name) => color(DATA.models.indexOf(name));
const modelHead = (name) => el("span", {}, el("i", { class: "dot", style: { background: modelColor(name) } }), name);
const kindsOf = () => [...new Set(FACTS.shifts.map((s) => s.kind))];

/* Bars with intervals, side by side per group: rows [{label, note, bars: [{value, low, high, color, name}]}] in per cent. */
function barChart(title, rows, options = {}) {
  const legend = [...new Map(rows.flatMap((r) => r.bars).map((b) => [b.name, b.color]))];
  const top = options.top || Math.max(0.01, ...rows.flatMap((r) => r.bars).map((b) => Math.max(b.value ?? 0, b.high ?? 0)));
  const part = (v) => `${(100 * v) / top}%`;
  return el("figure", { class: "chart" }, el("figcaption", { title: options.what || null }, el("b", {}, title), el("span", {}, options.unit || "%")),
    el("div", { class: "legend" }, legend.map(([name, fill]) => el("span", { class: "key" }, el("i", { style: { background: fill } }), name))),
    el("div", { class: "families" }, rows.map((row) => [
      el("div", { class: "family" }, row.label, row.note && el("small", {}, " " + row.note)),
      el("div", { class: "bars" }, row.bars.map((b) => el("div", { class: "bar strong", title: `${b.name}: ${b.value === null ? "–" : percent(b.value, 2)}` },
        el("i", { style: { width: part(b.value ?? 0), background: b.color } }),
        b.low !== null && b.low !== undefined && el("s", { style: { left: part(b.low), width: part(b.high - b.low) } }),
        el("span", { style: { left: part(Math.max(b.value ?? 0, b.high ?? 0)) } }, b.value === null ? "–" : (100 * b.value).toFixed(100 * b.value < 10 ? 2 : 1))))),
    ])));
}

/* Kinds that files name themselves ("output of sft") have no plural. */
const counted = (n, kind) => ["demonstration", "rollout", "response"].includes(kind) ? `${number(n)} ${kind}${n === 1 ? "" : "s"}` : `${number(n)} × ${kind}`;

function buildShift(view) {
  view.append(el("p", { class: "lead" }, `Every response was shown to ${DATA.base} (the base) and to each model, prompt and preceding tokens given. `,
    `${Object.entries(DATA.responses).map(([kind, n]) => counted(n, kind)).join(", ")} from ${DATA.data.join(", ")}.`));
  for (const note of DATA.notes) view.append(el("p", { class: "note" }, note));
  if (!FACTS.shifts.length) view.append(el("p", { class: "quiet" }, "Only the base was given, so there is nothing to compare it with."));
  for (const kind of kindsOf()) {
    const shifts = shiftsOf(kind);
    view.append(section(`On ${counted(shifts[0].responses, kind)}, ${number(shifts[0].tokens)} tokens`, el("div", { class: "grid two" },
      card(changedChart(shifts)), card(entropyChart(shifts)), card(classChart(shifts)), card(positionChart(shifts))), el("div", { class: "gap" }), card(shiftTable(shifts))));
    view.append(section("Tokens that changed most", el("div", { class: "grid two" }, shifts.map(tokenTables))));
  }
  view.append(el("p", { class: "quiet foot" }, `Intervals: 95 %, bootstrap over responses. Written ${DATA.generated.replace("T", " ")} by srft ${DATA.version}.`));
}

const bar = (s, e) => ({ name: s.model, color: modelColor(s.model), ...known(e) });
const changedChart = (shifts) => barChart("Tokens whose probability changes by more than", Object.keys(shifts[0].changed).map((t) => ({
  label: t, bars: shifts.map((s) => bar(s, s.changed[t])) })), { what: "|Q(y) − P(y)| of the response's own token y" });
const classChart = (shifts) => barChart(`Changed by more than ${DATA.threshold}, by kind of text`, shifts[0].by_class.map((c) => ({
  label: c.name, note: `${(100 * c.share).toFixed(0)} % of text`, bars: shifts.map((s) => bar(s, s.by_class.find((x) => x.name === c.name)?.changed)) })));
const entropyChart = (shifts) => chart({
  title: "Mean |change| by the base's entropy", what: "Tenths of the tokens by the entropy of the base's distribution there", xTitle: "from the lowest entropy to the highest, in tenths of the tokens",
  series: shifts.map((s) => ({ name: `${s.model} · ρ ${number(s.entropy_correlation.value, 2)}`, color: modelColor(s.model), x: s.by_entropy.map((b, i) => i + 1), y: s.by_entropy.map((b) => b.change), dots: true })),
  zero: true, height: 230, legend: true,
});
const positionChart = (shifts) => chart({
  title: `Changed by more than ${DATA.threshold}, along the response`, unit: "share", xTitle: "place in the response, %",
  series: shifts.map((s) => ({ name: s.model, color: modelColor(s.model), x: s.by_position.map((b) => 50 * (b.low + b.high)), y: s.by_position.map((b) => b.changed), dots: true })),
  zero: true, height: 230, legend: true,
});

function shiftTable(shifts) {
  const p = (v) => percent(v), n = (v) => number(v, 3);
  const rows = [
    ["mean |change of probability|", "absolute_change", n], ["KL(base ‖ model), nats", "kl_forward", n], ["KL(model ‖ base), nats", "kl_backward", n],
    ["Jensen–Shannon divergence, nats", "jsd", n], ["total variation", "tv", n], ["most probable token is another", "top_changed", p],
    ["response's token ranks first before", "first_before", p], ["response's token ranks first after", "first_after", p],
    ["its probability before", "probability_before", n], ["its probability after", "probability_after", n],
    ["entropy before, nats", "entropy_before", n], ["entropy after, nats", "entropy_after", n],
  ].map(([label, key, show]) => [label, ...shifts.map((s) => el("td", {}, between(s.means[key], show)))]);
  rows.push(["rank correlation of entropy and |change|", ...shifts.map((s) => el("td", {}, between(s.entropy_correlation, n)))]);
  rows.push(["rank correlation of entropy and JSD", ...shifts.map((s) => el("td", {}, between(s.entropy_jsd_correlation, n)))]);
  rows.push(["share of all |change| on the fifth of highest entropy", ...shifts.map((s) => el("td", {}, between(s.top_fifth, p)))]);
  return table(["per token", ...shifts.map((s) => modelHead(s.model))], rows);
}

function tokenTables(s) {
  const side = (title, list) => el("div", {}, el("b", {}, title), list.length ? table(["token", "taken", "before", "after"],
    list.map((t) => [el("code", {}, JSON.stringify(t.text)), number(t.count), number(t.before, 3), number(t.after, 3)])) : el("p", { class: "quiet" }, "none"));
  return card(el("h3", {}, modelHead(s.model)), el("div", { class: "pair" }, side("more probable", s.raised), side("less probable", s.lowered)));
}

/* Learning dynamics. */
function buildDynamics(view) {
  const d = FACTS.dynamics;
  if (!d) return view.append(el("p", { class: "note" }, "No runs were given (runs=…), so there are no checkpoints to place."));
  const trajectories = d.trajectories.map((t, i) => ({
    name: t.name, color: color(i), points: t.points.map((p) => ({ label: p.step === null ? "end" : `step ${number(p.step)}`, at: p.distances })),
  }));
  const state = { x: d.references[0], y: d.references[1] || d.references[0], z: d.references[2] };
  const body = el("div", { class: "grid two" });
  const options = d.references.map((r) => [r, r]);
  const fill = () => body.replaceChildren(
    card(plane("Two distances", trajectories, state.x, state.y)),
    state.z ? card(space("Three distances", trajectories, [state.x, state.y, state.z])) : card(el("p", { class: "quiet" }, "A third reference gives the view in three dimensions.")));
  view.append(el("p", { class: "lead" }, "A model is the vector of the probabilities it gives to the response tokens; the distance of two models is the root mean square difference of their vectors. Points grow with the step."),
    el("div", { class: "controls" }, choice("x", options, state.x, (v) => { state.x = v; fill(); }, "axis-x"), choice("y", options, state.y, (v) => { state.y = v; fill(); }, "axis-y"),
      state.z && choice("z", options, state.z, (v) => { state.z = v; fill(); }, "axis-z"),
      el("div", { class: "legend" }, trajectories.map((t) => el("span", { class: "key" }, el("i", { style: { background: t.color } }), t.name)))), body,
    section("Distances between the references", card(table(["", ...d.references], d.references.map((r) => [r, ...d.references.map((q) => number(d.between[r]?.[q], 3))])))));
  fill();
}

/* Gradients. */
function buildGradient(view) {
  const g = FACTS.gradient;
  if (!g) return view.append(el("p", { class: "note" }, "No gradient was computed."));
  const terms = g.terms.filter((t) => t.tokens);
  const paint = (t) => color(t.source === "sft" ? 1 : t.term.includes("demo") ? 2 : t.source === "rl" ? 0 : 7);
  const rows = (name) => (terms[0]?.touched || []).map((x, i) => ({ label: `> ${number(x.threshold)}`, bars: terms.map((t) => ({ name: t.term, color: paint(t), value: t.touched[i][name], low: null, high: null })) }));
  view.append(el("p", { class: "lead" }, `The gradient of each token's loss at the logits, under ${g.method} on ${g.model}: ${number(g.sequences)} responses, ${number(g.vocabulary)} vocabulary entries. For −log p it is p minus one-hot: it reaches every entry that has probability.`),
    el("div", { class: "grid three" },
      card(barChart("Positions touched", rows("positions"), { top: 1 })),
      card(barChart("Vocabulary touched at a position", rows("vocabulary"), { what: "Mean over positions of the share of entries above the threshold" })),
      card(barChart("Vocabulary touched anywhere", rows("union")))), el("div", { class: "gap" }),
    card(table(["term", "kind", "tokens", "mean sum of |gradient|", "entries that hold 90 %"],
      g.terms.map((t) => [t.term, t.source, number(t.tokens), number(t.size, 3), number(t.entries_90, 3)]))));
}

async function openAnalysis() {
  FACTS = await inflateJson("facts");
  const names = [DATA.base, ...DATA.models];
  openViews(names.join(" · "), el("span", { class: "chips" }, el("span", { class: "chip" }, `base: ${DATA.base}`)), [
    { id: "shift", title: "Token shift", build: buildShift },
    { id: "tokens", title: "Tokens", build: buildSamples },
    { id: "dynamics", title: "Learning dynamics", build: buildDynamics },
    { id: "gradient", title: "Gradient", build: buildGradient },
  ]);
}
addEventListener("DOMContentLoaded", () => openAnalysis().catch((error) => {
  document.getElementById("main").replaceChildren(el("p", { class: "note bad" }, "The page could not be opened: " + error.message));
  console.error(error);
}));
