// The gallery's arithmetic: any two stored inputs, explained in the browser.
//
// What gallery/__init__.py wrote is read here; draw.js and words.js show it, ask.js answers the
// reader. The four are put into one function, in one plain script: a page that is opened from disk
// may neither fetch nor load modules. For the same reason the data are scripts, too: each calls
// bilrpGallery.receive(name, data), and load(name) is how one asks for it.

const base = new URL(".", document.currentScript.src);
const received = new Map(), asked = new Map();
globalThis.bilrpGallery = { receive: (name, data) => received.set(name, data) };

const largest = (numbers) => numbers.reduce((most, v) => Math.max(most, Math.abs(v)), 0) || 1;
const total = (numbers) => numbers.reduce((sum, v) => sum + v, 0);

const CURE = 'Build the book again with "make book", and keep the folder _static/gallery beside it.';
const damaged = (name) => new Error(`The data file ${name}.js is damaged. ${CURE}`);

/** Promises the data of a file beside this script; what is wrong with it is said in words. */
function load(name, version) {
  if (!asked.has(name)) asked.set(name, new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const stop = (what) => {
      asked.delete(name); // it may be there the next time
      reject(new Error(`The data file ${name}.js ${what}. ${CURE}`));
    };
    script.onerror = () => stop("is missing or cannot be read");
    script.onload = () => {
      const data = received.get(name);
      received.delete(name);
      if (!data) stop("is damaged");
      else if (data.version !== version) stop("is of another build of the book than this page");
      else resolve(data);
    };
    script.src = new URL(`${name}.js?${version}`, base);
    document.head.append(script);
  }));
  return asked.get(name);
}

