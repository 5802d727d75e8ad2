// The gallery's words: the line that is read out, the ledger, the table. Names are set as text.

const make = (tag, textContent = "", className = "") =>
  Object.assign(document.createElement(tag), { textContent, className });

const plain = (v) => Number(v.toPrecision(4)).toLocaleString("en").replace("-", "−");
const percent = (part) =>
  `${(100 * part).toFixed(Math.abs(part) < 0.09995 ? 2 : 1).replace("-", "−")} %`;
const many = (n, what, plural = `${what}es`) => `${n} ${n === 1 ? what : plural}`;
const place = ({ pair }, side, patch) => {
  const { columns } = pair.grid[side];
  return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
};
const span = (what, from, to) =>
  from === to ? `${what} ${from + 1}` : `${what}s ${from + 1} to ${to + 1}`;
const where = (view, side, box) =>
  `${view.pair.names[side]}, ${span("row", box[0], box[2])}, ${span("column", box[1], box[3])}`;

/** A score as a share of y (or as it is, where y is zero), with sign and colour. */
function share({ pair: { y } }, v, tag = "b") {
  const text = y ? percent(v / y) : plain(v), sign = text[0] === "−" || !v ? "" : "+";
  return make(tag, sign + text, v > 0 ? "pos" : v < 0 ? "neg" : "");
}

// --- the read-out ---
function say(view, ...lines) {
  view.find(".readout").replaceChildren(...lines.filter(Boolean).map((parts) => {
    const line = make("p");
    line.append(...parts);
    return line;
  }));
}

const HINTS = {
  patch: "Point at a patch of either picture: the other one shows its partners. A click keeps it.",
  region: "Draw a box on either picture with the mouse or a finger, or widen it with Shift and the"
    + " arrow keys: what do these patches together match?",
  compare: "Choose a patch A, then two partners B and C in the other picture: why the one and not"
    + " the other?",
};

function sayStart(view) {
  const { pair } = view, part = pair.y && pair.ledger[0] / pair.y;
  const biases = pair.y && pair.biases ? `, biases ${percent(1 - part)}` : "";
  say(view, [`${pair.names[0]} and ${pair.names[1]}: y = `, make("b", plain(pair.y)),
    `, cosine ${pair.cosine.toFixed(2)}. `,
    pair.y ? `Patches carry ${percent(part)}${biases}.` : ""], [HINTS[view.ask]]);
}

/** What a patch or a region carries, beside its share of the area. */
function sayAsked(view, scores) {
  const { at, pair } = view, own = inside(at.box, pair.grid[at.side].columns);
  const sum = (values) => total(own.map((p) => values[p]));
  const area = `${own.length > 1 ? `${own.length} patches, ` : ""}${
    percent(own.length / pair.count[at.side])} of the picture`;
  const line = [`${where(view, at.side, at.box)} (${area}): with all of ${
    pair.names[1 - at.side]} `, share(view, sum(pair.sums[at.side])), pair.y ? " of y" : ""];
  if (pair.biases) line.push(", with its biases ", share(view, sum(pair.toBiases[at.side])));
  return [...line, "."];
}

function sayPartners(view, scores) {
  const { at, pair } = view, other = 1 - at.side;
  const gain = scores.map((v) => Math.max(0, v)).sort().reverse(), all = total(gain);
  if (!all) return ["Nothing in the other picture speaks for it."];
  let half = 0, sum = 0;
  while (sum < all / 2) sum += gain[half++];
  const best = scores.indexOf(gain[0]);
  return [`Strongest partner: ${place(view, other, best)}, `, share(view, gain[0]),
    `. Half of what speaks for it goes to ${many(half, "patch")}, ${
      percent(half / pair.count[other])} of the other picture.`];
}

function sayCompared(view, scores) {
  const { at, kept: [b, c], pair } = view, other = 1 - at.side;
  const everywhere = (q) => share(view, pair.sums[other][q]);
  return [["A with B (", place(view, other, b), "): ", share(view, scores[b]), ", A with C (",
    place(view, other, c), "): ", share(view, scores[c]), ". B over C: ",
    share(view, scores[b] - scores[c]), pair.y ? " of y." : "."],
  [`All of ${pair.names[at.side]} gives B `, everywhere(b), " and C ", everywhere(c),
    ". Its colours: what speaks more for B (red), what for C (blue)."]];
}

function sayAll(view, scores) {
  const { at, ask, kept, hover, pair } = view;
  if (!at) return sayStart(view);
  const lines = [sayAsked(view, scores)], other = 1 - at.side;
  if (kept.length === 2) lines.push(...sayCompared(view, scores));
  else {
    lines.push(sayPartners(view, scores));
    const near = hover ?? kept[0] ?? null;
    if (near !== null)
      lines.push([kept.length ? "B" : "With", ` ${place(view, other, near)}: `,
        share(view, scores[near]), kept.length ? ". Now choose C." : "."]);
    else if (ask === "compare" && view.locked) lines.push(["Now choose B in the other picture."]);
  }
  say(view, ...lines);
}

/** The whole similarity by pairs of owners, as a table that adds up. */
function writeLedger(view) {
  const { pair } = view, box = view.find(".ledger");
  box.replaceChildren(make("p", `The ledger of y = ${plain(pair.y)}`, "ledger-title"));
  if (!pair.biases)
    return box.append(make("p", "This network has no biases: the patches carry all of it."));
  const table = box.appendChild(make("table")), head = table.insertRow();
  const cell = (row, v) => {
    const made = row.appendChild(share(view, v, "td"));
    if (pair.y) made.style.setProperty("--part", Math.min(1, Math.abs(v / pair.y)));
  };
  head.append(make("td"), ...["its patches", "its biases"].map((text) => {
    const title = make("th", text);
    title.scope = "col";
    return title;
  }));
  ["patches", "biases"].forEach((text, k) => {
    const row = table.insertRow(), title = row.appendChild(make("th", text));
    title.scope = "row";
    cell(row, pair.ledger[2 * k]);
    cell(row, pair.ledger[2 * k + 1]);
  });
  box.append(make("p", `Rows: ${pair.names[0]}. Columns: ${pair.names[1]}. The four add up to ${
    pair.y ? percent(total(pair.ledger) / pair.y) : plain(total(pair.ledger))}${
    pair.y ? " of y" : ""}.`));
}

/** How far the scores here may be from those of the engine, as measured when the book was built. */
function writeAccuracy(view, one, setting) {
  const { pair } = view;
  view.find(".accuracy").textContent = `Computed here, in your browser, from ${setting.width} numbers a patch. ${
    ""}These scores differ from the engine's by ${percent(pair.error)} (norm of the difference over norm of the ${
    ""}scores); over all ${setting.pairs} pairs of this setting by ${percent(setting.median)} in the ${
    ""}median and ${percent(setting.worst)} at most. The similarity and the ledger are exact.`;
}

function writeTable(view, list) {
  const table = view.find("details table"), { at, pair } = view;
  table.replaceChildren();
  if (!view.find("details").open) return; // costs time on every move
  const head = [...pair.names, pair.y ? "share of y" : "score"];
  table.insertRow().append(...head.map((text) => Object.assign(make("th", text), { scope: "col" })));
  const rows = at
    ? list.map(([q, v]) => {
      const two = [where(view, at.side, at.box), place(view, 1 - at.side, q)];
      return [two[at.side], two[1 - at.side], v];
    })
    : pair.best.map(([i, j, v]) => [place(view, 0, i), place(view, 1, j), v]);
  for (const [a, b, v] of rows.slice(0, 10))
    table.insertRow().append(make("td", a), make("td", b), share(view, v, "td"));
}

