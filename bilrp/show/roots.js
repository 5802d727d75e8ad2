// The root search of one pair of neurons: a plane to drag in, and the terms of the expansion.

const ROOTS_CSS = `
.text_html:has(> .bilrp-roots) { all: unset !important; display: block !important; }
.bilrp-roots {
  --for: var(--bilrp-positive, #b2182b); --against: var(--bilrp-negative, #2166ac);
  max-width: 46rem; margin: 0 auto; padding: 6px; font-size: .875rem;
  font-variant-numeric: tabular-nums; display: flex; flex-wrap: wrap; gap: .8rem 1.6rem;
  justify-content: center;
  .controls { flex: 1 1 100%; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem;
    justify-content: center; align-items: center; }
  label { display: inline-flex; align-items: center; gap: .4rem; margin: 0; }
  input { width: 8.5rem; margin: 0; accent-color: var(--pst-color-primary, #0b5394); }
  output { min-width: 2.6em; padding: 0; }
  button { font: inherit; color: inherit; background: none; border: 1px solid #888;
    border-radius: 4px; padding: .1rem .6rem; cursor: pointer; }
  :is(input, button):focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
  svg { width: 19rem; max-width: 100%; height: auto; overflow: visible; flex: none; }
  svg.plane { cursor: crosshair; touch-action: none; }
  p { flex: 1 1 100%; margin: 0; text-align: center; min-height: 2.8em; }
}`;
const GAMMAS = [0, 0.1, 0.25, 0.5, 1, 2, 5, 20];
const SVG = "http://www.w3.org/2000/svg";
const SIDE = 220, EDGE = 34, FAR = 1.2; // the plane: pixels, margin, largest t

function drawn(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Everything that is shown, from the numbers of one pair of neurons, gamma, and a point (t, t').
function expansion({ branches, relevance }, gamma, ts) {
  const sides = branches.map(({ a, w }, n) => {
    const counted = a.map((v, j) => v * (w[j] + gamma * Math.max(0, w[j])));
    const s = a.reduce((sum, v, j) => sum + v * w[j], 0);
    const z = counted.reduce((sum, v) => sum + v, 0);
    const at = a.map((v, j) => v - ts[n] * v * (1 + (w[j] > 0 ? gamma : 0)));
    return { s, root: s / z, here: s - ts[n] * z, gone: ts[n] * z, at,
      parts: counted.map((v) => ts[n] * v) };
  });
  const [one, two] = sides;
  const active = one.here > -1e-9 && two.here > -1e-9; // the side that we come from
  const c = active ? relevance / (one.s * two.s) : 0;
  return { sides, active,
    terms: [c * one.here * two.here, c * one.gone * two.here, c * one.here * two.gone,
      c * one.gone * two.gone],
    messages: one.parts.map((v) => two.parts.map((v2) => c * v * v2)) };
}

function mountRoots(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  root.querySelector("p").remove();
  root.prepend(Object.assign(document.createElement("style"), { textContent: ROOTS_CSS }));
  const bar = document.createElement("div");
  bar.className = "controls";
  const slider = (name, options) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "range", ...options });
    const output = document.createElement("output");
    input.setAttribute("aria-label", name);
    label.append(name, input, output);
    bar.append(label);
    return { input, output };
  };
  const gamma = slider("γ", { min: 0, max: GAMMAS.length - 1, step: 1, value: 4 });
  const ways = ["t", "t′"].map((name) => slider(name, { min: 0, max: FAR, step: 0.01, value: 0 }));
  const button = Object.assign(document.createElement("button"), { textContent: "to the root" });
  button.type = "button";
  bar.append(button);
  const plane = drawn(root, "svg", { class: "plane", viewBox: "0 0 264 264", role: "img" });
  const bars = drawn(root, "svg", { viewBox: "0 0 300 264", role: "img" });
  const words = document.createElement("p");
  words.setAttribute("aria-live", "polite");
  root.append(words);
  root.querySelector("style").after(bar);

  const exact = [null, null]; // a root lies between two positions of a slider
  let follow = false; // stay at the root when gamma moves
  const now = () => ways.map(({ input }, n) => exact[n] ?? Number(input.value));
  const put = (n, t) => {
    ways[n].input.value = t;
    exact[n] = t;
  };
  const show = () => {
    const g = GAMMAS[Number(gamma.input.value)];
    if (follow) expansion(data, g, [0, 0]).sides.forEach(({ root: t }, n) => put(n, t));
    const ts = now();
    const found = expansion(data, g, ts);
    gamma.output.textContent = g;
    gamma.input.setAttribute("aria-valuetext", g);
    ways.forEach(({ input, output }, n) => {
      output.textContent = ts[n].toFixed(2);
      input.setAttribute("aria-valuetext", ts[n].toFixed(2));
    });
    drawPlane(plane, found, ts, data.relevance);
    drawBars(bars, found, data.relevance);
    words.textContent = told(found, data.relevance);
  };
  bar.addEventListener("input", (event) => {
    ways.forEach(({ input }, n) => { if (event.target === input) exact[n] = null; });
    follow &&= event.target === gamma.input;
    show();
  });
  button.addEventListener("click", () => {
    follow = true;
    show();
  });
  plane.addEventListener("pointerdown", (event) => plane.setPointerCapture(event.pointerId));
  for (const kind of ["pointerdown", "pointermove"]) {
    plane.addEventListener(kind, (event) => {
      if (!event.buttons) return;
      follow = false;
      const box = plane.getBoundingClientRect(), scale = 264 / box.width;
      const at = [(event.clientX - box.left) * scale - EDGE,
        SIDE - ((event.clientY - box.top) * scale - 10)];
      at.forEach((v, n) => put(n, Math.min(FAR, Math.max(0, FAR * v / SIDE))));
      show();
    });
  }
  show();
}

