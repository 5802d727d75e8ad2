// The gallery's pictures: what is tinted, framed and joined. How that is drawn is in ../pair.js.

const LEAST = 0.01; // of the strongest: what is weaker is not drawn

/** Scores of the patches asked about, together, with each patch of the other picture. */
function partners(view) {
  const { at, pair } = view, scores = new Float64Array(pair.count[1 - at.side]);
  for (const p of ownersIn(view, at.side, at.box))
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

/** Arcs from what is asked about to its partners, or among all pairs; see drawArcs(). */
function arcsOf(view, list) {
  const { at, pair, kept } = view, box = (side, p) => boxOf(view, side, p);
  if (!at) // among all pairs, the weak keep quiet
    return pair.best.map(([i, j, v]) => [box(0, i), box(1, j), v, Math.abs(v) / pair.strongest]);
  const shown = kept.length ? list.filter(([q]) => kept.includes(q)) : list;
  const most = Math.max(pair.strongest, shown.length ? Math.abs(shown[0][1]) : 0);
  return shown.slice(0, MOST_ARCS).map(([q, v]) => {
    const ends = [at.box, box(1 - at.side, q)];
    return [ends[at.side], ends[1 - at.side], v, Math.sqrt(Math.abs(v) / most)];
  });
}

/** The frames of a picture: what is asked about, or one or two partners. */
function drawFrames(view, side) {
  const { at, hover, kept, locked } = view, here = at?.side === side;
  const others = hover === null || kept.length === 2 || kept.includes(hover) ? kept : [...kept, hover];
  const boxes = here ? [at.box] : at ? others.map((q) => boxOf(view, side, q)) : [];
  const [first, second] = view.pics[side].querySelectorAll(".patch");
  drawFrame(view, side, boxes[0], { locked: here && locked, selected: here,
    label: boxes[0] && where(view, side, boxes[0]) });
  second.hidden = !boxes[1];
  if (boxes[1]) Object.assign(second.style, view.kind.frame(view, side, boxes[1]));
  const letters = view.ask === "compare" ? (here ? "A" : "BC") : "";
  [first.dataset.letter, second.dataset.letter] = [letters[0] ?? "", letters[1] ?? ""];
}

function draw(view) {
  if (!view.pair) return;
  const { at, pair } = view, scores = at ? partners(view) : null;
  const list = at ? strongest(scores, LEAST * Math.max(largest(scores), pair.strongest)) : [];
  for (const side of [0, 1]) {
    const strength = tint(view, side, scores);
    view.kind.heat(view, side, strength ?? (() => 0));
    drawFrames(view, side);
    view.pics[side].classList.toggle("quiet", strength !== null);
  }
  drawArcs(view, arcsOf(view, list));
  sayAll(view, scores);
  writeTable(view, list);
  view.find(".release").disabled = !at;
}
