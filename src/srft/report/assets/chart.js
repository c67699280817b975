"use strict";
/* Line charts in SVG: bands, smoothing, hover, logarithmic axis, stacked areas.

   chart({title, what, unit, series, xTitle, zero, log, stack, marks, height})
   series: [{name, color, x: [], y: [], low: [], high: [], faint: [], dash, dots, thin}]
   y may hold null; low and high make a band; faint is the raw series under a smoothed one. */

const color = (i) => `var(--c${((i % 8) + 8) % 8})`;

function chart(options) {
  const host = el("figure", { class: "chart" },
    el("figcaption", { title: options.what || null }, el("b", {}, options.title),
      options.unit && el("span", {}, options.unit === "share" ? "%" : options.unit)));
  const visible = options.series.filter((s) => s.y.some((v) => v !== null));
  const hidden = new Set();
  if (visible.length > 1 || options.legend) host.append(el("div", { class: "legend" }, visible.map((s) =>
    el("button", {
      class: "key", "aria-pressed": "true", title: "Show or hide",
      onclick: (event) => {
        hidden.has(s) ? hidden.delete(s) : hidden.add(s);
        event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(s)));
        draw();
      },
    }, el("i", { class: s.dash ? "dash" : "", style: { background: s.color, borderColor: s.color } }), s.name))));
  const frame = el("div", { class: "frame" });
  host.append(frame);
  let width = 0;
  const draw = () => {
    if (width) drawChart(frame, { ...options, series: visible.filter((s) => !hidden.has(s)) }, width);
  };
  new ResizeObserver((entries) => {
    const next = Math.floor(entries[0].contentRect.width);
    if (next && next !== width) { width = next; draw(); }
  }).observe(frame);
  return host;
}

function drawChart(frame, options, width) {
  const height = options.height || 190;
  const series = options.stack ? stacked(options.series) : options.series;
  const xs = series.flatMap((s) => s.x);
  if (!xs.length) return frame.replaceChildren(el("p", { class: "quiet" }, "nothing to show"));
  const [x0, x1] = extent(xs);
  const scaleX = scale(x0, x1, false);
  const log = options.log && series.every((s) => s.y.every((v) => v === null || v > 0));
  const [lowest, highest] = extentY(series, options, log);
  const ticksY = log ? logTicks(lowest, highest) : ticks(lowest, highest, Math.max(3, Math.round(height / 48)));
  const y0 = log ? lowest : Math.min(lowest, ticksY[0]);
  const y1 = log ? highest : Math.max(highest, ticksY[ticksY.length - 1]);
  const label = (v) => tickText(v, options.unit, ticksY);
  const left = 12 + 6.6 * Math.max(...ticksY.map((v) => label(v).length));
  const box = { left, right: width - 10, top: 8, bottom: height - 24 };
  const X = (v) => box.left + scaleX(v) * (box.right - box.left);
  const scaleY = scale(y0, y1, log);
  const Y = (v) => box.bottom - scaleY(v) * (box.bottom - box.top);

  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": options.title });
  for (const v of ticksY) {
    svg.append(el("line", { class: v === 0 ? "zero" : "grid", x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) }));
    svg.append(el("text", { x: box.left - 6, y: Y(v) + 3.5, "text-anchor": "end" }, label(v)));
  }
  const whole = xs.every(Number.isInteger);  // steps have no halves
  for (const v of ticks(x0, x1, Math.max(2, Math.round(width / 90))).filter((v) => v >= x0 && v <= x1 && (!whole || Number.isInteger(v))))
    svg.append(el("text", { x: X(v), y: height - 8, "text-anchor": "middle" },
      Math.abs(v) >= 10000 ? big(v) : number(v)));
  for (const v of options.marks || [])
    if (v > x0 && v < x1) svg.append(el("line", { class: "mark", x1: X(v), x2: X(v), y1: box.top, y2: box.bottom }));

  for (const s of series) if (s.low) svg.append(el("path", { class: options.stack ? "area" : "band", d: area(s, X, Y), style: { fill: s.color } }));
  for (const s of series) {
    if (options.stack) continue;
    if (s.faint) svg.append(el("path", { class: "raw", d: line(s.x, s.faint, X, Y, log), style: { stroke: s.color } }));
    svg.append(el("path", { class: "line" + (s.dash ? " dash" : "") + (s.thin ? " thin" : ""), d: line(s.x, s.y, X, Y, log), style: { stroke: s.color } }));
    const known = s.y.map((v, i) => [s.x[i], v]).filter((p) => p[1] !== null);
    if (s.dots || known.length === 1) for (const [x, y] of known)
      svg.append(el("circle", { cx: X(x), cy: Y(y), r: 3.2, style: { fill: s.color } }));
  }
  hover(svg, { ...options, series }, box, X, Y, height);
  frame.replaceChildren(svg);
}

