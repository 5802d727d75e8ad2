// The explorer: two pictures, and which patches of the one are similar to which of the other.
// Frames, heat, arcs and numbers are those of pair.js and pair_line.js, which are put before this.
//
// One module for two worlds. In a live notebook, anywidget calls render() and the data come from
// the kernel; in a page, mountAll() finds the data beside the script. Both end in mount(), which
// draws and needs nothing else. Names and errors are set as text, never as HTML.

const CSS = `
/* the book's dark theme puts outputs on a light card, and pictures in a frame */
.text_html:has(> .bilrp-explorer) { all: unset !important; display: block !important; }
.bilrp-explorer {
  --pos: #b2182b; --neg: #2166ac; --quiet: grayscale(1) contrast(.55) brightness(1.25);
  --rule: #8886; max-width: 54rem; margin: 0 auto; padding: 6px; box-sizing: border-box;
  font-size: .875rem; line-height: 1.5; font-variant-numeric: tabular-nums;
  color: var(--jp-content-font-color1, inherit);
  html[data-theme="dark"] &, body[data-jp-theme-light="false"] & { color-scheme: dark;
    --pos: #f4a582; --neg: #92c5de; --quiet: grayscale(1) contrast(.55) brightness(.7); }
  .stage, .controls { position: relative; display: flex; flex-wrap: wrap; place-content: center; }
  .stage { gap: 1.25rem 2.5rem; } .controls { gap: .4rem .9rem; align-items: center; }
  .pic { position: relative; flex: 1 1 230px; max-width: 416px; align-self: start;
    cursor: crosshair; touch-action: pan-y; user-select: none; -webkit-user-select: none; }
  &.covering .pic { touch-action: none; cursor: cell; }
  .pic img { display: block; width: 100%; height: auto; margin: 0; pointer-events: none;
    padding: 0 !important; border-radius: 0 !important; }
  .pic.quiet img { filter: var(--quiet) !important; }
  canvas, .arcs { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none;
    pointer-events: none; image-rendering: pixelated; }
  .patch { position: absolute; box-sizing: border-box; pointer-events: none;
    border: 2px solid #fff; outline: 1.5px solid #111; &.locked { outline-width: 3.5px; } }
  .arcs { fill: none; stroke-linecap: round; .pos { stroke: var(--pos); }
    .neg { stroke: var(--neg); stroke-dasharray: 4 4; } }
  p { margin: .6rem 0 0; min-height: 1.5em; text-align: center; }
  .pos { color: var(--pos); font-weight: 600; } .neg { color: var(--neg); font-weight: 600; }
  .controls, details { margin-top: .5rem; font-size: .8125rem; text-align: center; }
  label { display: inline-flex; align-items: center; gap: .35rem; margin: 0; }
  input { margin: 0; accent-color: var(--neg); &[type=range] { width: 5.5rem; } }
  output { min-width: 3.2em; padding: 0; } button:disabled { opacity: .55; }
  select, button { font: inherit; color: inherit; background: none; cursor: pointer;
    border: 1px solid var(--rule); border-radius: 4px; padding: .1rem .45rem; }
  option { color: CanvasText; background: Canvas; }
  :is(.pic, select, button, input, summary):focus-visible {
    outline: 2px solid var(--neg); outline-offset: 2px; }
  table { margin: .4rem auto 0; border-collapse: collapse; width: auto; }
  th, td { padding: .1rem .6rem; text-align: right; border: solid var(--rule);
    border-width: 0 0 1px; background: none; }
  td { white-space: nowrap; }
  @media (prefers-reduced-motion: no-preference) { .pic img { transition: filter .12s; } }
}`;

const options = (...names) => names.map((name) => `<option>${name}</option>`).join("");
const template = (kind, hiding) => `<style>${CSS.replace(/}$/, `${kind.css}}`)}</style>
<div class="stage">${kind.html}${kind.html}<svg class="arcs" aria-hidden="true"></svg></div>
<p class="numbers" aria-live="polite"></p>
<p class="cover" aria-live="polite" hidden><span class="predicted"></span>
  <button type="button" class="ask" hidden>True change</button> <span class="true"></span></p>
<div class="controls">
  <label>Hide below <input class="threshold" type="range" min="0" max="100" value="10"
    title="in per cent of the strongest pair"><output></output></label>
  <label>Sign <select class="sign">${options("both", "positive", "negative")}</select></label>
  <label>Draw <select class="draw">${options("heat and arcs", "heat", "arcs")}</select></label>
  <label><input class="covering" type="checkbox"> ${hiding.verb}</label>
  <button type="button" class="swap">Swap</button>
  <button type="button" class="reset">Reset</button>
</div>
<details><summary>The strongest pairs as a table</summary><table></table></details>`;

