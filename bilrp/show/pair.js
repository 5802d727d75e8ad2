// Two inputs side by side, a frame around what is pointed at, heat and arcs, and numbers in words:
// what the explorer and the gallery have in common. It is put before the script of either (see
// MODULES in explorer.py, SCRIPTS in gallery/__init__.py).
//
// A view has `pics`, the two elements; `stage` around them and `svg` upon it; `size`, the rows and
// columns of owners; `names`; `y`; and `pictures` or `tokens`. What differs between two pictures
// and two lines of tokens is a kind: `picture` here, `line` in pair_line.js. A box of owners is
// [row, column, last row, last column].

const RED = [178, 24, 43], BLUE = [33, 102, 172];
const MOST_ARCS = 40; // for one patch; more would hide the picture

// "dark-light" asks the book's theme not to dim the picture. The one cell of the grid that exists
// is the one pointed at, which ARIA allows; it is also the frame that is seen.
const PICTURE = `<div class="pic" role="grid" tabindex="0">
  <img class="dark-light" alt="" draggable="false"><canvas></canvas>
  <div><div class="patch" role="gridcell" hidden></div></div></div>`;

const picture = {
  one: "patch", many: "patches", html: PICTURE, css: "", place: patchPlace, fill: fillPicture,
  heat: heatPicture, frame: patchFrame, middle: patchMiddle, under: patchUnder, arc: patchArc,
};

// --- numbers and words; names are set as text, never as HTML ---
/** Numbers of the given kind from base64 of little-endian bytes. */
const unpack = (Kind, text) =>
  new Kind(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)).buffer);
const largest = (numbers) => numbers.reduce((most, v) => Math.max(most, Math.abs(v)), 0) || 1;
const total = (numbers) => numbers.reduce((sum, v) => sum + v, 0);

const plain = (v) => String(Number(v.toPrecision(4))).replace("-", "−");
const percent = (part) =>
  `${(100 * part).toFixed(Math.abs(part) < 0.09995 ? 2 : 1)
    .replace(/^-(?=0\.0+$)/, "").replace("-", "−")} %`;
const many = (n, what, plural) => `${n} ${n === 1 ? what : plural}`;

const make = (tag, textContent = "", className = "") =>
  Object.assign(document.createElement(tag), { textContent, className });
const on = (element, kinds, act) =>
  kinds.split(" ").forEach((kind) => element.addEventListener(kind, act));
const newId = () => `bilrp-${Math.random().toString(36).slice(2)}`;

/** A score as a share of y (or as it is, where y is zero), with sign and colour. */
function share({ y }, v, tag = "b") {
  const text = y ? percent(v / y) : plain(v), sign = text[0] === "−" || !v ? "" : "+";
  return make(tag, sign + text, v > 0 ? "pos" : v < 0 ? "neg" : "");
}

/** The box that holds one owner, and all owners in a box. */
function boxOf({ size }, side, owner) {
  const { columns } = size[side], row = Math.floor(owner / columns), column = owner % columns;
  return [row, column, row, column];
}

function ownersIn({ size }, side, [row, column, lastRow, lastColumn]) {
  const owners = [];
  for (let r = row; r <= lastRow; r++)
    for (let c = column; c <= lastColumn; c++) owners.push(r * size[side].columns + c);
  return owners;
}

// --- pictures ---
const span = (what, from, to) =>
  from === to ? `${what} ${from + 1}` : `${what}s ${from + 1} to ${to + 1}`;

function patchPlace(view, side, box) {
  return `${span("row", box[0], box[2])}, ${span("column", box[1], box[3])}`;
}

function fillPicture({ names, pics, pictures, size }, side, keys) {
  const { rows, columns } = size[side], { url: src, size: [width, height] } = pictures[side];
  const pic = pics[side];
  Object.assign(pic.querySelector("img"), { width, height, src }); // sized: the page keeps still
  Object.assign(pic.querySelector("canvas"), { width: columns, height: rows });
  Object.assign(pic, { ariaRowCount: rows, ariaColCount: columns,
    ariaLabel: `${names[side]}: ${rows} by ${columns} patches. ${keys}` });
}

