// The gallery's words: the line that is read out, the ledger, the table.

/** What owners, inputs and all else in the ledger are called, of pictures; lines say it themselves. */
const CALLED = { parts: [["patch", "patches"], ["patch", "patches"]], whole: "picture",
  rest: "biases" };

const placeOf = (view, side, patch) => view.kind.place(view, side, boxOf(view, side, patch));
const where = (view, side, box) => `${view.names[side]}, ${view.kind.place(view, side, box)}`;

// --- the read-out ---
function say(view, ...lines) {
  view.find(".readout").replaceChildren(...lines.filter(Boolean).map((parts) => {
    const line = make("p");
    line.append(...parts);
    return line;
  }));
}

/** What to do next, for each way of asking. */
function hint({ ask, parts, whole }) {
  const [one, many] = parts[0], either = one === parts[1][0] ? one : `${one} or a ${parts[1][0]}`;
  return {
    patch: `Point at a ${either}: the other ${whole} shows its partners. A click keeps it.`,
    region: `Draw a box on either ${whole} with the mouse or a finger, or widen it with Shift and`
      + ` the arrow keys: what do these ${many} together match?`,
    compare: `Choose a ${one} A, then two partners B and C in the other ${whole}: why the one and`
      + " not the other?",
  }[ask];
}

function sayStart(view) {
  const { names, pair, parts: [[, first], [, second]], rest, y } = view, part = y && pair.ledger[0] / y;
  const own = first === second ? first : `${first} and ${second}`;
  const biases = y && pair.biases ? `, ${rest} ${percent(1 - part)}` : "";
  say(view, [`${names[0]} and ${names[1]}: y = `, make("b", plain(y)),
    `, cosine ${pair.cosine.toFixed(2)}. `,
    y ? `${own[0].toUpperCase()}${own.slice(1)} carry ${percent(part)}${biases}.` : ""], [hint(view)]);
}

/** What a patch or a region carries, beside its share of the area. */
function sayAsked(view) {
  const { at, names, pair, parts, rest, whole, y } = view, own = ownersIn(view, at.side, at.box);
  const sum = (values) => total(own.map((p) => values[p]));
  const area = `${own.length > 1 ? `${many(own.length, ...parts[at.side])}, ` : ""}${
    percent(own.length / pair.count[at.side])} of the ${whole}`;
  const line = [`${where(view, at.side, at.box)} (${area}): with all of ${names[1 - at.side]} `,
    share(view, sum(pair.sums[at.side])), y ? " of y" : ""];
  if (pair.biases) line.push(`, with its ${rest} `, share(view, sum(pair.toBiases[at.side])));
  return [...line, "."];
}

function sayPartners(view, scores) {
  const { at, pair, parts, whole } = view, other = 1 - at.side;
  const gain = scores.map((v) => Math.max(0, v)).sort().reverse(), all = total(gain);
  if (!all) return [`Nothing in the other ${whole} speaks for it.`];
  let half = 0, sum = 0;
  while (sum < all / 2) sum += gain[half++];
  const best = scores.indexOf(gain[0]);
  return [`Strongest partner: ${placeOf(view, other, best)}, `, share(view, gain[0]),
    `. Half of what speaks for it goes to ${many(half, ...parts[other])}, ${
      percent(half / pair.count[other])} of the other ${whole}.`];
}

function sayCompared(view, scores) {
  const { at, kept: [b, c], names, pair, y } = view, other = 1 - at.side;
  const everywhere = (q) => share(view, pair.sums[other][q]);
  return [["A with B (", placeOf(view, other, b), "): ", share(view, scores[b]), ", A with C (",
    placeOf(view, other, c), "): ", share(view, scores[c]), ". B over C: ",
    share(view, scores[b] - scores[c]), y ? " of y." : "."],
  [`All of ${names[at.side]} gives B `, everywhere(b), " and C ", everywhere(c),
    ". Its colours: what speaks more for B (red), what for C (blue)."]];
}

function sayAll(view, scores) {
  const { at, ask, kept, hover, whole } = view;
  if (!at) return sayStart(view);
  const lines = [sayAsked(view)], other = 1 - at.side;
  if (kept.length === 2) lines.push(...sayCompared(view, scores));
  else {
    lines.push(sayPartners(view, scores));
    const near = hover ?? kept[0] ?? null;
    if (near !== null)
      lines.push([kept.length ? "B" : "With", ` ${placeOf(view, other, near)}: `,
        share(view, scores[near]), kept.length ? ". Now choose C." : "."]);
    else if (ask === "compare" && view.locked) lines.push([`Now choose B in the other ${whole}.`]);
  }
  say(view, ...lines);
}

/** The whole similarity by pairs of owners, as a table that adds up. */
function writeLedger(view) {
  const { names, pair, parts: [[, first], [, second]], rest, y } = view, box = view.find(".ledger");
  box.replaceChildren(make("p", `The ledger of y = ${plain(y)}`, "ledger-title"));
  if (!pair.biases)
    return box.append(make("p", `This network has no ${rest}: the ${first} carry all of it.`));
  const table = box.appendChild(make("table")), head = table.insertRow();
  const cell = (row, v) => {
    const made = row.appendChild(share(view, v, "td"));
    if (y) made.style.setProperty("--part", Math.min(1, Math.abs(v / y)));
  };
  head.append(make("td"), ...[`its ${second}`, `its ${rest}`].map((text) =>
    Object.assign(make("th", text), { scope: "col" })));
  [first, rest].forEach((text, k) => {
    const row = table.insertRow();
    row.append(Object.assign(make("th", text), { scope: "row" }));
    cell(row, pair.ledger[2 * k]);
    cell(row, pair.ledger[2 * k + 1]);
  });
  box.append(make("p", `Rows: ${names[0]}. Columns: ${names[1]}. The four add up to ${
    y ? percent(total(pair.ledger) / y) : plain(total(pair.ledger))}${y ? " of y" : ""}.`));
}

/** How far the scores here may be from those of the engine, as measured when the book was built. */
function writeAccuracy(view, setting) {
  const { pair, parts: [[one]] } = view;
  const made = `Computed here, in your browser, from ${setting.width} numbers a ${one}. `;
  const measured = setting.factors
    ? "These are the factors themselves: the scores are the engine's, but for rounding."
    : `These scores differ from the engine's by ${percent(pair.error)} (norm of the difference over ${
      ""}norm of the scores); over all ${setting.pairs} pairs of this setting by ${
      percent(setting.median)} in the median and ${percent(setting.worst)} at most. The similarity ${
      ""}and the ledger are exact.`;
  view.find(".accuracy").textContent = made + measured;
}

function writeTable(view, list) {
  const table = view.find("details table"), { at, names, pair, y } = view;
  table.replaceChildren();
  if (!view.find("details").open) return; // costs time on every move
  const head = [...names, y ? "share of y" : "score"];
  table.insertRow().append(...head.map((text) => Object.assign(make("th", text), { scope: "col" })));
  const rows = at
    ? list.map(([q, v]) => {
      const two = [where(view, at.side, at.box), placeOf(view, 1 - at.side, q)];
      return [two[at.side], two[1 - at.side], v];
    })
    : pair.best.map(([i, j, v]) => [placeOf(view, 0, i), placeOf(view, 1, j), v]);
  for (const [a, b, v] of rows.slice(0, 10))
    table.insertRow().append(make("td", a), make("td", b), share(view, v, "td"));
}
