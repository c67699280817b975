"use strict";
/* The report of runs: summary, curves, loss terms, comparison, settings. Samples: samples.js. */

const RUNS = DATA.runs, GROUPS = DATA.groups;
const figureOf = (key) => DATA.figures[key] || { title: key, unit: "", what: "", group: "Other" };
let CURVES = [];

/* What the horizontal axis can be: the metric that holds it, null for the step itself. */
const AXES = [
  ["step", "step", null],
  ["sampled", "sampled tokens", "total/rollout_tokens"],
  ["trained", "trained tokens", "total/trained_tokens"],
  ["seconds", "seconds", "total/seconds"],
];

/* x and y of one metric of one run, thinned to points that have both. */
function seriesOf(run, key, axis) {
  const { steps, columns } = CURVES[run];
  if (!columns[key]) return null;
  const total = AXES.find((a) => a[0] === axis)?.[2];
  const xs = total ? columns[total] : steps;
  if (!xs) return null;
  const keep = xs.map((x, i) => i).filter((i) => xs[i] !== null);
  return { x: keep.map((i) => xs[i]), y: keep.map((i) => columns[key][i]), steps: keep.map((i) => steps[i]) };
}

/* Mean over the runs of a group at each step, with the range from the lowest to the highest. */
function overSeeds(group, key, axis) {
  const parts = group.runs.map((r) => seriesOf(r, key, axis)).filter(Boolean);
  if (parts.length < 2) return parts[0] || null;
  const at = new Map();
  for (const part of parts) part.steps.forEach((step, i) => {
    if (part.y[i] === null) return;
    if (!at.has(step)) at.set(step, { x: [], y: [] });
    at.get(step).x.push(part.x[i]);
    at.get(step).y.push(part.y[i]);
  });
  const steps = [...at.keys()].sort((a, b) => a - b);
  const cell = (step) => at.get(step);
  return {
    steps, x: steps.map((s) => mean(cell(s).x)), y: steps.map((s) => mean(cell(s).y)),
    low: steps.map((s) => Math.min(...cell(s).y)), high: steps.map((s) => Math.max(...cell(s).y)),
  };
}

/* The lines of one metric: a group each, or every run by itself. */
function linesOf(key, state) {
  const window = (n) => Math.round((state.smooth / 100) * n);
  const draw = (part, name, i, dash) => {
    const w = window(part.y.length);
    return {
      ...part, name, color: color(i), dash,
      y: smooth(part.y, w), faint: !part.low && w > 1 ? part.y : null,
      low: part.low && smooth(part.low, w), high: part.high && smooth(part.high, w),
    };
  };
  if (state.seeds === "each") return RUNS.map((run, r) => {
    const part = seriesOf(r, key, state.axis);
    return part && draw(part, run.name, RUNS.length > 8 ? run.group : r);
  }).filter(Boolean);
  return GROUPS.map((group, g) => {
    const part = overSeeds(group, key, state.axis);
    const name = group.runs.length > 1 ? `${group.name} · ${group.runs.length} seeds` : groupLabel(group);
    return part && draw(part, name, g);
  }).filter(Boolean);
}
const groupLabel = (group) => (GROUPS.length === RUNS.length && RUNS.length > 1
  && new Set(GROUPS.map((g) => g.name)).size < GROUPS.length) ? RUNS[group.runs[0]].name : group.name;

function metricChart(key, state, options = {}) {
  const f = figureOf(key);
  const lines = linesOf(key, state);
  return chart({
    title: f.title, what: [f.what, key].filter(Boolean).join("\n"), unit: f.unit, series: lines,
    xTitle: AXES.find((a) => a[0] === state.axis)[1], log: state.log, marks: stageMarks(state),
    zero: !/^(loss|logprob|total)/.test(key) && f.unit !== "share" ? !state.log : false, ...options,
  });
}
const stageMarks = (state) => (state.axis === "step" && RUNS.length === 1 ? CURVES[0].stages : []);

/* Evaluation: the first and the last record of each name. */
function evaluationOf(run, name) {
  const found = run.evaluations.find((e) => e.name === name);
  const records = (found ? found.records : []).filter((e) => e.accuracy !== null);
  return { first: records.length > 1 ? records[0] : null, last: records[records.length - 1] || null, records };
}
const evaluationNames = () => [...new Set(RUNS.flatMap((r) => r.evaluations.map((e) => e.name)))];