/** One pixel of the canvas is one patch: tinted by strength(patch) in -1..1, or hidden. */
function heatPicture({ pics, pictures, size }, side, strength, hidden = () => false) {
  const context = pics[side].querySelector("canvas").getContext("2d");
  const { rows, columns } = size[side], image = context.createImageData(columns, rows);
  for (let p = 0; p < rows * columns; p++) {
    const s = strength(p), hide = hidden(p);
    const colour = hide ? pictures[side].mean : s > 0 ? RED : BLUE;
    image.data.set([...colour, hide ? 255 : 230 * Math.min(1, Math.abs(s))], 4 * p);
  }
  context.putImageData(image, 0, 0);
}

/** Where the frame around a box lies in its picture, as style. */
function patchFrame({ size }, side, [row, column, lastRow, lastColumn]) {
  const { rows, columns } = size[side];
  const inset = [row / rows, 1 - (lastColumn + 1) / columns, 1 - (lastRow + 1) / rows,
    column / columns];
  return { inset: inset.map((part) => `${100 * part}%`).join(" ") };
}

/** The middle of a box on the stage, in pixels. */
function patchMiddle({ pics, size, stage }, side, [row, column, lastRow, lastColumn]) {
  const { rows, columns } = size[side];
  const outer = stage.getBoundingClientRect(), pic = pics[side].getBoundingClientRect();
  return [pic.left - outer.left + ((column + lastColumn + 1) / 2 / columns) * pic.width,
    pic.top - outer.top + ((row + lastRow + 1) / 2 / rows) * pic.height];
}

/** The patch under the pointer, or null beside the picture. */
function patchUnder({ pics, size }, side, event) {
  const box = pics[side].getBoundingClientRect(), { rows, columns } = size[side];
  const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
  const within = column >= 0 && row >= 0 && column < columns && row < rows;
  return within ? row * columns + column : null;
}

function patchArc({ pics }, [ax, ay], [bx, by]) {
  const [first, second] = pics.map((pic) => pic.getBoundingClientRect());
  const stacked = Math.abs(first.top - second.top) > first.height / 2;
  const mx = (ax + bx) / 2, my = (ay + by) / 2;
  const bend = stacked ? [mx + 0.15 * Math.abs(by - ay), my]
    : [mx, Math.max(my - 0.15 * Math.abs(bx - ax), 4 - my)]; // not above the stage
  return `M${ax},${ay}Q${bend} ${bx},${by}`;
}

// --- of either kind ---
/** Arcs [box, box', score, weight in 0..1], the strongest first, which is drawn on top. */
function drawArcs(view, list) {
  const { kind } = view;
  view.svg.innerHTML = list.map(([box, box2, v, weight]) => { // numbers only
    const curve = kind.arc(view, kind.middle(view, 0, box), kind.middle(view, 1, box2));
    return `<path class="${v > 0 ? "pos" : "neg"}" d="${curve}"
      opacity="${0.15 + 0.8 * weight}" stroke-width="${0.7 + 1.6 * weight}"/>`;
  }).reverse().join("");
}

/** The frame around a box, or none; to screen readers, the selected cell of the grid. */
function drawFrame(view, side, box, { locked, selected, label }) {
  const pic = view.pics[side], frame = pic.querySelector(".patch");
  frame.id ||= newId();
  frame.hidden = !box;
  frame.parentElement.role = box ? "row" : null; // a row without a cell is none
  if (!box) return pic.removeAttribute("aria-activedescendant");
  Object.assign(frame.style, view.kind.frame(view, side, box));
  frame.classList.toggle("locked", Boolean(locked));
  Object.assign(frame, { ariaLabel: label, ariaSelected: selected, ariaColIndex: box[1] + 1 });
  frame.parentElement.ariaRowIndex = box[0] + 1;
  pic.setAttribute("aria-activedescendant", frame.id);
}
