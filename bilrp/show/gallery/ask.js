// What the reader does: choose two inputs, point, drag, press keys.

const TEMPLATE = `<style></style><form class="settings"></form>
  <div class="shelves"></div>
  <p class="trouble" role="alert" hidden></p>
  <div class="stage"></div>
  <div class="asking"><form class="asks"></form>
    <button type="button" class="swap">Swap</button>
    <button type="button" class="surprise">Surprise me</button>
    <button type="button" class="release">Start again</button></div>
  <div class="answers"><div class="readout" aria-live="polite"></div>
    <div class="ledger"></div></div>
  <details><summary>The strongest pairs as a table</summary><table></table></details>
  <p class="accuracy"></p>`;
const SECOND = `<div class="patch second" aria-hidden="true" hidden></div>`; // a frame more
const KEYS = "Arrow keys move, with Shift they widen a region, Enter keeps, Escape lets go.";

// --- what the reader does with the pictures ---
function point(view, side, box) {
  if (view.at?.side === side && String(view.at.box) === String(box)) return;
  Object.assign(view, { at: { side, box }, hover: null, kept: [] });
  draw(view);
}

function release(view) {
  Object.assign(view, { at: null, locked: false, kept: [], hover: null, drag: null });
  draw(view);
}

/** A click or Enter on a patch: keep it, let go of it, or make it partner B or C. */
function choose(view, side, patch) {
  const { at, ask, kept, locked } = view, box = boxOf(view, side, patch);
  view.last[side] = patch;
  if (ask === "compare" && locked && at.side !== side) {
    view.kept = kept.length === 2 ? [patch] : kept.includes(patch) ? kept : [...kept, patch];
    view.hover = null;
    return draw(view);
  }
  if (locked && at.side === side && String(at.box) === String(box)) {
    view.locked = false;
    return draw(view);
  }
  view.locked = true;
  view.at = null;
  point(view, side, box);
}

function hoverOver(view, side, patch) {
  if (!view.locked) return point(view, side, boxOf(view, side, patch));
  view.hover = side === view.at.side ? null : patch;
  draw(view);
}

/** A box from where a drag began to where it is. */
function stretch(view, side, from, to) {
  const [a, b] = [boxOf(view, side, from), boxOf(view, side, to)];
  view.locked = true;
  point(view, side, [Math.min(a[0], b[0]), Math.min(a[1], b[1]),
    Math.max(a[0], b[0]), Math.max(a[1], b[1])]);
}

/** After a tap, the other picture and the read-out are in the window. */
function bringIntoView(view, side) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const bar = view.find(".readout").getBoundingClientRect();
  const pic = view.pics[1 - side].getBoundingClientRect();
  const top = 70, floor = Math.min(innerHeight, bar.top); // below the page's own bar
  const by = pic.bottom > floor ? pic.bottom - floor + 8 : pic.top < top ? pic.top - top : 0;
  if (by) scrollBy({ top: by, behavior: calm ? "instant" : "smooth" });
}

function answerPointer(view, side) {
  const pic = view.pics[side];
  const see = (event) => (view.pair ? view.kind.under(view, side, event) : null);
  const touch = (event) => event.pointerType === "touch";
  on(pic, "pointerdown", (event) => {
    const from = see(event), scrolls = touch(event) && view.ask !== "region";
    view.drag = from === null || event.button || scrolls || view.ask === "compare" ? null
      : { side, from, moved: false };
  });
  on(pic, "pointermove", (event) => {
    const patch = see(event);
    if (!event.buttons) view.drag = null;
    if (patch === null || (touch(event) && !view.drag)) return;
    if (!view.drag) return hoverOver(view, side, patch);
    if (!view.drag.moved && patch === view.drag.from) return;
    view.drag.moved = true;
    setAsk(view, "region");
    stretch(view, side, view.drag.from, patch);
  });
  on(pic, "pointerup", (event) => {
    if (touch(event) && view.drag?.moved) bringIntoView(view, side);
  });
  on(pic, "click", (event) => {
    const patch = see(event), dragged = view.drag?.moved;
    view.drag = null;
    if (patch === null || dragged) return;
    choose(view, side, patch);
    if (touch(event)) bringIntoView(view, side);
  });
  on(pic, "pointerleave", (event) => {
    if (!touch(event)) leave(view); // a finger that is lifted leaves; what it chose stays
  });
}

