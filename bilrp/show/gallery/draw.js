// The gallery's pictures: heat, arcs and frames.

const RED = [178, 24, 43], BLUE = [33, 102, 172];
const MOST_ARCS = 40; // more would hide the pictures
const LEAST = 0.01; // of the strongest: what is weaker is not drawn

// --- what is asked, and its answer ---
const inside = (box, columns) => {
  const patches = [];
  for (let r = box[0]; r <= box[2]; r++)
    for (let c = box[1]; c <= box[3]; c++) patches.push(r * columns + c);
  return patches;
};
const patchBox = ({ pair }, side, patch) => {
  const { columns } = pair.grid[side], r = Math.floor(patch / columns), c = patch % columns;
  return [r, c, r, c];
};

/** Scores of the patches asked about, together, with each patch of the other picture. */
function partners({ pair, at }) {
  const scores = new Float64Array(pair.count[1 - at.side]);
  for (const p of inside(at.box, pair.grid[at.side].columns))
    for (let q = 0; q < scores.length; q++) scores[q] += pair.score(at.side, p, q);
  return scores;
}

/** For each patch of the picture asked about: how much more it speaks for partner b than for c. */
function contrast({ pair, at, kept: [b, c] }) {
  return Float64Array.from({ length: pair.count[at.side] },
    (_, p) => pair.score(at.side, p, b) - pair.score(at.side, p, c));
}

/** The strongest of these scores, as [patch, score], those too weak to draw left out. */
function strongest(scores, least) {
  return [...scores.entries()].filter(([, v]) => v && Math.abs(v) >= least)
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
}

// --- pictures ---
function fillPicture(view, side) {
  const pic = view.pics[side], { rows, columns } = view.pair.grid[side];
  const { url, size: [width, height] } = view.pair.pictures[side];
  const { href: src } = new URL(url, base);
  Object.assign(pic.querySelector("img"), { width, height, src }); // sized: the page keeps still
  Object.assign(pic.querySelector("canvas"), { width: columns, height: rows });
  const name = view.pair.names[side];
  Object.assign(pic, { ariaRowCount: rows, ariaColCount: columns, ariaLabel: `${name}: ${rows} by ${
    columns} patches. Arrow keys move, with Shift they widen a region, Enter keeps, Escape lets go.` });
  pic.nextElementSibling.textContent = name;
}

/** One pixel of the canvas is one patch, tinted by strength(patch) in -1..1. */
function drawHeat(view, side, strength) {
  const { rows, columns } = view.pair.grid[side];
  const context = view.pics[side].querySelector("canvas").getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let p = 0; p < rows * columns; p++) {
    const s = Math.max(-1, Math.min(1, strength(p)));
    image.data.set([...(s > 0 ? RED : BLUE), 230 * Math.abs(s)], 4 * p);
  }
  context.putImageData(image, 0, 0);
}

/** What tints a picture; null: nothing does, and the photo keeps its colours. */
function tint(view, side, scores) {
  const { at, pair } = view;
  const root = (v, most) => Math.sign(v) * Math.sqrt(Math.abs(v) / most); // the weak show, too
  if (!at) {
    const most = largest(pair.sums[side]);
    return (p) => pair.sums[side][p] / most;
  }
  if (at.side !== side) {
    // A weak patch is to look weak: its scale is the strongest pair of all.
    const most = Math.max(largest(scores), view.ask === "region" ? 0 : pair.strongest);
    return (p) => (Math.abs(scores[p]) < LEAST * most ? 0 : root(scores[p], most));
  }
  if (view.kept.length < 2) return null;
  const more = contrast(view), most = largest(more);
  return (p) => root(more[p], most);
}

/** The middle of a box on the stage, in pixels. */
function middle(view, side, box) {
  const stage = view.stage.getBoundingClientRect(), pic = view.pics[side].getBoundingClientRect();
  const { rows, columns } = view.pair.grid[side];
  return [pic.left - stage.left + ((box[1] + box[3] + 1) / 2 / columns) * pic.width,
    pic.top - stage.top + ((box[0] + box[2] + 1) / 2 / rows) * pic.height];
}