function drawPlane(svg, { sides, active }, ts, relevance) {
  svg.replaceChildren();
  const x = (t) => EDGE + SIDE * t / FAR, y = (t) => 10 + SIDE - SIDE * t / FAR;
  const [r, r2] = sides.map((side) => side.root), steps = 12;
  for (let i = 0; i < steps; i++) for (let j = 0; j < steps; j++) { // the model where it is active
    const high = (1 - (i + 0.5) / steps) * (1 - (j + 0.5) / steps);
    drawn(svg, "rect", { x: x(r * i / steps), y: y(r2 * (j + 1) / steps),
      width: SIDE * r / steps / FAR, height: SIDE * r2 / steps / FAR, fill: "var(--for)",
      "fill-opacity": (0.75 * high).toFixed(3) });
  }
  const ink = { stroke: "currentColor", fill: "none" };
  drawn(svg, "rect", { x: EDGE, y: 10, width: SIDE, height: SIDE, ...ink });
  drawn(svg, "path", { d: `M${x(r)} 10V${10 + SIDE}M${EDGE} ${y(r2)}H${EDGE + SIDE}`,
    "stroke-dasharray": "5 4", ...ink });
  const word = { fill: "currentColor", "font-size": 12 };
  drawn(svg, "text", { x: x(r) + 4, y: 24, ...word }, "hinge");
  drawn(svg, "text", { x: EDGE + SIDE - 36, y: y(r2) - 4, ...word }, "hinge");
  for (const t of [0, 0.5, 1]) {
    drawn(svg, "text", { x: x(t), y: 26 + SIDE, "text-anchor": "middle", ...word }, t);
    drawn(svg, "text", { x: EDGE - 5, y: y(t) + 4, "text-anchor": "end", ...word }, t);
  }
  drawn(svg, "text", { x: x(0.75), y: 30 + SIDE, ...word, "font-size": 14 }, "t");
  drawn(svg, "text", { x: 8, y: y(0.75), ...word, "font-size": 14 }, "t′");
  drawn(svg, "path", { d: `M${x(0)} ${y(0)}L${x(ts[0])} ${y(ts[1])}`, ...ink });
  drawn(svg, "circle", { cx: x(ts[0]), cy: y(ts[1]), r: 8, fill: "currentColor",
    "fill-opacity": active ? 1 : 0.4 });
  svg.setAttribute("aria-label", "The relevance model on the search plane: largest, "
    + `${relevance}, at the lower left, zero beyond the hinges at t = ${r.toFixed(2)} and `
    + `t′ = ${r2.toFixed(2)}. The point is at t = ${ts[0].toFixed(2)}, t′ = ${ts[1].toFixed(2)}.`);
}

const TERMS = ["zero order", "first, x", "first, x′", "interaction"];
function drawBars(svg, { terms, messages }, relevance) {
  svg.replaceChildren();
  const scale = 190 / relevance, word = { fill: "currentColor", "font-size": 13 };
  let from = 0;
  terms.forEach((v, n) => {
    drawn(svg, "text", { x: 74, y: 25 + 26 * n, "text-anchor": "end", ...word }, TERMS[n]);
    drawn(svg, "rect", { x: 82 + scale * from, y: 11 + 26 * n, width: scale * v, height: 18,
      fill: "currentColor", "fill-opacity": [0.35, 0.5, 0.5, 0.85][n] });
    from += v;
  });
  drawn(svg, "path", { d: `M82 5V115M${82 + 190} 5V115`, stroke: "currentColor", fill: "none",
    "stroke-dasharray": "2 3" });
  drawn(svg, "text", { x: 82, y: 130, "text-anchor": "middle", ...word }, "0");
  drawn(svg, "text", { x: 272, y: 130, "text-anchor": "middle", ...word }, `R = ${relevance}`);
  const size = 44, most = Math.max(relevance, ...messages.flat().map(Math.abs));
  drawn(svg, "text", { x: 74, y: 208, "text-anchor": "end", ...word }, "interactions");
  messages.forEach((row, i) => row.forEach((v, j) => {
    const place = { x: 82 + (size + 26) * j, y: 158 + size * i };
    drawn(svg, "rect", { ...place, width: size + 26, height: size, stroke: "currentColor",
      "stroke-opacity": 0.4, fill: v < 0 ? "var(--against)" : "var(--for)",
      "fill-opacity": (0.55 * Math.abs(v) / most).toFixed(3) });
    drawn(svg, "text", { x: place.x + (size + 26) / 2, y: place.y + 27, "text-anchor": "middle",
      ...word }, v.toFixed(2));
  }));
  svg.setAttribute("aria-label", "Bars one after the other: "
    + terms.map((v, n) => `${TERMS[n]} ${v.toFixed(2)}`).join(", ")
    + `; ${from.toFixed(2)} of ${relevance} in all.`);
}

function told({ sides, active, terms }, relevance) {
  const at = sides.map((side) => `(${side.at.map((v) => v.toFixed(2)).join(", ")})`);
  const point = `Expanded at ${at[0]} and ${at[1]}. `;
  if (!active) {
    return point + "Beyond a hinge the model is zero with all its derivatives: no term is left, "
      + `and ${relevance} is missed.`;
  }
  const sum = terms.reduce((total, v) => total + v, 0);
  return point + terms.map((v) => v.toFixed(2)).join(" + ") + ` = ${sum.toFixed(2)}.`;
}