function leave(view) {
  view.hover = null;
  if (!view.pair) return;
  if (!view.locked) view.at = null;
  draw(view);
}

function answerKeys(view, side) {
  const pic = view.pics[side];
  on(pic, "focus", () => {
    if (view.pair && !view.locked && pic.matches(":focus-visible"))
      point(view, side, boxOf(view, side, view.last[side]));
  });
  on(pic, "blur", () => leave(view));
  on(pic, "keydown", (event) => {
    if (!view.pair || event.ctrlKey || event.metaKey || event.altKey) return;
    const { rows, columns } = view.size[side], patch = view.last[side];
    const row = Math.floor(patch / columns), column = patch % columns;
    const go = (r, c) => step(view, side, event.shiftKey,
      Math.max(0, Math.min(rows - 1, r)) * columns + Math.max(0, Math.min(columns - 1, c)));
    const keys = {
      ArrowUp: () => go(row - 1, column), ArrowDown: () => go(row + 1, column),
      ArrowLeft: () => go(row, column - 1), ArrowRight: () => go(row, column + 1),
      Home: () => go(row, 0), End: () => go(row, columns - 1),
      Enter: () => choose(view, side, patch), Escape: () => release(view),
    };
    if (!keys[event.key]) return;
    keys[event.key]();
    event.preventDefault(); // the page stays where it is
  });
}

/** An arrow key moves the patch pointed at, or widens the region from where Shift was first held. */
function step(view, side, widen, to) {
  const from = view.anchor?.side === side && view.at?.side === side ? view.anchor.patch
    : view.last[side];
  view.last[side] = to;
  if (widen && !(view.locked && view.at.side !== side)) {
    view.anchor = { side, patch: from };
    setAsk(view, "region");
    return stretch(view, side, from, to);
  }
  view.anchor = null;
  if (view.ask === "region" && view.at?.side === side) view.locked = false;
  hoverOver(view, side, to);
}

// --- what the reader chooses ---
/** A group of radio buttons; choices are [value, label, picture?]. */
function radios(form, name, legend, choices, value, chosen) {
  const group = form.appendChild(make("fieldset", "", name));
  group.append(make("legend", legend));
  const id = `bilrp-${name}-${Math.random().toString(36).slice(2)}`;
  for (const [key, text, picture] of choices) {
    const label = group.appendChild(make("label")), words = make("span", text);
    const input = label.appendChild(make("input"));
    Object.assign(input, { type: "radio", name: id, value: key, checked: key === value });
    on(input, "input", () => chosen(key));
    if (picture) {
      label.title = text;
      label.append(Object.assign(new Image(), { src: picture, alt: "", loading: "lazy" }));
    }
    label.append(words);
  }
  return group;
}

/** A list to choose from; choices are [value, label]. */
function menu(form, name, legend, choices, value, chosen) {
  const label = form.appendChild(make("label", `${legend} `, name));
  const select = label.appendChild(make("select"));
  select.append(...choices.map(([key, text]) => new Option(text, key, false, key === value)));
  on(select, "change", () => chosen(Number(select.value)));
}

function setAsk(view, ask) {
  if (view.ask === ask) return;
  view.ask = ask;
  view.root.dataset.ask = ask;
  view.root.querySelectorAll(".asks input").forEach((i) => { i.checked = i.value === ask; });
}

function fillControls(view) {
  const { choice, collections, root } = view, one = collections[choice.of];
  const settings = view.find(".settings"), redo = (change) => show(view, change);
  const held = root.contains(document.activeElement) && document.activeElement;
  const where = held && held.closest("fieldset, label.menu")?.className; // keeps the focus
  settings.replaceChildren();
  radios(settings, "of", "Compare", Object.values(collections).map((c) => [c.name, c.title]),
    choice.of, (of) => redo({ of }));
  for (const [name, legend] of [["layer", "Layer"], ["gamma", "Gamma"]]) {
    const there = one.settings.filter((s) => name === "layer" || same(s.layer, choice.layer));
    const choices = [...new Map(there.map((s) => [s[name], [s[name], s.label[name]]])).values()];
    if (choices.length > 1)
      radios(settings, name, legend, choices, choice[name], (value) => redo({ [name]: value }));
  }
  fillShelves(view, one, redo);
  if (where) root.querySelector(`[class="${where}"] :is(:checked, select)`)?.focus();
}

