"use strict";
/* Trajectories as points in two or three dimensions. The axes are distances. In the plane they start
   at 0; in space each covers the range of the data, so that the trajectories fill the box.

   trajectories: [{name, color, points: [{label, at: {axis: value}}]}] */

function plane(title, trajectories, axisX, axisY) {
  const host = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title)));
  const frame = el("div", { class: "frame" });
  host.append(frame);
  new ResizeObserver((entries) => drawPlane(frame, trajectories, axisX, axisY, Math.floor(entries[0].contentRect.width))).observe(frame);
  return host;
}

function drawPlane(frame, trajectories, axisX, axisY, width) {
  if (!width) return;
  const height = Math.min(440, Math.round(width * 0.66));
  const all = trajectories.flatMap((t) => t.points);
  const top = (axis) => Math.max(...all.map((p) => p.at[axis] ?? 0)) * 1.08 || 1;
  const tx = ticks(0, top(axisX), 6), ty = ticks(0, top(axisY), 5);
  const box = { left: 58, right: width - 16, top: 10, bottom: height - 42 };
  const X = (v) => box.left + (v / tx[tx.length - 1]) * (box.right - box.left);
  const Y = (v) => box.bottom - (v / ty[ty.length - 1]) * (box.bottom - box.top);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${axisY} against ${axisX}` });
  for (const v of ty) svg.append(el("line", { class: v ? "grid" : "zero", x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) }), el("text", { x: box.left - 7, y: Y(v) + 4, "text-anchor": "end" }, number(v, 3)));
  for (const v of tx) svg.append(el("line", { class: v ? "grid" : "zero", x1: X(v), x2: X(v), y1: box.top, y2: box.bottom }), el("text", { x: X(v), y: box.bottom + 16, "text-anchor": "middle" }, number(v, 3)));
  svg.append(el("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, `distance to ${axisX}`));
  svg.append(el("text", { x: 13, y: (box.top + box.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(box.top + box.bottom) / 2})` }, `distance to ${axisY}`));
  const marks = [];
  for (const t of trajectories) {
    const known = t.points.filter((p) => p.at[axisX] !== null && p.at[axisY] !== null);
    svg.append(el("path", { class: "line", d: known.map((p, i) => `${i ? "L" : "M"}${X(p.at[axisX])} ${Y(p.at[axisY])}`).join(""), style: { stroke: t.color } }));
    known.forEach((p, i) => marks.push({ x: X(p.at[axisX]), y: Y(p.at[axisY]), p, t, r: 3 + (3.5 * i) / Math.max(1, known.length - 1) }));
  }
  for (const m of marks) svg.append(el("circle", { class: "point", cx: m.x, cy: m.y, r: m.r, style: { fill: m.t.color } }));
  hoverMarks(svg, marks);
  frame.replaceChildren(svg);
}

function hoverMarks(svg, marks) {
  svg.addEventListener("pointermove", (event) => {
    if (event.buttons) return tip.hide();
    const rect = svg.getBoundingClientRect(), zoom = svg.viewBox.baseVal.width / rect.width;
    const x = (event.clientX - rect.left) * zoom, y = (event.clientY - rect.top) * zoom;
    const near = marks.map((m) => [Math.hypot(m.x - x, m.y - y), m]).sort((a, b) => a[0] - b[0])[0];
    if (!near || near[0] > 18) return tip.hide();
    const { p, t } = near[1];
    tip.show(event.clientX, event.clientY, el("b", {}, `${t.name} · ${p.label}`),
      tip.rows(Object.entries(p.at).map(([axis, v]) => [`to ${axis}`, number(v)])));
  });
  svg.addEventListener("pointerleave", () => tip.hide());
}