function arc(view, box, box2, v, weight) {
  const [ax, ay] = middle(view, 0, box), [bx, by] = middle(view, 1, box2);
  const mx = (ax + bx) / 2, my = (ay + by) / 2;
  const bend = view.stacked() ? [mx + 0.15 * Math.abs(by - ay), my]
    : [mx, Math.max(my - 0.15 * Math.abs(bx - ax), 4 - my)]; // not above the stage
  return `<path class="${v > 0 ? "pos" : "neg"}" d="M${ax},${ay}Q${bend} ${bx},${by}"
    opacity="${0.15 + 0.8 * weight}" stroke-width="${0.7 + 1.8 * weight}"/>`; // numbers only
}

function drawArcs(view, list) {
  const { at, pair, kept } = view, box = (side, p) => patchBox(view, side, p);
  let arcs;
  if (at) {
    const shown = kept.length ? list.filter(([q]) => kept.includes(q)) : list;
    const most = Math.max(pair.strongest, shown.length ? Math.abs(shown[0][1]) : 0);
    arcs = shown.slice(0, MOST_ARCS).map(([q, v]) => {
      const ends = [at.box, box(1 - at.side, q)];
      return arc(view, ends[at.side], ends[1 - at.side], v, Math.sqrt(Math.abs(v) / most));
    });
  } else { // among all pairs, the weak keep quiet
    arcs = pair.best.map(([i, j, v]) =>
      arc(view, box(0, i), box(1, j), v, Math.abs(v) / pair.strongest));
  }
  view.svg.innerHTML = arcs.reverse().join(""); // the strongest on top
}

function setFrame(frame, box, { rows, columns }) {
  frame.hidden = !box;
  if (!box) return;
  const inset = [box[0] / rows, 1 - (box[3] + 1) / columns, 1 - (box[2] + 1) / rows,
    box[1] / columns];
  frame.style.inset = inset.map((part) => `${100 * part}%`).join(" ");
}

/** The frames of a picture; the first is, to screen readers, the selected cell. */
function drawFrames(view, side) {
  const { at, hover, kept, pair } = view, pic = view.pics[side], here = at?.side === side;
  const others = hover === null || kept.length === 2 || kept.includes(hover) ? kept : [...kept, hover];
  const boxes = here ? [at.box] : at ? others.map((q) => patchBox(view, side, q)) : [];
  const [first, second] = pic.querySelectorAll(".patch");
  setFrame(first, boxes[0], pair.grid[side]);
  setFrame(second, boxes[1], pair.grid[side]);
  const letters = view.ask === "compare" ? (here ? "A" : "BC") : "";
  [first.dataset.letter, second.dataset.letter] = [letters[0] ?? "", letters[1] ?? ""];
  first.classList.toggle("locked", here && view.locked);
  first.parentElement.role = first.hidden ? null : "row"; // a row without a cell is none
  if (first.hidden) return pic.removeAttribute("aria-activedescendant");
  Object.assign(first, { ariaSelected: here, ariaColIndex: boxes[0][1] + 1,
    ariaLabel: where(view, side, boxes[0]) });
  first.parentElement.ariaRowIndex = boxes[0][0] + 1;
  pic.setAttribute("aria-activedescendant", first.id);
}

function draw(view) {
  if (!view.pair) return;
  const { at, pair } = view, scores = at ? partners(view) : null;
  const list = at ? strongest(scores, LEAST * Math.max(largest(scores), pair.strongest)) : [];
  for (const side of [0, 1]) {
    const strength = tint(view, side, scores);
    drawHeat(view, side, strength ?? (() => 0));
    drawFrames(view, side);
    view.pics[side].classList.toggle("quiet", strength !== null);
  }
  drawArcs(view, list);
  sayAll(view, scores);
  writeTable(view, list);
  view.find(".release").disabled = !at;
}