/** Numbers of the given kind from base64 of little-endian bytes. */
function unpack(Kind, text) {
  return new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

/** Bits from text, 13 in two of 91 characters: see text_of() in __init__.py. */
function bitsOf(text) {
  const bits = new Uint8Array((text.length >> 1) * 13);
  const digit = (n) => { const c = text.charCodeAt(n); return c - (c > 92 ? 36 : 35); };
  for (let n = 0, at = 0; n + 1 < text.length; n += 2) {
    const word = 91 * digit(n) + digit(n + 1);
    for (let b = 0; b < 13; b++) bits[at++] = (word >> b) & 1;
  }
  return bits;
}

/** Calls use(code, row, direction) with all codes of an input: see rice() in __init__.py. */
function eachCode(bits, rows, directions, use) {
  const ESCAPE = 24;
  let at = 0;
  for (let p = 0; p < rows.length; p++)
    for (let m = 0; m < directions.length; m++) {
      let quotient = 0, low = 0;
      while (!bits[at++]) if (++quotient > ESCAPE) return false; // also where the bits have ended
      const k = quotient === ESCAPE ? 16 : Math.max(0, (rows[p] + directions[m] + 4) >> 3);
      for (let b = 0; b < k; b++) low |= bits[at++] << b;
      const u = quotient === ESCAPE ? low : (quotient << k) | low;
      use(u & 1 ? (u + 1) >> 1 : -(u >> 1), p, m);
    }
  return bits.length - at < 13; // else something is left over
}

/** The setting of a collection that has this layer and gamma; undefined stands for its first. */
function settingOf(one, { layer, gamma }) {
  const fits = (have, wanted) => wanted === undefined || String(have) === String(wanted);
  const found = one.settings.find((s) => fits(s.layer, layer) && fits(s.gamma, gamma));
  if (found) return found;
  const there = one.settings.map((s) => `{layer: ${s.layer}, gamma: ${JSON.stringify(s.gamma)}}`);
  throw new RangeError(`${one.title} are not stored for layer ${layer}, gamma ${gamma}; there are ${
    there.join(", ")}`);
}

/** The rows of one input in the joint basis: what each patch, and last all biases, give. */
async function rowsOf(one, setting, k) {
  const name = `${setting.key}-${String(k).padStart(2, "0")}`;
  const data = await load(name, one.version);
  data.coordinates ??= (() => {
    const steps = unpack(Float32Array, setting.steps), rows = unpack(Int8Array, data.rows);
    const found = new Float32Array(rows.length * setting.width);
    const whole = rows.length === one.grids[k][0] * one.grids[k][1] + 1 && eachCode(
      bitsOf(data.codes), rows, unpack(Int8Array, setting.directions), (code, p, m) => {
        found[p * setting.width + m] = code * steps[m] * data.scale;
      });
    if (!whole) throw damaged(name);
    return found;
  })();
  return data.coordinates;
}

/** Products of the first `count` rows of a with the first `count2` of b, each `width` long. */
function products(a, b, count, count2, width, met) {
  const out = new Float32Array(count * count2);
  for (let n = 0; n < out.length; n++) {
    if (met && !((met[n >> 3] >> (n & 7)) & 1)) continue; // no feature sees both: zero
    let sum = 0, p = Math.floor(n / count2) * width, q = (n % count2) * width;
    for (let m = 0; m < width; m++) sum += a[p++] * b[q++];
    out[n] = sum;
  }
  return out;
}

/** Sums of R over the rows or the columns of (count, count2). */
function marginal(r, count, count2, side) {
  const out = new Float64Array(side ? count2 : count);
  r.forEach((v, n) => { out[side ? n % count2 : Math.floor(n / count2)] += v; });
  return out;
}

/** The explanation of inputs i and j of a collection; see gallery/__init__.py for what is stored. */
async function explainPair(one, setting, i, j) {
  const n = one.names.length;
  for (const k of [i, j])
    if (!Number.isInteger(k) || k < 0 || k >= n)
      throw new RangeError(`${one.title} are numbered from 0 to ${n - 1}; there is no ${k}`);
  const [a, b] = await Promise.all([rowsOf(one, setting, i), rowsOf(one, setting, j)]);
  const owners = unpack(Float64Array, setting.owners);
  const met = setting.met && unpack(Uint8Array, setting.met);
  const owner = (p, q) => owners[p * 2 * n + q]; // exact; patches first, then biases, of all
  const y = (p, q) => owner(p, q) + owner(p, n + q) + owner(n + p, q) + owner(n + p, n + q);
  const grid = [i, j].map((k) => ({ rows: one.grids[k][0], columns: one.grids[k][1] }));
  const count = grid.map((g) => g.rows * g.columns), { width } = setting;
  const r = products(a, b, count[0], count[1], width, met);
  const last = (rows, k) => rows.subarray(count[k] * width);
  return {
    i, j, grid, count, r, y: y(i, j), cosine: y(i, j) / Math.sqrt(y(i, i) * y(j, j)),
    ledger: [owner(i, j), owner(i, n + j), owner(n + i, j), owner(n + i, n + j)],
    biases: setting.biases, error: setting.errors[i * n + j],
    sums: [0, 1].map((side) => marginal(r, count[0], count[1], side)),
    toBiases: [products(a, last(b, 1), count[0], 1, width), products(b, last(a, 0), count[1], 1, width)],
    score: (side, p, q) => r[side ? q * count[1] + p : p * count[1] + q],
    names: [i, j].map((k) => one.names[k]), pictures: [i, j].map((k) => one.pictures[k]),
    strongest: largest(r), best: strongestPairs(r, count[1]),
  };
}

/** The strongest pairs of each sign, [patch, patch', score], strongest first. */
function strongestPairs(r, count2, most = 60) {
  const sizes = Float32Array.from(r, Math.abs).sort();
  const least = sizes[Math.max(0, sizes.length - 2 * most)];
  const found = [];
  r.forEach((v, n) => {
    if (v && Math.abs(v) >= least) found.push([Math.floor(n / count2), n % count2, v]);
  });
  return found.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 2 * most);
}

/** What root.explain(i, j, options) resolves to: plain numbers, to be compared with the engine. */
async function answer(collections, i, j, { of = "photos", layer, gamma } = {}) {
  const one = collections[of];
  if (!one) throw new RangeError(`there are ${Object.keys(collections).join(" and ")}, not ${of}`);
  const pair = await explainPair(one, settingOf(one, { layer, gamma }), i, j), width = pair.count[1];
  return {
    similarity: pair.y,
    relevance: Array.from({ length: pair.count[0] },
      (_, p) => Array.from(pair.r.subarray(p * width, (p + 1) * width))),
    ledger: [pair.ledger.slice(0, 2), pair.ledger.slice(2)],
  };
}
