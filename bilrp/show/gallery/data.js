// The gallery's arithmetic: any two stored inputs, explained in the browser.
//
// What gallery/__init__.py wrote is read here; draw.js and words.js show it, ask.js answers the
// reader. These and ../pair.js are put into one function, in one plain script: a page that is opened
// from disk may neither fetch nor load modules. For the same reason the data are scripts, too: each calls
// bilrpGallery.receive(name, data), and load(name) is how one asks for it.

const base = new URL(".", document.currentScript.src);
const received = new Map(), asked = new Map();
globalThis.bilrpGallery = { receive: (name, data) => received.set(name, data) };

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

/** What the inputs of a side are called; two encoders read two kinds. */
const namesOf = (one, side) => (Array.isArray(one.names[0]) ? one.names[side] : one.names);

/** Rows and columns of an input's owners. */
function gridOf(one, side, k) {
  const [rows, columns] = one.tokens ? [1, one.tokens[side][k].length] : one.grids[k];
  return { rows, columns };
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

/** Rows of a pair in the joint basis, and the exact ledger and squared norms. */
async function fromBasis(one, setting, [i, j]) {
  const rows = await Promise.all([rowsOf(one, setting, i), rowsOf(one, setting, j)]);
  const owners = unpack(Float64Array, setting.owners), n = one.names.length;
  const owner = (p, q) => owners[p * 2 * n + q]; // patches first, then biases, of all inputs
  const ledger = (p, q) => [owner(p, q), owner(p, n + q), owner(n + p, q), owner(n + p, n + q)];
  return { rows, ledger: ledger(i, j), squares: [i, j].map((k) => total(ledger(k, k))) };
}

/** The same from two factors that are stored whole: see Whole in __init__.py. */
function fromFactors(one, setting, pair) {
  const { width } = setting;
  const rows = pair.map((k, side) => {
    const { columns, values } = setting.factors[side][k], known = unpack(Float32Array, values);
    const found = new Float32Array((known.length / columns.length) * width);
    known.forEach((v, n) => {
      found[Math.floor(n / columns.length) * width + columns[n % columns.length]] = v;
    });
    return found;
  });
  const owned = rows.map((all) => { // by the tokens together, and by the rest: the last row
    const sums = [new Float64Array(width), new Float64Array(width)], last = all.length - width;
    all.forEach((v, n) => { sums[n < last ? 0 : 1][n % width] += v; });
    return sums;
  });
  const dot = (a, b) => total(a.map((v, m) => v * b[m]));
  const ledger = (a, b) => [0, 1].flatMap((p) => [0, 1].map((q) => dot(a[p], b[q])));
  return { rows, ledger: ledger(...owned), squares: owned.map((o) => total(ledger(o, o))) };
}

/** Numbers of the inputs that are asked for, by number or by name. */
function numbered(one, pair) {
  return pair.map((asked, side) => {
    const names = namesOf(one, side), k = typeof asked === "string" ? names.indexOf(asked) : asked;
    if (Number.isInteger(k) && k >= 0 && k < names.length) return k;
    throw new RangeError(`${one.title} are numbered from 0 to ${names.length - 1}; there is no ${asked}`);
  });
}

/** The explanation of two inputs of a collection; see gallery/__init__.py for what is stored. */
async function explainPair(one, setting, ...asked) {
  const [i, j] = numbered(one, asked), { width } = setting, n = one.names.length;
  const stored = await (setting.factors ? fromFactors : fromBasis)(one, setting, [i, j]);
  const { rows: [a, b], ledger, squares } = stored, y = total(ledger);
  const met = setting.met && unpack(Uint8Array, setting.met);
  const size = [i, j].map((k, side) => gridOf(one, side, k));
  const count = size.map((g) => g.rows * g.columns);
  const r = products(a, b, count[0], count[1], width, met);
  const last = (rows, side) => rows.subarray(count[side] * width);
  return {
    i, j, size, count, r, y, ledger, cosine: y / Math.sqrt(squares[0] * squares[1]) || 0,
    biases: setting.biases, error: setting.errors?.[i * n + j] ?? 0,
    sums: [0, 1].map((side) => marginal(r, count[0], count[1], side)),
    toBiases: [products(a, last(b, 1), count[0], 1, width), products(b, last(a, 0), count[1], 1, width)],
    score: (side, p, q) => r[side ? q * count[1] + p : p * count[1] + q],
    names: [i, j].map((k, side) => namesOf(one, side)[k]),
    pictures: one.pictures && [i, j].map((k) => shownAt(one.pictures[k])),
    tokens: one.tokens && [i, j].map((k, side) => one.tokens[side][k]),
    strongest: largest(r), best: strongestPairs(r, count[1]),
  };
}

/** A picture with its address, which is beside this script. */
const shownAt = (picture) => ({ ...picture, url: new URL(picture.url, base).href });

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