function hover(svg, options, box, X, Y, height) {
  const rule = el("line", { class: "rule", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const dots = el("g", {});
  svg.append(rule, dots);
  const positions = [...new Set(options.series.flatMap((s) => s.x))].sort((a, b) => a - b);
  svg.addEventListener("pointermove", (event) => {
    const rect = svg.getBoundingClientRect();
    const px = ((event.clientX - rect.left) / rect.width) * svg.viewBox.baseVal.width;
    let best = positions[0];
    for (const x of positions) if (Math.abs(X(x) - px) < Math.abs(X(best) - px)) best = x;
    rule.setAttribute("x1", X(best)); rule.setAttribute("x2", X(best));
    rule.setAttribute("visibility", "visible");
    dots.replaceChildren();
    const rows = [];
    for (const s of options.series) {
      const i = nearest(s, best);
      if (i < 0 || s.y[i] === null) continue;
      const shown = s.own ? s.own[i] : s.y[i];
      if (!options.stack) dots.append(el("circle", { cx: X(s.x[i]), cy: Y(s.y[i]), r: 3.4, style: { fill: s.color } }));
      const range = s.low && !options.stack && s.low[i] !== null
        ? `  ${inUnit(s.low[i], options.unit)} … ${inUnit(s.high[i], options.unit)}` : "";
      const raw = s.faint && s.faint[i] !== null && s.faint[i] !== s.y[i] ? `  (raw ${inUnit(s.faint[i], options.unit)})` : "";
      rows.push([s.name, inUnit(shown, options.unit) + range + raw, s.color]);
    }
    tip.show(event.clientX, event.clientY,
      el("b", {}, `${options.xTitle || "step"} ${number(best)}`), tip.rows(rows));
  });
  svg.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden"); dots.replaceChildren(); tip.hide();
  });
}

/* Index of the point of a series closest to x, -1 where it has none near. */
function nearest(s, x) {
  let best = -1;
  for (let i = 0; i < s.x.length; i++)
    if (s.y[i] !== null && (best < 0 || Math.abs(s.x[i] - x) < Math.abs(s.x[best] - x))) best = i;
  if (best < 0) return -1;
  const span = (s.x[s.x.length - 1] - s.x[0]) / Math.max(1, s.x.length - 1);
  return Math.abs(s.x[best] - x) <= Math.max(1e-9, span * 0.75) ? best : -1;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null && Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

function extentY(series, options, log) {
  const all = series.flatMap((s) => [...s.y, ...(s.faint || []), ...(s.low || []), ...(s.high || [])]).filter((v) => v !== null);
  let [low, high] = extent(log ? all.filter((v) => v > 0) : all);
  if (options.zero && !log) { low = Math.min(0, low); high = Math.max(0, high); }
  if (low === high) { const pad = Math.abs(low) * 0.1 || 0.5; low -= log ? low * 0.5 : pad; high += pad; }
  return [low, high];
}

function scale(low, high, log) {
  if (log) {
    const a = Math.log(low), b = Math.log(high);
    return (v) => (Math.log(Math.max(v, low)) - a) / (b - a || 1);
  }
  if (low === high) return () => 0.5;
  return (v) => (v - low) / (high - low);
}

function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) { const v = m * 10 ** e; if (v >= low && v <= high) found.push(Number(v.toPrecision(3))); }
  return found.length > 1 ? found.filter((_, i) => found.length < 7 || i % 3 === 0) : [low, high];
}

function tickText(v, unit, all) {
  if (unit === "share") {
    const step = all.length > 1 ? Math.abs(all[1] - all[0]) * 100 : 1;
    return (100 * v).toFixed(step < 0.1 ? 2 : step < 1 ? 1 : 0).replace("-", "−");
  }
  return Math.abs(v) >= 10000 ? big(v) : number(v, 3);
}

function line(xs, ys, X, Y, log) {
  let path = "", pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null || (log && ys[i] <= 0)) { pen = "M"; continue; }
    path += `${pen}${X(xs[i]).toFixed(1)} ${Y(ys[i]).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

function area(s, X, Y) {
  const at = s.x.map((_, i) => i).filter((i) => s.low[i] !== null && s.high[i] !== null);
  if (!at.length) return "";
  const up = at.map((i) => `${X(s.x[i]).toFixed(1)} ${Y(s.high[i]).toFixed(1)}`);
  const down = at.reverse().map((i) => `${X(s.x[i]).toFixed(1)} ${Y(s.low[i]).toFixed(1)}`);
  return `M${up.join("L")}L${down.join("L")}Z`;
}

/* Series of the same x put upon each other; `own` keeps their own values for the tooltip. */
function stacked(series) {
  const total = series.length ? series[0].x.map(() => 0) : [];
  return series.map((s) => {
    const low = [...total];
    s.y.forEach((v, i) => { total[i] += v === null ? 0 : v; });
    return { ...s, low, high: [...total], own: s.y, y: [...total] };
  });
}

/* Centred moving mean over the values that exist; window in points. */
function smooth(values, window) {
  const half = Math.floor(window / 2);
  if (half < 1) return values;
  return values.map((v, i) => {
    if (v === null) return null;
    const reach = Math.min(half, i, values.length - 1 - i);
    return mean(values.slice(i - reach, i + reach + 1));
  });
}