/* Summary. */
function buildSummary(view) {
  view.append(...RUNS.length === 1 ? [headline(RUNS[0])] : [groupTable()]);
  for (const name of evaluationNames()) {
    const title = RUNS.some((r) => evaluationOf(r, name).first) ? "Before and after" : "After training";
    view.append(section(evaluationNames().length > 1 ? `${title}: ${name}` : title, card(beforeAfter(name))));
  }
  if (DATA.problems.length) view.append(problemByProblem());
  const state = { axis: "step", smooth: 8, seeds: "band", log: false };
  const keys = ["reward/accuracy", "reward/mean", "entropy/rollouts", "rollout/entropy", "rollout/length_mean", "loss"]
    .filter((key) => CURVES.some((c) => c.columns[key]));
  const drop = new Set([keys.includes("reward/accuracy") && "reward/mean", keys.includes("entropy/rollouts") && "rollout/entropy"]);
  const shown = keys.filter((key) => !drop.has(key));
  if (shown.length) view.append(section("Course of training",
    el("div", { class: "grid four" }, shown.map((key) => card(metricChart(key, state, { height: 170 }))))));
  view.append(section("What was run", el("div", { class: "grid two" }, RUNS.map(runCard))));
  const notes = RUNS.flatMap((run) => run.notes.map((note) => [run.name, note]));
  if (notes.length) view.append(section("What is missing", card(el("ul", { class: "plain" },
    notes.map(([name, note]) => el("li", {}, RUNS.length > 1 && el("b", {}, name + ": "), note))))));
  view.append(el("p", { class: "quiet foot" }, `Written ${DATA.generated.replace("T", " ")} by srft ${DATA.version}.`));
}

function headline(run) {
  const name = run.evaluations[0]?.name;
  const { first, last } = evaluationOf(run, name);
  const gain = first && last ? last.accuracy - first.accuracy : null;
  const tile = (title, value, below) => el("div", { class: "tile" }, el("span", {}, title), el("b", {}, value), el("small", {}, below));
  const c = CURVES[0].columns;
  const tail = (key) => mean((c[key] || []).slice(-Math.max(1, Math.round((c[key] || []).length / 10))));
  return el("div", { class: "tiles" }, [
    last && tile("Accuracy after training", percent(last.accuracy),
      [gain !== null && el("em", { class: gain >= 0 ? "up" : "down" }, `${gain >= 0 ? "+" : "−"}${(100 * Math.abs(gain)).toFixed(1)} points`),
        last.interval && ` ${(100 * last.interval[0]).toFixed(1)} … ${(100 * last.interval[1]).toFixed(1)}`]),
    tile("Steps", number(run.steps) + (run.planned ? ` / ${number(run.planned)}` : ""), run.method),
    c["reward/accuracy"] && tile("Rollout accuracy", percent(tail("reward/accuracy")), "mean of the last tenth"),
    run.totals["total/rollout_tokens"] !== undefined && tile("Sampled tokens", big(run.totals["total/rollout_tokens"]), "rollouts"),
    run.totals["total/trained_tokens"] !== undefined && tile("Trained tokens", big(run.totals["total/trained_tokens"]), "prompts and responses"),
    run.totals["total/seconds"] !== undefined && tile("Time", duration(run.totals["total/seconds"]), c["tokens_per_second"] ? `${big(tail("tokens_per_second"))} tokens/s` : ""),
  ].filter(Boolean));
}

function groupTable() {
  const name = evaluationNames()[0];
  const total = (group, key) => mean(group.runs.map((r) => RUNS[r].totals[key] ?? null));
  const spread = (values) => values.length > 1 ? ` (${percent(Math.min(...values))} … ${percent(Math.max(...values))})` : "";
  return section("Result", card(table(
    ["Method", "Runs", "Steps", "Before", "After", "Change", "Sampled tokens", "Trained tokens", "Time"],
    GROUPS.map((group, g) => {
      const results = group.runs.map((r) => evaluationOf(RUNS[r], name)).filter((e) => e.last);
      const before = results.filter((e) => e.first).map((e) => e.first.accuracy);
      const after = results.map((e) => e.last.accuracy);
      const change = before.length === after.length && before.length ? mean(after) - mean(before) : null;
      return [[el("i", { class: "dot", style: { background: color(g) } }), group.name], group.runs.length,
        number(Math.max(...group.runs.map((r) => RUNS[r].steps))), percent(mean(before)),
        [el("b", {}, percent(mean(after))), el("small", {}, spread(after))],
        change === null ? "–" : el("em", { class: change >= 0 ? "up" : "down" }, `${change >= 0 ? "+" : "−"}${(100 * Math.abs(change)).toFixed(1)}`),
        big(total(group, "total/rollout_tokens")), big(total(group, "total/trained_tokens")), duration(total(group, "total/seconds"))];
    }))));
}