// What it is to take an owner away, of pictures and of lines.
const HIDING = { picture: { verb: "Cover", done: "covered", key: "space covers" },
  line: { verb: "Leave out", done: "left out", key: "space leaves out" } };

/** Fill root with an explorer. ask(cover), where there is a kernel, promises the true change. */
function mount(root, data, ask) {
  root.className = "bilrp-explorer";
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own use of arrow keys and Enter
  const kind = data.tokens ? line : picture, hiding = HIDING[data.tokens ? "line" : "picture"];
  root.innerHTML = template(kind, hiding);
  const find = (name) => root.querySelector(name), known = decode(data);
  // All that the functions below share: what is known, and what the reader has chosen.
  const view = {
    root, data, ask, find, kind, hiding, ...known,
    stage: find(".stage"), svg: find(".arcs"), pics: [...root.querySelectorAll(".pic")],
    covering: find("input.covering"),
    at: null, // the patch pointed at, {side, patch}
    pair: null, // one pointed at in the other picture while `at` is locked
    locked: false,
    paint: null, // what a drag does: cover (true) or uncover
    ticket: 0, // of the latest question to the kernel
    covered: [new Set(), new Set()],
    last: known.size.map((g) => kind === line ? 0 // for the keyboard: where it begins
      : (g.rows >> 1) * g.columns + (g.columns >> 1)),
  };
  for (const side of [0, 1]) {
    kind.fill(view, side, `Arrow keys move, Enter locks, Escape lets go, ${hiding.key}.`);
    answerPointer(view, side);
    answerKeys(view, side);
  }
  answerControls(view);
  writeCover(view);
  // arcs are in pixels; this draws for the first time, too
  view.watch = new ResizeObserver(() => draw(view));
  view.watch.observe(view.stage);
}

/** What the data say: how many patches there are, their sums, and score() of each pair. */
function decode(data) {
  const size = [0, 1].map((s) => ({ rows: data.grid[2 * s], columns: data.grid[2 * s + 1] }));
  const count = size.map((g) => g.rows * g.columns);
  const sums = data.sums.map((text) => unpack(Float64Array, text));
  const scales = unpack(Float64Array, data.scales); // see quantize() in explorer.py
  const scores = Float64Array.from(unpack(data.bits === 16 ? Int16Array : Int8Array, data.codes),
    (code, k) => code * Math.abs(code) * scales[Math.floor(k / count[1])]);
  const score = (side, patch, other) =>
    scores[side ? other * count[1] + patch : patch * count[1] + other];
  const { y, names, pictures, tokens } = data;
  return { y, names, pictures, tokens, size, count, sums, score,
    strongest: largest(scores), strongestSum: sums.map(largest) };
}

// --- numbers ---
// squared, so that the slider is fine where most scores are: near zero
const threshold = (view) => (view.find(".threshold").value / 100) ** 2;

/** Relevance of each patch with all that is not covered in the other picture. */
function remaining({ sums, covered, score }, side) {
  const rest = sums[side].slice();
  for (const other of covered[1 - side])
    for (let p = 0; p < rest.length; p++) rest[p] -= score(side, p, other);
  return rest;
}

/** Pairs with a covered patch lose their relevance; those covered on both sides lose it once. */
function predictedChange(view) {
  const lost = (side, of) => total([...view.covered[side]].map((p) => of[p]));
  return -lost(0, view.sums[0]) - lost(1, remaining(view, 1));
}

/** What is drawn: pairs [patch of x, patch of x', score], strongest first. */
function pairs(view) {
  const { at, count, covered, score } = view;
  const sign = { both: 0, positive: 1, negative: -1 }[view.find(".sign").value];
  const least = threshold(view) * view.strongest;
  const all = at
    ? Array.from({ length: count[1 - at.side] }, (_, other) =>
      at.side ? [other, at.patch] : [at.patch, other])
    : view.data.strongest.map((k) => [Math.floor(k / count[1]), k % count[1]]);
  return all.map(([i, j]) => [i, j, score(0, i, j)])
    .filter(([i, j, v]) => v && v * sign >= 0 && Math.abs(v) >= least &&
      !covered[0].has(i) && !covered[1].has(j))
    .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
}

// --- words ---
const place = (view, side, patch) => view.kind.place(view, side, boxOf(view, side, patch));
const change = (view, title, v) =>
  [title, share(view, v), ` (${plain(view.y)} → ${plain(view.y + v)})`];

