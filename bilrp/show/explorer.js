// The explorer: two pictures, and which patches of the one are similar to which of the other.
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

// "dark-light" asks the book's theme not to dim the picture. The one cell of the grid that exists
// is the one pointed at, which ARIA allows; it is also the frame that is seen.
const PICTURE = `<div class="pic" role="grid" tabindex="0">
  <img class="dark-light" alt="" draggable="false"><canvas></canvas>
  <div><div class="patch" role="gridcell" hidden></div></div></div>`;
const options = (...names) => names.map((name) => `<option>${name}</option>`).join("");
const TEMPLATE = `<style>${CSS}</style>
<div class="stage">${PICTURE}${PICTURE}<svg class="arcs" aria-hidden="true"></svg></div>
<p class="numbers" aria-live="polite"></p>
<p class="cover" aria-live="polite" hidden><span class="predicted"></span>
  <button type="button" class="ask" hidden>True change</button> <span class="true"></span></p>
<div class="controls">
  <label>Hide below <input class="threshold" type="range" min="0" max="100" value="10"
    title="in per cent of the strongest pair"><output></output></label>
  <label>Sign <select class="sign">${options("both", "positive", "negative")}</select></label>
  <label>Draw <select class="draw">${options("heat and arcs", "heat", "arcs")}</select></label>
  <label><input class="covering" type="checkbox"> Cover</label>
  <button type="button" class="swap">Swap</button>
  <button type="button" class="reset">Reset</button>
</div>
<details><summary>The strongest pairs as a table</summary><table></table></details>`;
const RED = [178, 24, 43], BLUE = [33, 102, 172];
const MOST_ARCS = 40; // for one patch; more would hide the picture

/** Numbers of the given kind from a base64 string of little-endian bytes. */
function unpack(Kind, text) {
  const bytes = atob(text);
  return new Kind(Uint8Array.from({ length: bytes.length }, (_, k) => bytes.charCodeAt(k)).buffer);
}