/* A row a family: a bar before and after where one run is shown, a bar per group otherwise. */
function beforeAfter(name) {
  const families = [...new Set(RUNS.flatMap((r) => evaluationOf(r, name).records.flatMap((e) => Object.keys(e.families))))];
  const value = (e, family) => (e ? (family === null ? e.accuracy : e.families[family] ?? null) : null);
  const bars = (family) => GROUPS.flatMap((group, g) => {
    const results = group.runs.map((r) => evaluationOf(RUNS[r], name));
    const before = mean(results.map((e) => value(e.first, family)));
    const after = mean(results.map((e) => value(e.last, family)));
    const interval = group.runs.length === 1 && family === null ? results[0].last?.interval : null;
    return [
      before !== null && (GROUPS.length === 1 || g === 0) && bar(before, "var(--before)", null, `before: ${percent(before)}`),
      after !== null && bar(after, color(g), interval, `${group.name}, after: ${percent(after)}`, true),
    ].filter(Boolean);
  });
  const bar = (v, fill, interval, title, strong) => el("div", { class: "bar" + (strong ? " strong" : ""), title },
    el("i", { style: { width: `${100 * v}%`, background: fill } }),
    interval && el("s", { style: { left: `${100 * interval[0]}%`, width: `${100 * (interval[1] - interval[0])}%` } }),
    el("span", { style: { left: `${100 * Math.max(v, interval ? interval[1] : 0)}%` } }, (100 * v).toFixed(1)));
  const first = RUNS.map((r) => evaluationOf(r, name).first).find(Boolean);
  const legend = el("div", { class: "legend" },
    first && el("span", { class: "key" }, el("i", { style: { background: "var(--before)" } }), `before (step ${first.step})`),
    GROUPS.map((group, g) => el("span", { class: "key" }, el("i", { style: { background: color(g) } }),
      GROUPS.length > 1 ? group.name : `after (step ${evaluationOf(RUNS[0], name).last?.step ?? "–"})`)));
  const rows = [[null, "overall"], ...families.map((f) => [f, f])].map(([family, text]) =>
    [el("div", { class: "family" + (family === null ? " all" : "") }, text), el("div", { class: "bars" }, bars(family))]);
  return [legend, el("div", { class: "families" }, rows)];
}

/* Problems of one set often begin alike. */
const lastWords = (text) => text.trim().replace(/\s+/g, " ").replace(/^.+(?=.{60}$)/, "… ");

/* One problem, answered at the first and at the last step: side by side, and every run's last one. */
function problemByProblem() {
  const body = el("div", { id: "problem" });
  const mark = (a) => (a.correct === null ? "?" : a.correct ? "✓" : "✗");
  const answer = (a, title, fill) => el("article", { class: "response", style: { borderTopColor: fill } },
    el("header", {}, el("b", {}, title), RUNS.length > 1 && el("span", { class: "quiet" }, RUNS[a.run].name),
      a.correct !== null && el("span", { class: a.correct ? "right" : "wrong" }, mark(a), a.correct ? " right" : " wrong"),
      a.truncated && el("span", { class: "wrong" }, "truncated"),
      el("small", {}, [a.reward !== null && `reward ${number(a.reward)}`, a.tokens !== null && `${number(a.tokens)} tokens`].filter(Boolean).join(" · "))),
    el("div", { class: "tokens", dir: "auto" }, a.text));
  const fill = (i) => {
    const { set, asked, answer: truth, at } = DATA.problems[i];
    const before = at[0];
    body.replaceChildren(card(
      el("div", { class: "prompt-head" }, el("b", {}, "Asked"), el("span", { class: "quiet" }, set), truth !== null && el("span", { class: "chip answer" }, "answer ", el("b", {}, truth))),
      el("pre", { class: "prompt", dir: "auto" }, asked)),
    el("div", { class: "responses" }, answer(before, `Before (step ${number(before.step)})`, "var(--before)"),
      at.filter((_, k) => k % 2).map((a) => answer(a, `After (step ${number(a.step)})`, color(RUNS[a.run].group)))));
  };
  const names = DATA.problems.map((p, i) => [i, `${i + 1}: ${p.at.length === 2 ? p.at.map(mark).join(" → ") + " " : ""}${lastWords(p.asked)}`]);
  const pick = choice("Problem", names, 0, (i) => fill(Number(i)), "problem-choice");
  fill(0);
  return section("Answers before and after", el("div", { class: "controls tight" }, pick), body);
}