function writeNumbers(view, list) {
  const { at, kind, pair, data, names, sums, y } = view;
  const line = view.find(".numbers"), some = y && Math.abs(data.bias) >= 5e-5;
  const biases = some ? `biases ${percent(data.bias)}` : "";
  line.replaceChildren("y = ", make("b", plain(y)));
  if (biases) line.append(`: ${kind.many} carry ${percent(1 - data.bias)}, ${biases}`);
  if (!at) return line.append(` · Point at a ${kind.one}.`);
  line.replaceChildren(`${names[at.side]}, ${place(view, at.side, at.patch)}: `,
    share(view, sums[at.side][at.patch]), y ? " of y" : "",
    ` · ${many(list.length, "partner", "partners")} shown: `,
    share(view, total(list.map(([, , v]) => v))), biases && ` · ${biases}`);
  if (pair !== null)
    line.append(` · with ${place(view, 1 - at.side, pair)}: `,
      share(view, view.score(at.side, at.patch, pair)));
  if (view.locked) line.append(" · locked");
}

function writeCover(view) {
  const { ask, covered, find, hiding, kind } = view, n = covered[0].size + covered[1].size;
  view.ticket++; // an answer to an earlier question is no longer one
  find(".true").replaceChildren();
  find(".cover").hidden = !n && !view.covering.checked;
  Object.assign(find(".ask"), { hidden: !ask || !n, disabled: false });
  const title = `${many(n, kind.one, kind.many)} ${hiding.done} · predicted change: `;
  find(".predicted").replaceChildren(...(n ? change(view, title, predictedChange(view))
    : [`Click, drag or press space: ${kind.many} are ${hiding.done}.`]));
}

function writeTable(view, list) {
  const table = view.find("table"), head = [...view.names, view.y ? "share of y" : "score"];
  table.replaceChildren();
  if (!view.find("details").open) return; // costs time on every move
  table.insertRow().append(...head.map((text) => make("th", text)));
  for (const [i, j, v] of list.slice(0, 10))
    table.insertRow().append(
      make("td", place(view, 0, i)), make("td", place(view, 1, j)), share(view, v, "td"));
}

// --- pictures ---
/** What tints a picture: its sums, or its partners of the patch pointed at in the other one. */
function tint(view, side, list) {
  const { at, strongest, strongestSum } = view, sign = view.find(".sign").value;
  if (!view.find(".draw").value.includes("heat") || at?.side === side) return () => 0;
  if (!at) {
    const rest = remaining(view, side);
    return (p) => sign === (rest[p] > 0 ? "negative" : "positive") ? 0
      : Math.max(-1, Math.min(1, rest[p] / strongestSum[side]));
  }
  const found = new Map(list.map((one) => [one[side], one[2]]));
  const root = (v) => Math.sign(v) * Math.sqrt(Math.abs(v) / strongest); // the weak show, too
  return (p) => root(found.get(p) ?? 0);
}

/** Pairs to draw as arcs, with how heavily. */
function weighed(view, list) {
  const { at, strongest } = view, box = (side, patch) => boxOf(view, side, patch);
  return list.map(([i, j, v]) => // among all pairs, the weak keep quiet
    [box(0, i), box(1, j), v, (Math.abs(v) / strongest) ** (at ? 0.5 : 1)]);
}

/** Frame the patch pointed at. */
function framePatch(view, side) {
  const { at, covered, hiding, locked, pair } = view, here = at?.side === side;
  const patch = at && (here ? at.patch : pair);
  if (patch === null) return drawFrame(view, side, null, {});
  drawFrame(view, side, boxOf(view, side, patch), { locked: locked && here, selected: here,
    label: place(view, side, patch) + (covered[side].has(patch) ? `, ${hiding.done}` : "") });
}

function draw(view) {
  const { at, find, pics } = view, list = pairs(view);
  for (const side of [0, 1]) {
    view.kind.heat(view, side, tint(view, side, list), (p) => view.covered[side].has(p));
    framePatch(view, side);
    pics[side].classList.toggle("quiet", !at || at.side !== side);
  }
  const arcs = find(".draw").value.includes("arcs");
  drawArcs(view, weighed(view, arcs ? list.slice(0, at ? MOST_ARCS : list.length) : []));
  writeNumbers(view, list);
  writeTable(view, list);
  find("output").textContent = percent(threshold(view));
}

// --- what the reader does ---
function point(view, side, patch) {
  if (view.at?.side === side && view.at.patch === patch) return;
  [view.at, view.pair, view.last[side]] = [{ side, patch }, null, patch];
  draw(view);
}

function leave(view) {
  view.pair = null;
  view.at = view.locked ? view.at : null;
  draw(view);
}

/** Lock a patch, or let go of the one that is locked. */
function lock(view, side, patch) {
  view.locked = !(view.locked && view.at?.side === side && view.at.patch === patch);
  view.at = null;
  point(view, side, patch);
}

