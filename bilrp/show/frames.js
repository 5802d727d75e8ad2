// Frames: a figure with sliders or menus, drawn beforehand for each of their positions.

const CSS = `
.text_html:has(> .bilrp-frames) { all: unset !important; display: block !important; }
.bilrp-frames {
  max-width: 54rem; margin: 0 auto; padding: 6px; box-sizing: border-box;
  font-size: .875rem; font-variant-numeric: tabular-nums;
  img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
  .controls { display: flex; flex-wrap: wrap; place-content: center; gap: .4rem 1.4rem; }
  label { display: inline-flex; align-items: center; gap: .5rem; margin: 0; }
  input { width: 11rem; margin: 0; accent-color: #2166ac; }
  select { font: inherit; color: inherit; background: none; cursor: pointer;
    border: 1px solid #8886; border-radius: 4px; padding: .1rem .45rem; }
  option { color: CanvasText; background: Canvas; }
  output { min-width: 3.2em; padding: 0; }
  :is(select, input):focus-visible { outline: 2px solid #2166ac; outline-offset: 2px; }
}`;

// The last control moves fastest through the frames, as in itertools.product.
function mountFrames(root) {
  const { controls, frames } = JSON.parse(root.querySelector("script").textContent);
  const image = root.querySelector("img");
  const bar = document.createElement("div");
  bar.className = "controls";
  const inputs = controls.map(({ name, values, start, menu }) => {
    const label = document.createElement("label");
    const input = document.createElement(menu ? "select" : "input");
    const output = document.createElement("output");
    label.append(name, input);
    if (menu) {
      input.append(...values.map((value, k) => new Option(value, k, k === start, k === start)));
    } else {
      Object.assign(input, { type: "range", min: 0, max: values.length - 1, step: 1 });
      input.value = start;
      label.append(output);
    }
    bar.append(label);
    return { input, output, values, menu };
  });
  const show = () => {
    let at = 0;
    for (const { input, output, values, menu } of inputs) {
      const k = Number(input.value);
      at = at * values.length + k;
      if (menu) continue;
      output.textContent = values[k];
      input.setAttribute("aria-valuetext", values[k]);
    }
    image.src = frames[at].url;
    image.alt = frames[at].alt;
  };
  bar.addEventListener("input", show);
  root.prepend(Object.assign(document.createElement("style"), { textContent: CSS }));
  image.before(bar);
  show();
}