function runCard(run) {
  const e = run.environment || {};
  const pairs = (object) => Object.entries(object || {}).map(([k, v]) => `${k} ${typeof v === "object" ? JSON.stringify(v) : v}`).join(" · ");
  const setting = (key) => run.config.find(([k]) => k === key)?.[1];
  const rows = [
    ["method", run.method], ["seed", run.seed], ["model", setting("model.path")], ["data", e.given?.data?.join(", ") ?? setting("data.train")],
    ["learning rate", setting("train.learning_rate")], ["prompts × rollouts", setting("train.prompts_per_step") && `${setting("train.prompts_per_step")} × ${setting("rollout.group_size") ?? setting("rollout.n") ?? "?"}`],
    ["started", e.started], ["machine", typeof e.machine === "object" ? pairs(e.machine) : e.machine], ["versions", pairs(e.versions)],
  ].filter(([, v]) => v !== undefined && v !== null && v !== "");
  return card(el("h3", {}, el("i", { class: "dot", style: { background: color(run.group) } }), run.name),
    el("dl", { class: "facts" }, rows.map(([k, v]) => [el("dt", {}, k), el("dd", {}, typeof v === "object" ? JSON.stringify(v) : String(v))])),
    e.command && el("pre", {}, e.command));
}

/* Curves. */
function buildCurves(view) {
  const state = { axis: "step", smooth: 5, seeds: "band", log: false, find: "", ...memory.read().curves };
  const body = el("div", {});
  const change = (part) => { Object.assign(state, part); memory.write({ curves: state }); fill(); };
  const axes = AXES.filter(([, , key]) => !key || CURVES.some((c) => c.columns[key]));
  view.append(el("div", { class: "controls" },
    choice("Axis", axes.map(([id, text]) => [id, text]), state.axis, (axis) => change({ axis }), "axis"),
    RUNS.length > GROUPS.length && choice("Seeds", [["band", "mean and range"], ["each", "each run"]], state.seeds, (seeds) => change({ seeds }), "seeds"),
    el("label", { class: "field" }, el("span", {}, "Smoothing"), el("input", { id: "smooth", type: "range", min: 0, max: 30, value: state.smooth, oninput: (event) => change({ smooth: Number(event.target.value) }) })),
    el("label", { class: "field check" }, el("input", { id: "log", type: "checkbox", checked: state.log, onchange: (event) => change({ log: event.target.checked }) }), el("span", {}, "logarithmic")),
    el("input", { id: "find-metric", type: "search", placeholder: "Find a metric", value: state.find, oninput: (event) => change({ find: event.target.value }) })), body);
  const keys = [...new Set(CURVES.flatMap((c) => Object.keys(c.columns)))]
    .filter((key) => !/\/(min|max)$/.test(key) || !CURVES.some((c) => c.columns[key.replace(/\/(min|max)$/, "")]));
  const fill = () => {
    const wanted = keys.filter((key) => (key + " " + figureOf(key).title).toLowerCase().includes(state.find.toLowerCase()));
    const headings = DATA.headings.filter((heading) => wanted.some((key) => figureOf(key).group === heading));
    body.replaceChildren(...headings.map((heading) => section(heading,
      el("div", { class: "grid three" }, wanted.filter((key) => figureOf(key).group === heading).map((key) => card(metricChart(key, state)))))));
    if (!wanted.length) body.append(el("p", { class: "quiet" }, keys.length ? "No metric of that name." : "No training step has been recorded yet."));
    if (CURVES.some((c) => c.window > 1)) body.append(el("p", { class: "quiet" }, "Long runs are shown as means over windows of steps."));
  };
  fill();
}