/** What to choose from: two shelves of small pictures, or two lists of names. */
function fillShelves(view, one, redo) {
  const { choice, root } = view, shelves = view.find(".shelves");
  shelves.replaceChildren();
  ["i", "j"].forEach((name, side) => {
    const chosen = (k) => redo({ [name]: k }), names = namesOf(one, side);
    const legend = one.shelves?.[side] ?? `${side ? "Second" : "First"} picture`;
    if (one.tokens)
      return menu(shelves, `menu ${name}`, legend, names.map((text, k) => [k, text]), choice[name], chosen);
    const thumb = (k) => new URL(one.pictures[k].thumb, base).href;
    radios(shelves, `shelf ${name}`, legend, names.map((text, k) => [k, text, thumb(k)]),
      choice[name], chosen);
  });
  root.querySelectorAll(".shelf input:checked").forEach((input) => {
    const shelf = input.closest("fieldset"); // a shelf may scroll: to the chosen one, not the page
    shelf.scrollLeft = input.parentElement.offsetLeft - shelf.clientWidth / 2;
  });
}

function answerButtons(view) {
  const { choice, find, collections } = view;
  on(find(".swap"), "click", () => show(view, { i: view.choice.j, j: view.choice.i }));
  on(find(".surprise"), "click", () => {
    const n = namesOf(collections[view.choice.of], 0).length, i = Math.floor(n * Math.random());
    show(view, { i, j: (i + 1 + Math.floor((n - 1) * Math.random())) % n });
  });
  on(find(".release"), "click", () => release(view));
  on(find("details"), "toggle", () => draw(view));
}

// --- what is shown ---
/** Whether two values mean one setting, be they of a link, a control or the data. */
const same = (a, b) => String(a) === String(b);

/** Take a change over into the choice; returns the setting that then fits. */
function change(view, asked) {
  const { choice, collections } = view, of = asked.of ?? choice.of, one = collections[of];
  if (of !== choice.of) Object.assign(choice, { ...one.start, layer: undefined, gamma: undefined });
  Object.assign(choice, asked);
  const stored = (s) => same(s.layer, choice.layer) && same(s.gamma, choice.gamma);
  if (asked.layer !== undefined && asked.gamma === undefined && !one.settings.some(stored))
    choice.gamma = undefined; // a layer that is not stored with this gamma
  const setting = settingOf(one, choice);
  Object.assign(choice, { layer: setting.layer, gamma: setting.gamma });
  return setting;
}

/** Change the choice, load what it needs, and show it; of several changes, the last one counts. */
async function show(view, asked = {}) {
  const setting = change(view, asked), mine = ++view.ticket, { choice, root } = view;
  const one = view.collections[choice.of];
  fillControls(view);
  root.ariaBusy = "true";
  try {
    const pair = await explainPair(one, setting, choice.i, choice.j);
    if (mine !== view.ticket) return; // chose something else since
    const again = asked.layer !== undefined || asked.gamma !== undefined; // the same two inputs
    showPair(view, one, pair, again && view.pair);
    writeLedger(view);
    writeAccuracy(view, setting);
    draw(view);
  } catch (error) {
    if (mine === view.ticket) fail(view, error);
  }
  root.ariaBusy = "false";
}

/** Put a pair on the stage; `again`: these two are there already, and stay as they are asked. */
function showPair(view, one, pair, again) {
  const { size, names, pictures, tokens, y } = pair;
  setKind(view, one.tokens ? line : picture);
  Object.assign(view, CALLED, one.called, { pair, size, names, pictures, tokens, y });
  view.find(".trouble").hidden = true;
  for (const side of [0, 1]) {
    view.kind.fill(view, side, KEYS);
    view.pics[side].nextElementSibling.textContent = names[side];
  }
  fillAsks(view);
  if (again) return;
  Object.assign(view, { at: null, locked: false, kept: [], hover: null });
  view.last = size.map((g) => (tokens ? 0 : (g.rows >> 1) * g.columns + (g.columns >> 1)));
}

