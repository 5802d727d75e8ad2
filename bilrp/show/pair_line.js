// The other kind of a pair: two lines of tokens instead of two pictures. See pair.js.

const LINE_CSS = `
  &:has(.line) .stage { gap: 4.5rem; }
  .line { flex: 1 1 100%; max-width: none; cursor: pointer; }
  .words { display: flex; flex-wrap: wrap; justify-content: center; gap: .3rem .15rem;
    font-size: 1.0625rem; line-height: 1.6; }
  .words span { padding: 0 .3em; border-radius: 3px; white-space: pre; margin-left: .35em; }
  .words .joined { margin-left: -.15rem; } .words .hidden { opacity: .4;
    text-decoration: line-through; }
  .line .patch { border-width: 0; outline: 2px solid currentColor; border-radius: 3px;
    &.locked { outline-width: 3.5px; } }
  .line:focus-visible { outline-offset: 8px; }
`;

// The text itself stands in the line's label; the words on the screen are for those who see.
const LINE = `<div class="pic line" role="grid" tabindex="0">
  <div class="words" aria-hidden="true"></div>
  <div><div class="patch" role="gridcell" hidden></div></div></div>`;

const line = {
  one: "token", many: "tokens", html: LINE, css: LINE_CSS, place: tokenPlace, fill: fillLine,
  heat: heatLine, frame: tokenFrame, middle: tokenMiddle, under: tokenUnder, arc: tokenArc,
};

const words = ({ pics }, side) => pics[side].querySelector(".words").children;

/** What the owners of a side are called, [one, many]; numerals have letters and digits. */
const called = ({ parts }, side) => parts?.[side] ?? [line.one, line.many];

function tokenPlace(view, side, [, first, , last]) {
  const [one, many] = called(view, side), all = view.tokens[side];
  const text = all.slice(first, last + 1).map((token, k) => (k && !token.joined ? " " : "")
    + token.text).join("");
  return first === last ? `${one} ${first + 1} “${text}”`
    : `${many} ${first + 1} to ${last + 1} “${text}”`;
}

function fillLine(view, side, keys) {
  const pic = view.pics[side], all = view.tokens[side];
  pic.querySelector(".words").replaceChildren(
    ...all.map(({ text, joined }) => make("span", text, joined ? "joined" : "")));
  const text = all.map(({ text, joined }) => (joined ? "" : " ") + text).join("").trim();
  Object.assign(pic, { ariaRowCount: 1, ariaColCount: all.length, ariaLabel: `${
    view.names[side]}: ${text}. ${many(all.length, ...called(view, side))}. ${keys}` });
}

/** Tokens on a ground tinted by strength(token) in -1..1, or hidden; their ink is to be read. */
function heatLine(view, side, strength, hidden = () => false) {
  [...words(view, side)].forEach((word, k) => {
    const s = hidden(k) ? 0 : Math.max(-1, Math.min(1, strength(k)));
    const [r, g, b] = s > 0 ? RED : BLUE;
    word.style.background = s ? `rgb(${r} ${g} ${b} / ${(0.55 * Math.abs(s)).toFixed(3)})` : "";
    word.classList.toggle("hidden", hidden(k));
  });
}

/** Around the tokens of a box: left, top, right and bottom in the window, in pixels. */
function around(view, side, [, first, , last]) {
  const all = [...words(view, side)].slice(first, last + 1).map((w) => w.getBoundingClientRect());
  const most = (name, pick) => pick(...all.map((box) => box[name]));
  return [most("left", Math.min), most("top", Math.min), most("right", Math.max),
    most("bottom", Math.max)];
}

/** Where the frame around a box lies in its line, as style. */
function tokenFrame(view, side, box) {
  const [left, top, right, bottom] = around(view, side, box);
  const outer = view.pics[side].getBoundingClientRect();
  return { left: `${left - outer.left}px`, top: `${top - outer.top}px`,
    width: `${right - left}px`, height: `${bottom - top}px` };
}

/** Where arcs leave a box, on the side that faces the other line; on the stage, in pixels. */
function tokenMiddle(view, side, box) {
  const [left, top, right, bottom] = around(view, side, box);
  const outer = view.stage.getBoundingClientRect();
  const [own, other] = [side, 1 - side].map((s) => view.pics[s].getBoundingClientRect());
  return [(left + right) / 2 - outer.left, (own.top < other.top ? bottom : top) - outer.top];
}

function tokenArc(view, [ax, ay], [bx, by]) {
  const my = (ay + by) / 2;
  return `M${ax},${ay}C${ax},${my} ${bx},${my} ${bx},${by}`;
}

/** The token under the pointer, or null between them. */
function tokenUnder(view, side, { clientX: x, clientY: y }) {
  const k = [...words(view, side)].findIndex((word) => {
    const box = word.getBoundingClientRect();
    return x >= box.left && x < box.right && y >= box.top && y < box.bottom;
  });
  return k < 0 ? null : k;
}