/* Loss terms of one run: their course, their shares, and what weighs them. */
function buildTerms(view) {
  const state = { run: 0, smooth: 8 };
  const body = el("div", {});
  const change = (part) => { Object.assign(state, part); fill(); };
  view.append(el("div", { class: "controls" },
    RUNS.length > 1 && choice("Run", RUNS.map((r, i) => [i, r.name]), state.run, (run) => change({ run: Number(run) }), "term-run"),
    el("label", { class: "field" }, el("span", {}, "Smoothing"), el("input", { type: "range", min: 0, max: 30, value: state.smooth, oninput: (event) => change({ smooth: Number(event.target.value) }) }))), body);
  const fill = () => {
    const { steps, columns, stages } = CURVES[state.run];
    const width = Math.round((state.smooth / 100) * steps.length);
    const make = (key, name, fill, extra = {}) => columns[key] && {
      name, color: fill, x: steps, y: smooth(columns[key], width), faint: width > 1 ? columns[key] : null, ...extra,
    };
    const terms = Object.keys(columns).filter((k) => k.startsWith("loss/"));
    const paint = (key) => color(DATA.terms[key] ?? 7);
    const label = (key) => figureOf(key).title.replace(/^Loss: /, "");
    const size = steps.map((_, i) => terms.reduce((sum, key) => sum + Math.abs(columns[key][i] ?? 0), 0));
    const shares = terms.map((key) => ({
      name: label(key), color: paint(key), x: steps,
      y: smooth(columns[key].map((v, i) => (size[i] > 0 ? Math.abs(v ?? 0) / size[i] : null)), width),
    }));
    const banded = (key, fill) => make(key, figureOf(key).title, fill, { faint: null, low: columns[`${key}/min`], high: columns[`${key}/max`] });
    const panels = [
      terms.length && chart({ title: "Each term, weights included", what: "Their sum is the loss", series: [...terms.map((k) => make(k, label(k), paint(k))), make("loss", "whole loss", "var(--ink)", { thin: true })].filter(Boolean), marks: stages, height: 250, legend: true }),
      terms.length && chart({ title: "Share of each term in the sum of absolute values", unit: "share", series: shares, stack: true, zero: true, marks: stages, height: 250, legend: true }),
      ...[["weight/sft", color(1)], ["weight/rl", color(0)]].filter(([key]) => columns[key]).map(([key, fill]) => chart({
        title: `${figureOf(key).title}: mean and range over tokens`, what: figureOf(key).what,
        series: [banded(key, fill)], height: 210, zero: true, marks: stages,
      })),
      (columns["entropy/demos"] || columns["entropy/rollouts"]) && chart({ title: "Entropy the weights are made from", unit: "nats", series: [make("entropy/demos", "on demonstrations", color(1)), make("entropy/rollouts", "on rollouts", color(0))].filter(Boolean), zero: true, height: 210, marks: stages, legend: true }),
      ...Object.keys(columns).filter((k) => /^(gradient|clip|kl)/.test(k) && !/\/(min|max)$/.test(k)).map((k) => chart({ title: figureOf(k).title, what: k, unit: figureOf(k).unit, series: [make(k, figureOf(k).title, color(3))], height: 210, marks: stages })),
    ].filter(Boolean);
    body.replaceChildren(panels.length ? el("div", { class: "grid two" }, panels.map((p) => card(p)))
      : el("p", { class: "quiet" }, "No loss terms have been recorded."));
  };
  fill();
}

/* Comparison of groups: evaluation by family, and the last tenth of every metric. */
function buildCompare(view) {
  const late = (r, key) => {
    const values = (CURVES[r].columns[key] || []).filter((v) => v !== null);
    return key.startsWith("total/") ? values[values.length - 1] ?? null : mean(values.slice(-Math.max(1, Math.ceil(values.length / 10))));
  };
  const head = (text) => [text, ...GROUPS.map((g, i) => el("span", {}, el("i", { class: "dot", style: { background: color(i) } }), g.name, g.runs.length > 1 && el("small", {}, ` ×${g.runs.length}`)))];
  for (const name of evaluationNames()) {
    const families = [...new Set(RUNS.flatMap((r) => evaluationOf(r, name).records.flatMap((e) => Object.keys(e.families))))];
    const rows = [null, ...families].map((family) => {
      const cells = GROUPS.map((g) => g.runs.map((r) => evaluationOf(RUNS[r], name).last).filter(Boolean)
        .map((e) => (family === null ? e.accuracy : e.families[family] ?? null)).filter((v) => v !== null));
      const best = Math.max(...cells.map((c) => mean(c) ?? -1));
      return [family === null ? "overall" : family, ...cells.map((c) => el("td", {
        class: "heat" + (GROUPS.length > 1 && mean(c) === best ? " best" : "")
      }, el("i", { style: { width: `${100 * (mean(c) ?? 0)}%` } }), el("span", {}, percent(mean(c)), c.length > 1 && el("small", {}, ` ${percent(Math.min(...c))} … ${percent(Math.max(...c))}`))))];
    });
    view.append(section(`Evaluation after training${evaluationNames().length > 1 ? ": " + name : ""}`, card(table(head("family"), rows, { class: "compare" }))));
    const curves = GROUPS.map((group, g) => evaluationCurve(group, g, name)).filter((s) => s.x.length > 1);
    if (curves.length) view.append(card(chart({ title: "Evaluation accuracy over steps", what: "Bands: the interval recorded, or the range over seeds", unit: "share", series: curves, height: 260 })));
  }
  const keys = [...new Set(CURVES.flatMap((c) => Object.keys(c.columns)))].filter((k) => !/\/(min|max)$/.test(k));
  view.append(section("Metrics at the end (mean of the last tenth of the steps)", card(table(head("metric"), keys.map((key) => [
    el("span", { title: figureOf(key).what || null }, figureOf(key).title, el("small", {}, " " + key)),
    ...GROUPS.map((g) => inUnit(mean(g.runs.map((r) => late(r, key))), figureOf(key).unit)),
  ])))));
}

