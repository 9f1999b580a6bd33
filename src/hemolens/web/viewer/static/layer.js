// One overlay: its bytes, the filling and the outlines of each slice.

export class Layer {
  constructor(told, rows, columns, changed) {
    this.rows = rows;
    this.columns = columns;
    this.size = rows * columns;
    this.changed = changed;
    this.values = null;
    this.url = null;
    this.dirty = false;
    this.off = new Set();
    this.style = told.style;
    this.opacity = told.opacity;
    this.error = null;
    this.update(told);
  }

  update(told) {
    this.told = told;
    this.lut = told.kind === "labels" ? labelColors(told.colors) : rampColors(told.ramp);
  }

  /** Fetch the values if they are others than those here, or were drawn on. */
  async load() {
    if (this.url === this.told.url && !this.dirty) return;
    const url = this.told.url;
    this.url = url;
    this.dirty = false;
    try {
      const answer = await fetch(url, { credentials: "same-origin" });
      if (!answer.ok) throw new Error("An overlay is not there any more. Reload the page.");
      const values = new Uint8Array(await answer.arrayBuffer());
      if (this.url !== url || this.dirty) return; // drawn on meanwhile: the next answer will hold it
      this.values = values;
      this.error = null;
    } catch (error) {
      this.url = null;
      this.error = error instanceof TypeError ? "The server does not answer. Check that it runs, then reload the page." : error.message;
    }
    this.forget();
    this.changed();
  }

  forget(k) {
    if (k === undefined) { this.fills = new Map(); this.lines = new Map(); this.holds = null; return; }
    this.fills.delete(k);
    this.lines.delete(k);
    this.holds = null;
  }

  slice(k) {
    return this.values ? this.values.subarray(k * this.size, (k + 1) * this.size) : null;
  }

  at(k, x, y) {
    return this.values && x >= 0 && y >= 0 && x < this.columns && y < this.rows ? this.values[k * this.size + y * this.columns + x] : 0;
  }

  /** The most frequent label of each slice, 0 for none. */
  holding(slices) {
    if (!this.values || this.told.kind !== "labels") return null;
    if (!this.holds) {
      this.holds = new Uint8Array(slices);
      for (let k = 0; k < slices; k++) {
        const counts = new Uint32Array(256), plane = this.slice(k);
        for (let i = 0; i < plane.length; i++) if (plane[i]) counts[plane[i]]++;
        let best = 0;
        for (let v = 1; v < 256; v++) if (counts[v] > counts[best] || (!best && counts[v])) best = v;
        this.holds[k] = best;
      }
    }
    return this.holds;
  }

  /** A canvas of the slice's pixels, colored; transparent where there is nothing. */
  fill(k) {
    let canvas = this.fills.get(k);
    if (canvas) return canvas;
    const plane = this.slice(k);
    canvas = document.createElement("canvas");
    canvas.width = this.columns;
    canvas.height = this.rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(this.columns, this.rows);
    const pixels = new Uint32Array(image.data.buffer);
    const lut = this.lut.slice();
    for (const label of this.off) lut[label] = 0;
    for (let i = 0; i < plane.length; i++) if (plane[i]) pixels[i] = lut[plane[i]];
    context.putImageData(image, 0, 0);
    remember(this.fills, k, canvas, 24);
    return canvas;
  }

  /** Path2D of the pixel edges around each label of a slice, in pixels: label -> path. */
  outlines(k) {
    let paths = this.lines.get(k);
    if (paths) return paths;
    paths = new Map();
    const plane = this.slice(k), w = this.columns, h = this.rows;
    if (this.told.kind === "labels") {
      for (let y = 0, i = 0; y < h; y++) {
        for (let x = 0; x < w; x++, i++) {
          const v = plane[i];
          if (!v || this.off.has(v)) continue;
          let path = paths.get(v);
          if (!path) paths.set(v, (path = new Path2D()));
          if (y === 0 || plane[i - w] !== v) { path.moveTo(x, y); path.lineTo(x + 1, y); }
          if (y === h - 1 || plane[i + w] !== v) { path.moveTo(x, y + 1); path.lineTo(x + 1, y + 1); }
          if (x === 0 || plane[i - 1] !== v) { path.moveTo(x, y); path.lineTo(x, y + 1); }
          if (x === w - 1 || plane[i + 1] !== v) { path.moveTo(x + 1, y); path.lineTo(x + 1, y + 1); }
        }
      }
    }
    remember(this.lines, k, paths, 64);
    return paths;
  }

  /** Draw a disc along a line: what a brush leaves until the server answers. */
  stamp(k, from, to, radius, label) {
    const plane = this.slice(k);
    if (!plane) return;
    const [rx, ry] = radius;
    const steps = Math.max(1, Math.ceil(Math.max(Math.abs(to[0] - from[0]) / rx, Math.abs(to[1] - from[1]) / ry) * 2));
    for (let s = 0; s <= steps; s++) {
      const cx = from[0] + ((to[0] - from[0]) * s) / steps, cy = from[1] + ((to[1] - from[1]) * s) / steps;
      for (let y = Math.max(0, Math.ceil(cy - ry)); y <= Math.min(this.rows - 1, Math.floor(cy + ry)); y++) {
        for (let x = Math.max(0, Math.ceil(cx - rx)); x <= Math.min(this.columns - 1, Math.floor(cx + rx)); x++) {
          if (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1) plane[y * this.columns + x] = label;
        }
      }
    }
    this.dirty = true;
    this.forget(k);
  }
}

function remember(map, key, value, most) {
  map.set(key, value);
  if (map.size > most) map.delete(map.keys().next().value);
}

const rgba = (r, g, b, a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

function labelColors(colors) {
  const lut = new Uint32Array(256);
  for (const [label, [r, g, b]] of Object.entries(colors)) lut[Number(label)] = rgba(r, g, b, 255);
  return lut;
}

function rampColors(ramp) {
  const lut = new Uint32Array(256);
  for (let v = 1; v < 256; v++) {
    const at = (v / 255) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2), t = at - low;
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(ramp[low][c] * (1 - t) + ramp[low + 1][c] * t));
    lut[v] = rgba(r, g, b, v);
  }
  return lut;
}