function cover(view, side, patch, hide) {
  const covered = view.covered[side];
  if (covered.has(patch) === hide) return;
  covered[hide ? "add" : "delete"](patch);
  writeCover(view);
  draw(view);
}

function answerPointer(view, side) {
  const pic = view.pics[side], { covering } = view;
  on(pic, "pointerdown pointermove", (event) => {
    const patch = view.kind.under(view, side, event);
    if (patch === null) return;
    if (event.type === "pointerdown" && !event.button && covering.checked)
      view.paint = !view.covered[side].has(patch);
    if (view.paint !== null) cover(view, side, patch, view.paint);
    if (!view.locked) return point(view, side, patch);
    view.pair = side === view.at.side ? null : patch;
    draw(view);
  });
  on(pic, "pointerup pointercancel pointerleave", (event) => {
    view.paint = null;
    // a finger that is lifted leaves, but what it tapped stays
    if (event.type === "pointerleave" && event.pointerType !== "touch") leave(view);
  });
  on(pic, "click", (event) => {
    const patch = view.kind.under(view, side, event);
    if (!covering.checked && patch !== null) lock(view, side, patch);
  });
}

function answerKeys(view, side) {
  const pic = view.pics[side], { columns } = view.size[side], { covering, count, last } = view;
  on(pic, "focus", () => {
    if (!view.locked && pic.matches(":focus-visible")) point(view, side, last[side]);
  });
  on(pic, "blur", () => leave(view));
  on(pic, "keydown", (event) => {
    const patch = last[side], column = patch % columns;
    const step = (possible, by) => point(view, side, possible ? patch + by : patch);
    const keys = {
      ArrowUp: () => step(patch >= columns, -columns),
      ArrowDown: () => step(patch + columns < count[side], columns),
      ArrowLeft: () => step(column > 0, -1), ArrowRight: () => step(column < columns - 1, 1),
      Home: () => step(true, -column), End: () => step(true, columns - 1 - column),
      Enter: () => lock(view, side, patch), Escape: () => { view.locked = false; draw(view); },
      " ": () => covering.checked && cover(view, side, patch, !view.covered[side].has(patch)),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    keys[event.key]();
    event.preventDefault(); // the page stays where it is
  });
}

function answerControls(view) {
  const { root, data, ask, find, stage, covering } = view;
  [".threshold", ".sign", ".draw"].forEach((name) => on(find(name), "input", () => draw(view)));
  on(find("details"), "toggle", () => draw(view));
  on(covering, "input", () => {
    root.classList.toggle("covering", covering.checked);
    writeCover(view);
  });
  on(find(".swap"), "click", () => {
    stage.append(stage.firstElementChild, view.svg); // first comes second, the arcs stay on top
    draw(view);
  });
  on(find(".reset"), "click", () => {
    view.watch.disconnect();
    mount(root, data, ask);
    find(".reset").focus();
  });
  on(find(".ask"), "click", () => askKernel(view));
}

async function askKernel(view) {
  const mine = ++view.ticket, line = view.find(".true"), button = view.find(".ask");
  button.disabled = true;
  line.textContent = "computing …";
  const reply = await view.ask(view.covered.map((patches) => [...patches]));
  if (mine !== view.ticket) return; // covered something else since
  button.disabled = false;
  line.replaceChildren(
    ...(reply.error ? [reply.error] : change(view, "true change: ", reply.change)));
}

/** In a live notebook: anywidget's door. */
function render({ model, el }) {
  const root = el.appendChild(document.createElement("div")), waiting = new Map();
  root.textContent = "Waiting for the kernel. If it has gone, run the cell again.";
  const ask = (cover) => new Promise((answer) => {
    const ticket = Math.random().toString(36); // other views of this model ask, too
    waiting.set(ticket, answer);
    model.send({ kind: "true", ticket, cover });
  });
  const receive = (reply) => {
    if (reply.kind === "data" && !root.className) mount(root, reply.data, reply.data.live && ask);
    waiting.get(reply.ticket)?.(reply);
    waiting.delete(reply.ticket);
  };
  model.on("msg:custom", receive);
  model.send({ kind: "data" });
  return () => model.off("msg:custom", receive);
}

/** In a page: every explorer of this version of the module, once. See html() in explorer.py. */
function mountAll(version) {
  for (const root of document.querySelectorAll(`div.bilrp-explorer[data-version="${version}"]`)) {
    const script = root.querySelector(':scope > script[type="application/json"]');
    if (script) mount(root, JSON.parse(script.textContent)); // which takes the script's place
  }
}

export default { render };