/** A stage for two pictures or for two lines. */
function setKind(view, kind) {
  if (view.kind === kind) return;
  const figure = `<figure>${kind.html}<figcaption></figcaption></figure>`;
  view.stage.innerHTML = `${figure}${figure}<svg class="arcs" aria-hidden="true"></svg>`;
  view.pics = [...view.stage.querySelectorAll(".pic")];
  Object.assign(view, { kind, svg: view.find(".arcs") });
  view.find("style").textContent = `.bilrp-gallery {${kind.css}}`;
  for (const side of [0, 1]) {
    view.pics[side].insertAdjacentHTML("beforeend", SECOND);
    answerPointer(view, side);
    answerKeys(view, side);
  }
}

/** What can be asked about: a patch or, of lines, a letter or a token. */
function fillAsks(view) {
  const [[one], [other]] = view.parts, either = one === other ? one : `${one} or ${other}`;
  const asks = { patch: `A ${either}`, region: "A region", compare: "Two partners" };
  const form = view.find(".asks");
  if (form.title === either) return;
  form.title = either;
  form.replaceChildren();
  radios(form, "ask", "Ask about", Object.entries(asks), view.ask, (ask) => {
    setAsk(view, ask);
    release(view);
  });
}

/** Say what went wrong, in place of pictures that would be those of another choice. */
function fail(view, error) {
  view.pair = null;
  view.svg?.replaceChildren();
  Object.assign(view.find(".trouble"), { hidden: false, textContent: error.message });
  for (const name of [".readout", ".ledger", ".accuracy", "details table"])
    view.find(name).replaceChildren();
  for (const pic of view.pics) {
    pic.querySelectorAll(".patch").forEach((frame) => { frame.hidden = true; });
    pic.querySelector("img")?.removeAttribute("src");
    pic.querySelectorAll("canvas").forEach((canvas) => { canvas.width = 0; });
    pic.querySelector(".words")?.replaceChildren();
  }
}

/** Fill the page's root with the gallery, and show its first pair. */
function mount(root, collections) {
  const find = (name) => root.querySelector(name);
  root.innerHTML = TEMPLATE;
  const first = Object.values(collections)[0];
  const view = {
    root, collections, find, stage: find(".stage"), pics: [], kind: null, // see setKind()
    choice: { of: first.name, ...first.start }, // which two, of what, under which setting
    pair: null, // their explanation; its names, size and the like are the view's, too
    ask: "patch", // or "region", "compare"
    at: null, // the patches asked about, {side, box: [row, column, last row, last column]}
    locked: false, // whether they stay when the pointer goes elsewhere
    kept: [], // partners B and C
    hover: null, // the partner pointed at while `at` is locked
    drag: null, anchor: null, // where a region began, by pointer and by keyboard
    last: [0, 0], // the patch where the keyboard is, in each picture
    ticket: 0, // of the latest choice
  };
  root.dataset.ask = view.ask;
  answerButtons(view);
  answerLinks(view);
  new ResizeObserver(() => draw(view)).observe(view.stage); // arcs are in pixels
  return show(view, wanted(view, location.search));
}

/** What an address such as ?first=20&second=24&layer=31 asks for; {} if nothing. Names do, too. */
function wanted({ collections }, search) {
  const asked = new URLSearchParams(search), of = asked.get("of") ?? Object.keys(collections)[0];
  if (!collections[of]) return {};
  const [i, j] = ["first", "second"].map((name, side) => {
    const names = namesOf(collections[of], side), text = asked.get(name) ?? "";
    return names.includes(text) ? names.indexOf(text) : names[text] ? Number(text) : -1;
  });
  if (i < 0 || j < 0) return {};
  const [layer, gamma] = ["layer", "gamma"].map((name) => asked.get(name) ?? undefined);
  return { of, i, j, layer, gamma };
}

/** Links on the page choose a pair without loading the page again. */
function answerLinks(view) {
  on(document, "click", (event) => {
    const search = event.target.closest?.("a[href^='?']")?.getAttribute("href");
    const change = search ? wanted(view, search) : {};
    if (!("i" in change)) return;
    event.preventDefault();
    show(view, change);
    view.root.scrollIntoView({ block: "start" });
  });
}

for (const root of document.querySelectorAll("[data-gallery]")) {
  const names = root.dataset.gallery.split(" ");
  const all = Promise.all(names.map((name) => load(name, root.dataset.version)))
    .then((found) => Object.fromEntries(found.map((one) => [one.name, one])));
  root.explain = async (i, j, options) => answer(await all, i, j, options);
  root.ready = all.then((collections) => mount(root, collections))
    .catch((error) => root.replaceChildren(make("p", error.message, "trouble")));
}
