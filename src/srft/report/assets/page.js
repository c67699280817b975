"use strict";
/* What every page of srft shares: elements, numbers, data blocks, theme, tooltip, views.
   Text reaches the page through textContent and attributes only, never as HTML. */

const DATA = JSON.parse(document.getElementById("data").textContent);

/* el("div", {class: "a", title: "b", onclick: f}, child, "text", [more]) */
function el(tag, attributes, ...children) {
  const svg = SVG_TAGS.has(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.setAttribute("class", value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}
const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "polygon"]);

const number = (x, digits = 4) => {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return String(x);
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return x.toExponential(2).replace("e+", "e").replace("-", "−");
  if (size >= 1000) return Math.round(x).toLocaleString("en-US").replace("-", "−");
  return String(Number(x.toPrecision(digits))).replace("-", "−");
};
const percent = (x, digits = 1) =>
  x === null || x === undefined || Number.isNaN(x) ? "–" : (100 * x).toFixed(digits) + " %";
const inUnit = (x, unit) => (unit === "share" ? percent(x) : number(x));
const big = (x) => {
  if (x === null || x === undefined) return "–";
  for (const [size, mark] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(x) >= size) return Number((x / size).toPrecision(3)) + " " + mark;
  return number(x, 3);
};
const duration = (s) => {
  if (s === null || s === undefined) return "–";
  if (s < 90) return number(s, 3) + " s";
  if (s < 5400) return number(s / 60, 3) + " min";
  return number(s / 3600, 3) + " h";
};
const mean = (values) => {
  const good = values.filter((v) => v !== null && v !== undefined && Number.isFinite(v));
  return good.length ? good.reduce((a, b) => a + b, 0) / good.length : null;
};

/* Gzip blocks lie in script elements as base64 and are decoded when first asked for. */
async function inflate(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`this file has no block ${id}`);
  if (typeof DecompressionStream === "undefined")
    throw new Error("this browser cannot decompress data (it needs one of 2023 or later)");
  const text = atob(node.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const inflateJson = async (id) => JSON.parse(new TextDecoder().decode(await inflate(id)));

/* What the reader has chosen, kept over reloads of a live page. */
const memory = {
  key: "srft:" + location.pathname + ":" + document.title,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(part) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...part })); } catch { /* private mode */ }
  },
};

/* Theme: the system's, unless the reader has chosen. */
const theme = {
  apply(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    document.dispatchEvent(new Event("theme"));
  },
  dark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  button() {
    return el("button", {
      id: "theme", class: "ghost", title: "Light or dark", "aria-label": "Switch between light and dark",
      onclick: () => {
        const next = this.dark() ? "light" : "dark";
        memory.write({ theme: next });
        this.apply(next);
      },
    }, "◐");
  },
};
theme.apply(memory.read().theme);

/* One floating box for all hover figures. */
const tip = {
  node: document.getElementById("tip"),
  show(x, y, ...content) {
    this.node.replaceChildren(...content.flat(Infinity).filter(Boolean));
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16;
    const top = Math.min(y + 14, innerHeight - box.height - 8);
    this.node.style.left = Math.max(4, left) + "px";
    this.node.style.top = Math.max(4, top) + "px";
  },
  hide() { this.node.hidden = true; },
  rows(pairs) {
    return el("dl", {}, pairs.filter(Boolean).map(([name, value, color]) => [
      el("dt", {}, color && el("i", { class: "dot", style: { background: color } }), name), el("dd", {}, value),
    ]));
  },
};
addEventListener("scroll", () => tip.hide(), { passive: true, capture: true });

/* Views behind the tabs of the header; each is built when first opened. */
function openViews(title, chips, views) {
  const main = document.getElementById("main");
  const built = new Map();
  const tabs = el("nav", { "aria-label": "Views" }, views.map((view) =>
    el("a", { href: "#" + view.id, id: "tab-" + view.id }, view.title)));
  document.getElementById("top").replaceChildren(
    el("div", { class: "brand" }, el("b", {}, "srft"), el("span", { class: "name", title }, title), chips),
    tabs, theme.button());
  const show = () => {
    const wanted = location.hash.slice(1) || memory.read().view;
    const view = views.find((v) => v.id === wanted) || views[0];
    if (!built.has(view.id)) {
      const node = el("div", { id: "view-" + view.id, class: "view" });
      built.set(view.id, node);
      main.append(node);
      Promise.resolve().then(() => view.build(node)).catch((error) => {
        node.replaceChildren(el("p", { class: "note bad" }, "This part could not be shown: " + error.message));
        console.error(error);
      });
    }
    for (const [id, node] of built) node.hidden = id !== view.id;
    for (const tab of tabs.children) tab.classList.toggle("here", tab.id === "tab-" + view.id);
    memory.write({ view: view.id });
    tip.hide();
  };
  main.replaceChildren();
  addEventListener("hashchange", show);
  show();
}

/* A live page asks its server, and only it, whether there is news. */
if (DATA.live) {
  setInterval(async () => {
    try {
      const version = await (await fetch("/version", { cache: "no-store" })).text();
      document.getElementById("live")?.classList.remove("off");
      if (version !== DATA.live && !document.hidden) {
        memory.write({ scroll: scrollY });
        location.reload();
      }
    } catch {
      document.getElementById("live")?.classList.add("off");
    }
  }, 2000);
  addEventListener("load", () => setTimeout(() => scrollTo(0, memory.read().scroll || 0), 150));
}

const section = (title, ...content) => el("section", {}, el("h2", {}, title), content);
const card = (...content) => el("div", { class: "card" }, content);
function table(head, rows, options = {}) {
  return el("div", { class: "scroll" }, el("table", { class: options.class || "" },
    el("thead", {}, el("tr", {}, head.map((h) => el("th", {}, h)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) =>
      cell instanceof Element && cell.tagName === "TD" ? cell : el(i ? "td" : "th", {}, cell)))))));
}
function choice(label, options, chosen, onchange, id) {
  return el("label", { class: "field" }, el("span", {}, label), el("select", {
    id, onchange: (event) => onchange(event.target.value),
  }, options.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, text))));
}