/* Three axes, turned by dragging or with the arrow keys. */
function space(title, trajectories, axes) {
  const host = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title), el("span", {}, "drag to turn")));
  const frame = el("div", { class: "frame turn", tabindex: 0, "aria-label": "Three-dimensional view; arrow keys turn it" });
  host.append(frame);
  const view = { yaw: -0.7, pitch: 0.42 };
  let width = 0;
  const draw = () => width && drawSpace(frame, trajectories, axes, view, width);
  new ResizeObserver((entries) => { width = Math.floor(entries[0].contentRect.width); draw(); }).observe(frame);
  frame.addEventListener("pointerdown", (event) => { frame.setPointerCapture(event.pointerId); tip.hide(); });
  frame.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    view.yaw += event.movementX * 0.008;
    view.pitch = Math.max(-0.2, Math.min(1.5, view.pitch + event.movementY * 0.008));
    draw();
  });
  frame.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (!turn) return;
    event.preventDefault();
    view.yaw += turn[0];
    view.pitch = Math.max(-0.2, Math.min(1.5, view.pitch + turn[1]));
    draw();
  });
  return host;
}

function drawSpace(frame, trajectories, axes, view, width) {
  const height = Math.min(480, Math.round(width * 0.78));
  const all = trajectories.flatMap((t) => t.points);
  const ranges = axes.map((axis) => {
    const [low, high] = extent(all.map((p) => p.at[axis]));
    const t = ticks(low < 0.4 * high ? 0 : low, high > 0 ? high : 1, 4);
    return [t[0], t[t.length - 1] - t[0] || 1];
  });
  const size = Math.min(width, height * 1.25) * 0.48;
  const project = (a, b, c) => {
    const [x, y, z] = [a - 0.5, b - 0.5, c - 0.5];
    const cos = Math.cos(view.yaw), sin = Math.sin(view.yaw);
    const u = x * cos - y * sin, w = x * sin + y * cos;
    const cp = Math.cos(view.pitch), sp = Math.sin(view.pitch);
    return [width / 2 + u * size, height * 0.48 - (z * cp - w * sp) * size, w * cp + z * sp];
  };
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "trajectories" });
  const stroke = (from, to, kind) => {
    const [x1, y1] = project(...from), [x2, y2] = project(...to);
    svg.append(el("line", { class: kind, x1, y1, x2, y2 }));
  };
  for (const f of [0, 0.25, 0.5, 0.75, 1]) {
    stroke([f, 0, 0], [f, 1, 0], "grid"); stroke([0, f, 0], [1, f, 0], "grid");
    stroke([0, 1, f], [1, 1, f], "grid"); stroke([0, 0, f], [0, 1, f], "grid");
  }
  const ends = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  axes.forEach((axis, i) => {
    const at = (f) => ends[i].map((v) => v * f);
    stroke([0, 0, 0], ends[i], "zero");
    for (const f of ranges[i][0] === 0 ? [0.5, 1] : [0, 0.5, 1]) { const [x, y] = project(...at(f)); svg.append(el("text", { x: x + 5, y: y + 13 }, number(ranges[i][0] + ranges[i][1] * f, 3))); }
    const [x, y] = project(...at(1.14));
    const kept = Math.max(60, Math.min(width - 60, x));
    svg.append(el("text", { class: "axis", x: kept, y: Math.min(height - 6, y + (i === 2 ? -5 : 16)), "text-anchor": "middle" }, `to ${axis}`));
  });
  const marks = [];
  for (const t of trajectories) {
    const known = t.points.filter((p) => axes.every((axis) => p.at[axis] !== null && p.at[axis] !== undefined));
    const at = known.map((p) => axes.map((axis, i) => (p.at[axis] - ranges[i][0]) / ranges[i][1]));
    svg.append(el("path", { class: "line", d: at.map((v, i) => { const [x, y] = project(...v); return `${i ? "L" : "M"}${x} ${y}`; }).join(""), style: { stroke: t.color } }));
    at.forEach((v, i) => {
      const [x, y, depth] = project(...v), [fx, fy] = project(v[0], v[1], 0);
      svg.append(el("line", { class: "drop", x1: x, y1: y, x2: fx, y2: fy, style: { stroke: t.color } }));
      marks.push({ x, y, depth, p: known[i], t, r: 3 + (3.5 * i) / Math.max(1, at.length - 1) });
    });
  }
  marks.sort((a, b) => b.depth - a.depth);
  for (const m of marks) svg.append(el("circle", { class: "point", cx: m.x, cy: m.y, r: m.r, style: { fill: m.t.color } }));
  hoverMarks(svg, marks);
  frame.replaceChildren(svg);
}