/** Fill root with an explorer. ask(cover), where there is a kernel, promises the true change. */
function mount(root, data, ask) {
  root.className = "bilrp-explorer";
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own use of arrow keys and Enter
  root.innerHTML = TEMPLATE;
  const find = (name) => root.querySelector(name);
  const on = (element, kinds, act) =>
    kinds.split(" ").forEach((kind) => element.addEventListener(kind, act));
  const stage = find(".stage"), svg = find(".arcs"), pics = [...root.querySelectorAll(".pic")];
  const covering = find("input.covering");

  const { y, names, pictures } = data;
  const size = [0, 1].map((s) => ({ rows: data.grid[2 * s], columns: data.grid[2 * s + 1] }));
  const count = size.map((g) => g.rows * g.columns);
  const sums = data.sums.map((text) => unpack(Float64Array, text));
  const scales = unpack(Float64Array, data.scales); // see quantize() in explorer.py
  const scores = Float64Array.from(unpack(data.bits === 16 ? Int16Array : Int8Array, data.codes),
    (code, k) => code * Math.abs(code) * scales[Math.floor(k / count[1])]);
  const largest = (numbers) => numbers.reduce((most, v) => Math.max(most, Math.abs(v)), 0) || 1;
  const strongest = largest(scores), strongestSum = sums.map(largest);

  // What the reader has chosen. `at` is the patch pointed at, {side, patch}; `pair` is one pointed
  // at in the other picture while `at` is locked; `paint` is what a drag does: cover or uncover.
  let at = null, pair = null, locked = false, paint = null, ticket = 0;
  const covered = [new Set(), new Set()];
  const last = size.map((g) => (g.rows >> 1) * g.columns + (g.columns >> 1)); // for the keyboard

  // --- numbers ---
  const score = (side, patch, other) =>
    scores[side ? other * count[1] + patch : patch * count[1] + other];
  // squared, so that the slider is fine where most scores are: near zero
  const threshold = () => (find(".threshold").value / 100) ** 2;

  /** Relevance of each patch with all that is not covered in the other picture. */
  function remaining(side) {
    const rest = sums[side].slice();
    for (const other of covered[1 - side])
      for (let p = 0; p < rest.length; p++) rest[p] -= score(side, p, other);
    return rest;
  }

  /** Pairs with a covered patch lose their relevance; those covered on both sides lose it once. */
  function predictedChange() {
    const total = (side, of) => [...covered[side]].reduce((sum, p) => sum + of[p], 0);
    return -total(0, sums[0]) - total(1, remaining(1));
  }

  /** What is drawn: pairs [patch of x, patch of x', score], strongest first. */
  function pairs() {
    const sign = { both: 0, positive: 1, negative: -1 }[find(".sign").value];
    const least = threshold() * strongest;
    const all = at
      ? Array.from({ length: count[1 - at.side] }, (_, other) =>
        at.side ? [other, at.patch] : [at.patch, other])
      : data.strongest.map((k) => [Math.floor(k / count[1]), k % count[1]]);
    return all.map(([i, j]) => [i, j, score(0, i, j)])
      .filter(([i, j, v]) => v && v * sign >= 0 && Math.abs(v) >= least &&
        !covered[0].has(i) && !covered[1].has(j))
      .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
  }

  // --- words ---
  const plain = (v) => String(Number(v.toPrecision(4))).replace("-", "−");
  const percent = (part) =>
    `${(100 * part).toFixed(Math.abs(part) < 0.09995 ? 2 : 1).replace("-", "−")} %`;
  const place = (side, patch) =>
    `row ${Math.floor(patch / size[side].columns) + 1}, column ${(patch % size[side].columns) + 1}`;
  const many = (n, what, plural) => `${n} ${n === 1 ? what : plural}`;
  const make = (tag, textContent, className = "") =>
    Object.assign(document.createElement(tag), { textContent, className });

  /** A score as a share of y (or as it is, where y is zero), with sign and colour. */
  function share(v, tag = "b") {
    const text = y ? percent(v / y) : plain(v), sign = text[0] === "−" || !v ? "" : "+";
    return make(tag, sign + text, v > 0 ? "pos" : v < 0 ? "neg" : "");
  }
  const change = (title, v) => [title, share(v), ` (${plain(y)} → ${plain(y + v)})`];

  function writeNumbers(list) {
    const line = find(".numbers"), biases = y ? `biases ${percent(data.bias)}` : "";
    line.replaceChildren("y = ", make("b", plain(y)));
    if (biases) line.append(`: patches carry ${percent(1 - data.bias)}, ${biases}`);
    if (!at) return line.append(" · Point at a patch.");
    line.replaceChildren(`${names[at.side]}, ${place(at.side, at.patch)}: `,
      share(sums[at.side][at.patch]), y ? " of y" : "",
      ` · ${many(list.length, "partner", "partners")} shown: `,
      share(list.reduce((total, [, , v]) => total + v, 0)), biases && ` · ${biases}`);
    if (pair !== null)
      line.append(` · with ${place(1 - at.side, pair)}: `, share(score(at.side, at.patch, pair)));
    if (locked) line.append(" · locked");
  }

  function writeCover() {
    const n = covered[0].size + covered[1].size;
    ticket++; // an answer to an earlier question is no longer one
    find(".true").replaceChildren();
    find(".cover").hidden = !n && !covering.checked;
    Object.assign(find(".ask"), { hidden: !ask || !n, disabled: false });
    find(".predicted").replaceChildren(...(n
      ? change(`${many(n, "patch", "patches")} covered · predicted change: `, predictedChange())
      : ["Click, drag or press space to cover patches."]));
  }

  function writeTable(list) {
    const table = find("table"), head = [...names, y ? "share of y" : "score"];
    table.replaceChildren();
    if (!find("details").open) return; // costs time on every move
    table.insertRow().append(...head.map((text) => make("th", text)));
    for (const [i, j, v] of list.slice(0, 10))
      table.insertRow().append(make("td", place(0, i)), make("td", place(1, j)), share(v, "td"));
  }

  // --- pictures ---
  /** One pixel of the canvas is one patch: covered, or tinted by strength(patch) in -1..1. */
  function drawHeat(side, strength) {
    const context = pics[side].querySelector("canvas").getContext("2d");
    const image = context.createImageData(size[side].columns, size[side].rows);
    for (let p = 0; p < count[side]; p++) {
      const s = strength(p), hide = covered[side].has(p);
      const colour = hide ? pictures[side].mean : s > 0 ? RED : BLUE;
      image.data.set([...colour, hide ? 255 : 230 * Math.abs(s)], 4 * p);
    }
    context.putImageData(image, 0, 0);
  }
  /** The middle of a patch on the stage, in pixels. */
  function middle(side, patch) {
    const { rows, columns } = size[side], pic = pics[side];
    return [pic.offsetLeft + (((patch % columns) + 0.5) * pic.offsetWidth) / columns,
      pic.offsetTop + ((Math.floor(patch / columns) + 0.5) * pic.offsetHeight) / rows];
  }
  function drawArcs(list) {
    const stacked = Math.abs(pics[0].offsetTop - pics[1].offsetTop) > pics[0].offsetHeight / 2;
    svg.innerHTML = list.map(([i, j, v]) => { // numbers only
      const [ax, ay] = middle(0, i), [bx, by] = middle(1, j);
      const mx = (ax + bx) / 2, my = (ay + by) / 2; // below: among all pairs, the weak keep quiet
      const weight = (Math.abs(v) / strongest) ** (at ? 0.5 : 1);
      const bend = stacked ? [mx + 0.15 * Math.abs(by - ay), my]
        : [mx, Math.max(my - 0.15 * Math.abs(bx - ax), 4 - my)]; // not above the stage
      return `<path class="${v > 0 ? "pos" : "neg"}" d="M${ax},${ay}Q${bend} ${bx},${by}"
        opacity="${0.15 + 0.8 * weight}" stroke-width="${0.7 + 1.5 * weight}"/>`;
    }).reverse().join(""); // the strongest on top
  }

  /** The frame around the patch pointed at; to screen readers, the selected cell. */
  function drawFrame(side) {
    const frame = pics[side].querySelector(".patch"), here = at?.side === side;
    const patch = at && (here ? at.patch : pair), { rows, columns } = size[side];
    frame.hidden = patch === null;
    frame.parentElement.role = frame.hidden ? null : "row"; // a row without a cell is none
    if (frame.hidden) return pics[side].removeAttribute("aria-activedescendant");
    const row = Math.floor(patch / columns), column = patch % columns;
    const box = [row / rows, 1 - (column + 1) / columns, 1 - (row + 1) / rows, column / columns];
    frame.style.inset = box.map((part) => `${100 * part}%`).join(" ");
    frame.className = `patch ${locked && here ? "locked" : ""}`;
    frame.ariaLabel = place(side, patch) + (covered[side].has(patch) ? ", covered" : "");
    Object.assign(frame, { ariaSelected: here, ariaColIndex: column + 1 });
    frame.parentElement.ariaRowIndex = row + 1;
    pics[side].setAttribute("aria-activedescendant", frame.id);
  }

  function draw() {
    const list = pairs(), what = find(".draw").value, sign = find(".sign").value;
    for (const side of [0, 1]) {
      let strength = () => 0;
      if (what.includes("heat") && !at) {
        const rest = remaining(side);
        strength = (p) => sign === (rest[p] > 0 ? "negative" : "positive") ? 0
          : Math.max(-1, Math.min(1, rest[p] / strongestSum[side]));
      } else if (what.includes("heat") && at.side !== side) {
        const found = new Map(list.map((one) => [one[side], one[2]]));
        const root = (v) => Math.sign(v) * Math.sqrt(Math.abs(v) / strongest); // the weak show, too
        strength = (p) => root(found.get(p) ?? 0);
      }
      drawHeat(side, strength);
      drawFrame(side);
      pics[side].classList.toggle("quiet", !at || at.side !== side);
    }
    drawArcs(what.includes("arcs") ? list.slice(0, at ? MOST_ARCS : list.length) : []);
    writeNumbers(list);
    writeTable(list);
    find("output").textContent = percent(threshold());
  }

  // --- what the reader does ---
  function point(side, patch) {
    if (at?.side === side && at.patch === patch) return;
    [at, pair, last[side]] = [{ side, patch }, null, patch];
    draw();
  }

  function leave() {
    pair = null;
    at = locked ? at : null;
    draw();
  }

  /** Lock a patch, or let go of the one that is locked. */
  function lock(side, patch) {
    locked = !(locked && at?.side === side && at.patch === patch);
    at = null;
    point(side, patch);
  }

  function cover(side, patch, hide) {
    if (covered[side].has(patch) === hide) return;
    covered[side][hide ? "add" : "delete"](patch);
    writeCover();
    draw();
  }

  /** The patch under the pointer, or null beside the picture. */
  function under(side, event) {
    const box = pics[side].getBoundingClientRect(), { rows, columns } = size[side];
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const inside = column >= 0 && row >= 0 && column < columns && row < rows;
    return inside ? row * columns + column : null;
  }

  pics.forEach((pic, side) => {
    const { rows, columns } = size[side], { url: src, size: [width, height] } = pictures[side];
    Object.assign(pic.querySelector("img"), { width, height, src }); // sized: the page keeps still
    Object.assign(pic.querySelector("canvas"), { width: columns, height: rows });
    pic.querySelector(".patch").id = `bilrp-${Math.random().toString(36).slice(2)}`;
    Object.assign(pic, { ariaRowCount: rows, ariaColCount: columns, ariaLabel: `${names[side]}: ${
      rows} by ${columns} patches. Arrow keys move, Enter locks, Escape lets go, space covers.` });

    on(pic, "pointerdown pointermove", (event) => {
      const patch = under(side, event);
      if (patch === null) return;
      if (event.type === "pointerdown" && !event.button && covering.checked)
        paint = !covered[side].has(patch);
      if (paint !== null) cover(side, patch, paint);
      if (!locked) return point(side, patch);
      pair = side === at.side ? null : patch;
      draw();
    });
    on(pic, "pointerup pointercancel pointerleave", (event) => {
      paint = null;
      // a finger that is lifted leaves, but what it tapped stays
      if (event.type === "pointerleave" && event.pointerType !== "touch") leave();
    });
    on(pic, "click", (event) => {
      const patch = under(side, event);
      if (!covering.checked && patch !== null) lock(side, patch);
    });
    on(pic, "focus", () => !locked && pic.matches(":focus-visible") && point(side, last[side]));
    on(pic, "blur", leave);
    on(pic, "keydown", (event) => {
      const patch = last[side], column = patch % columns;
      const step = (possible, by) => point(side, possible ? patch + by : patch);
      const keys = {
        ArrowUp: () => step(patch >= columns, -columns),
        ArrowDown: () => step(patch + columns < count[side], columns),
        ArrowLeft: () => step(column > 0, -1), ArrowRight: () => step(column < columns - 1, 1),
        Enter: () => lock(side, patch), Escape: () => { locked = false; draw(); },
        " ": () => covering.checked && cover(side, patch, !covered[side].has(patch)),
      };
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      keys[event.key]();
      event.preventDefault(); // the page stays where it is
    });
  });
  [".threshold", ".sign", ".draw"].forEach((name) => on(find(name), "input", draw));
  on(find("details"), "toggle", draw);
  on(covering, "input", () => {
    root.classList.toggle("covering", covering.checked);
    writeCover();
  });
  on(find(".swap"), "click", () => {
    stage.append(stage.firstElementChild, svg); // the first comes second, the arcs stay on top
    draw();
  });
  on(find(".reset"), "click", () => {
    watch.disconnect();
    mount(root, data, ask);
    find(".reset").focus();
  });
  on(find(".ask"), "click", async () => {
    const mine = ++ticket, line = find(".true"), button = find(".ask");
    button.disabled = true;
    line.textContent = "computing …";
    const reply = await ask(covered.map((patches) => [...patches]));
    if (mine !== ticket) return; // covered something else since
    button.disabled = false;
    line.replaceChildren(...(reply.error ? [reply.error] : change("true change: ", reply.change)));
  });

  writeCover();
  const watch = new ResizeObserver(draw); // arcs are in pixels; this draws for the first time, too
  watch.observe(stage);
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
