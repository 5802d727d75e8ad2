// The explorer's other kind: two lines of tokens instead of two pictures. See explorer.js.

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
  one: "token", many: "tokens", covered: "left out", verb: "Leave out", html: LINE, css: LINE_CSS,
  place: tokenPlace, fill: fillLine, heat: heatLine, box: tokenBox, middle: tokenMiddle,
  under: tokenUnder, arc: tokenArc,
};

const words = ({ pics }, side) => pics[side].querySelector(".words").children;

function tokenPlace({ tokens }, side, k) {
  return `token ${k + 1} “${tokens[side][k].text}”`;
}

function fillLine({ names, pics, tokens }, side) {
  const pic = pics[side], all = tokens[side];
  pic.querySelector(".words").append(
    ...all.map(({ text, joined }) => make("span", text, joined ? "joined" : "")));
  pic.querySelector(".patch").id = `bilrp-${Math.random().toString(36).slice(2)}`;
  const text = all.map(({ text, joined }) => (joined ? "" : " ") + text).join("").trim();
  Object.assign(pic, { ariaRowCount: 1, ariaColCount: all.length, ariaLabel: `${names[side]}: ${
    text}. ${many(all.length, "token", "tokens")}. Arrow keys move, Enter locks, Escape lets go, ${
    ""}space leaves out.` });
}

/** Tokens on a ground tinted by strength(token) in -1..1; their ink stays, to be read. */
function heatLine(view, side, strength) {
  [...words(view, side)].forEach((word, k) => {
    const s = view.covered[side].has(k) ? 0 : strength(k);
    const [r, g, b] = s > 0 ? RED : BLUE;
    word.style.background = s ? `rgb(${r} ${g} ${b} / ${(0.55 * Math.abs(s)).toFixed(3)})` : "";
    word.classList.toggle("hidden", view.covered[side].has(k));
  });
}

/** Where the frame around a token lies in its line, as style. */
function tokenBox(view, side, k) {
  const word = words(view, side)[k], pic = view.pics[side];
  const [left, top] = inside(word, pic);
  return { left: `${left}px`, top: `${top}px`, width: `${word.offsetWidth}px`,
    height: `${word.offsetHeight}px` };
}

function inside(word, pic) {
  const box = word.getBoundingClientRect(), outer = pic.getBoundingClientRect();
  return [box.left - outer.left, box.top - outer.top];
}

/** Where arcs leave a token, on the side that faces the other line; on the stage, in pixels. */
function tokenMiddle(view, side, k) {
  const word = words(view, side)[k], pic = view.pics[side];
  const [left, top] = inside(word, pic), above = pic.offsetTop < view.pics[1 - side].offsetTop;
  return [pic.offsetLeft + left + word.offsetWidth / 2,
    pic.offsetTop + top + (above ? word.offsetHeight : 0)];
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