/* Accuracy over steps: one run with its intervals, several as mean and range. */
function evaluationCurve(group, g, name) {
  const all = group.runs.map((r) => evaluationOf(RUNS[r], name).records);
  const steps = [...new Set(all.flat().map((e) => e.step))].sort((a, b) => a - b);
  const at = steps.map((step) => all.map((records) => records.find((e) => e.step === step)).filter(Boolean));
  const values = at.map((records) => records.map((e) => e.accuracy));
  const intervals = at.map((records) => (records.length === 1 ? records[0].interval : null));
  const several = group.runs.length > 1;
  const banded = several || (GROUPS.length <= 3 && intervals.every(Boolean));
  return {
    name: several ? `${group.name} · ${group.runs.length} seeds` : groupLabel(group), color: color(g), x: steps, y: values.map(mean), dots: true,
    low: banded ? values.map((v, i) => (several ? Math.min(...v) : intervals[i][0])) : null,
    high: banded ? values.map((v, i) => (several ? Math.max(...v) : intervals[i][1])) : null,
  };
}

/* Settings side by side, and what happened on the way. */
function buildSettings(view) {
  const names = [...new Set(RUNS.flatMap((r) => r.config.map(([k]) => k)))];
  const text = (r, k) => { const found = r.config.find(([name]) => name === k); return found ? JSON.stringify(found[1]) : "–"; };
  const differs = (k) => new Set(RUNS.map((r) => text(r, k))).size > 1;
  names.sort((a, b) => differs(b) - differs(a));
  view.append(section("Settings", card(names.length ? table(["setting", ...RUNS.map((r) => r.name)],
    names.map((k) => [el("span", { class: differs(k) ? "differs" : "" }, k), ...RUNS.map((r) => el("code", {}, text(r, k)))]))
    : el("p", { class: "quiet" }, "No config.yaml was found."))));
  const events = RUNS.flatMap((r) => r.events.map((e) => [RUNS.length > 1 ? r.name : null, e]));
  if (events.length) view.append(section("Events", card(el("ul", { class: "plain events" }, events.map(([name, e]) =>
    el("li", { class: e.level }, el("b", {}, [name, e.step !== null && `step ${number(e.step)}`].filter(Boolean).join(" · ") + " "), e.message)))))) ;
}

async function openReport() {
  CURVES = await inflateJson("curves");
  const chips = el("span", { class: "chips" },
    RUNS.length > 1 ? el("span", { class: "chip" }, `${RUNS.length} runs`) : el("span", { class: "chip" }, RUNS[0].method),
    DATA.live && el("span", { class: "chip live", id: "live", title: "The page reloads when the run has moved on" }, "live"));
  openViews(RUNS.map((r) => r.name).join(" · "), chips, [
    { id: "summary", title: "Summary", build: buildSummary },
    { id: "curves", title: "Curves", build: buildCurves },
    { id: "terms", title: "Loss terms", build: buildTerms },
    { id: "compare", title: "Compare", build: buildCompare },
    { id: "samples", title: "Samples", build: buildSamples },
    { id: "settings", title: "Settings", build: buildSettings },
  ]);
}
addEventListener("DOMContentLoaded", () => openReport().catch((error) => {
  document.getElementById("main").replaceChildren(el("p", { class: "note bad" }, "The report could not be opened: " + error.message));
  console.error(error);
}));
