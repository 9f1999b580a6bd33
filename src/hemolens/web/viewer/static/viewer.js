// The axial viewer: draws, listens, and tells the server what was done with the tools. Scrolling never leaves the browser.

import { calm } from "./calm.js";
import { Cursor } from "./cursor.js";
import { scanOf } from "./scan.js";
import { Layer } from "./layer.js";
import { buildPage } from "./page.js";

const PRESETS = { brain: [40, 80], subdural: [75, 215], bone: [600, 2800], stroke: [35, 35] };
const LEVELS = [-1024, 3071], WIDTHS = [1, 6000];
const VIEWERS = new WeakMap();
const REMEMBERED = new Map(); // study id -> where its viewer was left: slice, window, zoom

export function render(component) {
  let viewer = VIEWERS.get(component.parentElement);
  if (!viewer) VIEWERS.set(component.parentElement, (viewer = new Viewer(component)));
  clearTimeout(viewer.leaving);
  viewer.update(component);
}

export function leave(parent) {
  const viewer = VIEWERS.get(parent);
  if (!viewer) return;
  // Streamlit may mount again at once; only what stays away is taken down.
  viewer.leaving = setTimeout(() => { viewer.close(); VIEWERS.delete(parent); }, 300);
}

class Viewer {
  constructor(component) {
    this.mount = Math.random().toString(36).slice(2);
    this.sequence = 0;
    this.pending = [];
    this.layers = new Map();
    this.showOverlays = true;
    this.tool = "window";
    this.brushMm = 4;
    this.goTo = 0;
    this.pointers = new Map();
    this.cursor = new Cursor(this);
    this.drawn = 0;
    this.page = buildPage(component.parentElement.querySelector(".root") || component.parentElement, component.data, this);
    this.listen();
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.page.stage);
  }

  close() {
    this.resized.disconnect();
    clearInterval(this.resend);
    this.scan?.watchers.delete(this.redraw);
  }

  // ---- what the server says -------------------------------------------------------------------------------------

  update({ data, setTriggerValue }) {
    this.send = setTriggerValue;
    const other = !this.data || this.data.study !== data.study;
    this.data = data;
    if (other) this.open(data);
    const handled = data.handled[this.mount] || 0;
    const before = this.pending.length;
    this.pending = this.pending.filter((event) => event.seq > handled);
    if (this.pending.length && this.pending.length < before) this.flush();
    this.updateLayers(data);
    if (data.goTo && data.goTo[1] !== this.goTo) {
      this.goTo = data.goTo[1];
      this.show(data.goTo[0]);
      this.page.stage.scrollIntoView({ block: "nearest" });
    }
    if (!other && data.said && data.said !== this.said) this.page.say(data.said);
    this.said = data.said;
    this.page.update(data, this);
    this.resize();
  }

  open(data) {
    this.scan?.watchers.delete(this.redraw);
    this.scan = scanOf(data);
    this.redraw = () => this.draw();
    this.scan.watchers.add(this.redraw);
    this.layers.clear();
    const left = REMEMBERED.get(data.study) || { k: data.first, window: data.window.slice(), zoom: 1, pan: [0, 0] };
    Object.assign(this, left, { pan: left.pan.slice(), window: left.window.slice() });
    this.goTo = data.goTo && REMEMBERED.has(data.study) && REMEMBERED.get(data.study).goTo === data.goTo[1] ? data.goTo[1] : 0;
    this.gray = document.createElement("canvas");
    this.gray.width = data.columns;
    this.gray.height = data.rows;
    this.image = this.gray.getContext("2d").createImageData(data.columns, data.rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.painted = null;
    this.lut = null;
    this.cursor.at = null;
    this.scan.want(this.k);
  }

  updateLayers(data) {
    const names = new Set(data.overlays.map((told) => told.name));
    for (const name of this.layers.keys()) if (!names.has(name)) this.layers.delete(name);
    const ordered = new Map();
    for (const told of data.overlays) {
      const layer = this.layers.get(told.name) || new Layer(told, data.rows, data.columns, () => this.draw());
      layer.update(told);
      ordered.set(told.name, layer);
      if (!this.pending.length || !told.editable) layer.load();
    }
    this.layers = ordered;
    this.editable = [...ordered.values()].find((layer) => layer.told.editable) || null;
    if (!data.tools && this.tool !== "window") this.tool = "window";
  }

  // ---- what the user does ---------------------------------------------------------------------------------------

  tell(kind, more = {}) {
    this.pending.push({ seq: ++this.sequence, kind, slice: this.k, ...more });
    this.flush();
    // A run of the page that is interrupted may lose what was sent: send again until it is answered.
    clearInterval(this.resend);
    this.resend = setInterval(() => {
      if (!this.pending.length) clearInterval(this.resend);
      else if (calm()) this.flush();
    }, 2500);
  }

  flush() {
    this.send("event", { mount: this.mount, events: this.pending });
  }

  show(k) {
    const next = Math.min(this.data.slices - 1, Math.max(0, Math.round(k)));
    if (next === this.k) return;
    this.k = next;
    this.scan.want(next);
    this.draw();
    this.page.announce(this);
    if (this.data.tellSlice) {
      clearTimeout(this.rest);
      this.rest = setTimeout(() => this.tell("slice"), 350);
    }
  }

  setWindow(level, width) {
    this.window = [clamp(level, ...LEVELS), clamp(width, ...WIDTHS)];
    this.lut = null;
    this.draw();
  }

  preset(name) {
    this.setWindow(...PRESETS[name]);
  }

  get presetName() {
    for (const [name, [level, width]] of Object.entries(PRESETS)) if (this.window[0] === level && this.window[1] === width) return name;
    return "custom";
  }

  setTool(tool) {
    if (tool !== "window" && !this.data.tools) return;
    this.cursor.lift();
    this.tool = tool;
    this.draw();
  }

  setBrush(mm) {
    this.brushMm = clamp(mm, 0.5, 30);
    this.draw();
  }

  setStyle(layer, style) { layer.style = style; this.draw(); }
  setOpacity(layer, opacity) { layer.opacity = clamp(opacity, 0, 1); this.draw(); }

  toggleLabel(layer, label, on) {
    if (on) layer.off.delete(label); else layer.off.add(label);
    layer.forget();
    this.draw();
  }

  resetView() { this.zoom = 1; this.pan = [0, 0]; this.draw(); }

  zoomAt(factor, x, y) {
    const before = this.toImage(x, y);
    this.zoom = clamp(this.zoom * factor, 1, 20);
    if (this.zoom === 1) this.pan = [0, 0];
    else {
      const [ax, ay] = this.toScreen(...before);
      this.pan = [this.pan[0] + x - ax, this.pan[1] + y - ay];
    }
    this.draw();
  }

  jumpLesion(step) {
    const layer = [...this.layers.values()].find((l) => l.told.kind === "labels");
    const holds = layer?.holding(this.data.slices);
    if (!holds) return;
    // The next run of slices that hold something.
    for (let k = this.k + step; k >= 0 && k < holds.length; k += step) {
      const entering = holds[k] && (step > 0 ? !holds[k - 1] || holds[k - 1] !== holds[k] : !holds[k + 1] || holds[k + 1] !== holds[k]);
      if (entering) return this.show(k);
    }
  }

  listen() {
    const { canvas, root, strip } = this.page;
    let turned = 0;
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      if (e.ctrlKey || e.metaKey) return this.zoomAt(Math.exp(-e.deltaY / 300), ...this.position(e));
      turned += e.deltaMode === 1 ? e.deltaY * 34 : e.deltaY;
      const steps = Math.trunc(turned / 34) ? Math.sign(turned) * Math.max(1, Math.round(Math.abs(turned) / 110)) : 0;
      if (!steps) return;
      turned = 0;
      this.show(this.k + steps);
    }, { passive: false });
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("pointerdown", (e) => this.down(e));
    canvas.addEventListener("pointermove", (e) => this.move(e));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => this.up(e));
    canvas.addEventListener("pointerleave", () => { this.hover = null; this.draw(); });
    canvas.addEventListener("blur", () => this.cursor.lift());
    canvas.addEventListener("dblclick", () => { if (this.tool === "window") this.resetView(); });
    root.addEventListener("keydown", (e) => this.key(e));
    const jump = (e) => {
      const box = strip.getBoundingClientRect();
      this.show(Math.floor(((e.clientX - box.left) / box.width) * this.data.slices));
    };
    strip.addEventListener("pointerdown", (e) => { strip.setPointerCapture(e.pointerId); jump(e); });
    strip.addEventListener("pointermove", (e) => { if (e.buttons) jump(e); });
  }

  position(e) {
    const box = this.page.canvas.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  }

  down(e) {
    const at = this.position(e);
    this.cursor.lift();
    this.cursor.at = null; // whoever takes the mouse needs no second cursor
    this.page.canvas.focus({ preventScroll: true });
    this.page.canvas.setPointerCapture(e.pointerId);
    this.pointers.set(e.pointerId, at);
    if (this.pointers.size === 2) { this.drag = { kind: "pinch" }; return; }
    const kind = e.button === 1 || e.shiftKey ? "pan" : e.button === 2 ? "window" : this.tool;
    this.drag = { kind, at, start: at, window: this.window.slice(), pan: this.pan.slice() };
    if (kind === "brush" || kind === "erase") this.startStroke(kind, at);
    e.preventDefault();
  }

  move(e) {
    const at = this.position(e);
    this.hover = at;
    const before = this.pointers.get(e.pointerId);
    if (before && this.drag) this.dragged(before, at, e);
    if (before) this.pointers.set(e.pointerId, at);
    this.draw();
  }

  dragged(before, at, e) {
    const { drag } = this;
    if (drag.kind === "pinch") return this.pinch(before, at, e.pointerId);
    const [dx, dy] = [at[0] - drag.start[0], at[1] - drag.start[1]];
    if (drag.kind === "window") {
      const speed = Math.max(0.25, drag.window[1] / 400);
      this.setWindow(Math.round(drag.window[0] + dy * speed), Math.round(drag.window[1] + dx * speed));
    } else if (drag.kind === "pan") {
      this.pan = [drag.pan[0] + dx, drag.pan[1] + dy];
    } else if (drag.stroke) {
      const moves = e.getCoalescedEvents?.() || [];
      for (const one of moves.length ? moves : [e]) this.goOnStroke(this.position(one));
    }
  }

  pinch(before, at, id) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, p]) => p);
    if (!other) return;
    const length = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
    this.zoomAt(length(at) / Math.max(1, length(before)), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
    this.pan = [this.pan[0] + (at[0] - before[0]) / 2, this.pan[1] + (at[1] - before[1]) / 2];
  }

  up(e) {
    this.pointers.delete(e.pointerId);
    const { drag } = this;
    if (!drag || this.pointers.size) return;
    this.drag = null;
    const at = this.position(e);
    if (drag.stroke) this.endStroke(drag.stroke);
    else if (drag.kind === "pick" && Math.hypot(at[0] - drag.start[0], at[1] - drag.start[1]) < 6) this.pick(this.toPixel(...at));
  }

  pick([x, y]) {
    if (this.inside(x, y)) this.tell("pick", { tool: "pick", label: this.page.label(), points: [[x, y]] });
  }

  get radius() {
    return [this.brushMm / 2 / this.data.columnMm[this.k], this.brushMm / 2 / this.data.rowMm[this.k]].map((r) => Math.max(0.6, r));
  }

  startStroke(tool, at) {
    if (!this.editable?.values) { this.drag = null; return; }
    const label = tool === "erase" ? 0 : this.page.label() || 1;
    const point = this.toPixel(...at);
    this.drag.stroke = { tool, label, points: [point], radius: this.radius, slice: this.k };
    this.editable.stamp(this.k, point, point, this.radius, label);
    this.draw();
  }

  goOnStroke(at) {
    const { stroke } = this.drag;
    const point = this.toPixel(...at), last = stroke.points[stroke.points.length - 1];
    if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 0.3) return;
    this.editable.stamp(stroke.slice, last, point, stroke.radius, stroke.label);
    stroke.points.push(point);
  }

  endStroke({ tool, label, points, radius, slice }) {
    const rounded = points.map(([x, y]) => [Math.round(x * 100) / 100, Math.round(y * 100) / 100]);
    this.tell("stroke", { tool, label, points: rounded, radius, slice });
  }

  key(e) {
    if (e.target.matches("input, select, textarea") && e.key !== "Escape") return;
    const focused = this.page.canvas.getRootNode().activeElement === this.page.canvas;
    const action = (focused && this.cursor.action(e)) || this.keys(e, focused);
    if (!action) return;
    e.preventDefault();
    e.stopPropagation(); // Streamlit has keys of its own
    action();
    this.page.update(this.data, this);
  }

  keys(e, focused) {
    const first = [...this.layers.values()][0];
    const styles = ["both", "outline", "fill", "hidden"];
    if (e.ctrlKey || e.metaKey) {
      if (e.key === "z" && this.data.tools) return () => this.tell("undo");
      if (e.key === "y" && this.data.tools) return () => this.tell("redo");
      return null;
    }
    const map = {
      1: () => this.preset("brain"), 2: () => this.preset("subdural"), 3: () => this.preset("bone"), 4: () => this.preset("stroke"),
      n: () => this.jumpLesion(1), p: () => this.jumpLesion(-1),
      h: () => { this.showOverlays = !this.showOverlays; this.draw(); },
      o: first && (() => this.setStyle(first, styles[(styles.indexOf(first.style) + 1) % styles.length])),
      "[": first && (() => this.setOpacity(first, first.opacity - 0.1)), "]": first && (() => this.setOpacity(first, first.opacity + 0.1)),
      "+": () => this.zoomAt(1.25, ...this.anchor()), "=": () => this.zoomAt(1.25, ...this.anchor()), "-": () => this.zoomAt(0.8, ...this.anchor()),
      r: () => this.resetView(), w: () => this.setTool("window"),
    };
    if (this.data.tools) Object.assign(map, {
      b: () => this.setTool("brush"), e: () => this.setTool("erase"), c: () => this.setTool("pick"),
      ",": () => this.setBrush(this.brushMm - 1), ".": () => this.setBrush(this.brushMm + 1),
    });
    if (focused) Object.assign(map, {
      ArrowDown: () => this.show(this.k + 1), ArrowRight: () => this.show(this.k + 1), PageDown: () => this.show(this.k + 5),
      ArrowUp: () => this.show(this.k - 1), ArrowLeft: () => this.show(this.k - 1), PageUp: () => this.show(this.k - 5),
      Home: () => this.show(0), End: () => this.show(this.data.slices - 1),
    });
    return map[e.key] || map[e.key.toLowerCase?.()] || null;
  }

  // ---- geometry of the picture ----------------------------------------------------------------------------------

  get scale() {
    const { rows, columns, rowMm, columnMm } = this.data;
    const box = this.page.stage.getBoundingClientRect();
    const fit = Math.min(box.width / (columns * columnMm[this.k]), box.height / (rows * rowMm[this.k])) * this.zoom;
    const sx = fit * columnMm[this.k], sy = fit * rowMm[this.k];
    return { sx, sy, ox: (box.width - columns * sx) / 2 + this.pan[0], oy: (box.height - rows * sy) / 2 + this.pan[1] };
  }

  /** Screen to image edges: the first pixel reaches from 0 to 1. */
  toImage(x, y) { const { sx, sy, ox, oy } = this.scale; return [(x - ox) / sx, (y - oy) / sy]; }
  toScreen(u, v) { const { sx, sy, ox, oy } = this.scale; return [u * sx + ox, v * sy + oy]; }
  /** Screen to pixels: the center of the first is 0, 0. */
  toPixel(x, y) { const [u, v] = this.toImage(x, y); return [u - 0.5, v - 0.5]; }
  inside(x, y) { return x >= -0.5 && y >= -0.5 && x < this.data.columns - 0.5 && y < this.data.rows - 0.5; }
  /** What zooming by keys keeps in place. */
  anchor() { return this.cursor.screen || this.middle(); }
  middle() { const box = this.page.stage.getBoundingClientRect(); return [box.width / 2, box.height / 2]; }

  resize() {
    const { stage, canvas, strip } = this.page;
    const ratio = window.devicePixelRatio || 1;
    const { rows, columns, rowMm, columnMm } = this.data;
    const wanted = Math.min(this.data.pictureHeight, (stage.clientWidth * rows * rowMm[0]) / (columns * columnMm[0]));
    stage.style.height = `${Math.max(200, Math.round(wanted))}px`;
    for (const one of [canvas, strip]) {
      const [w, h] = [Math.round(one.clientWidth * ratio), Math.round(one.clientHeight * ratio)];
      if (one.width !== w || one.height !== h) { one.width = w; one.height = h; }
    }
    this.draw();
  }

  // ---- drawing --------------------------------------------------------------------------------------------------

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.paint(); });
  }

  paint() {
    REMEMBERED.set(this.data.study, { k: this.k, window: this.window, zoom: this.zoom, pan: this.pan, goTo: this.goTo });
    const stored = this.scan.slice(this.k);
    const context = this.page.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.page.canvas.width, this.page.canvas.height);
    if (stored) {
      this.paintGray(stored);
      const { sx, sy, ox, oy } = this.scale;
      context.setTransform(sx * ratio, 0, 0, sy * ratio, ox * ratio, oy * ratio);
      context.imageSmoothingEnabled = sx * ratio < 6;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.gray, 0, 0);
      if (this.showOverlays) for (const layer of this.layers.values()) this.paintLayer(context, layer, ratio, sx);
      this.paintBrush(context);
      this.cursor.paint(context);
    }
    this.page.paint(this, stored);
    this.drawn += 1;
  }

  paintGray(stored) {
    if (!this.lut) { this.lut = grayTable(this.window, this.data.slope, this.data.intercept); this.painted = null; }
    if (this.painted === this.k) return;
    const { lut, pixels } = this;
    for (let i = 0; i < pixels.length; i++) pixels[i] = lut[stored[i] + 32768];
    this.gray.getContext("2d").putImageData(this.image, 0, 0);
    this.painted = this.k;
  }

  paintLayer(context, layer, ratio, sx) {
    if (layer.style === "hidden" || !layer.values) return;
    const shades = layer.told.kind === "shades";
    if (layer.style !== "outline" || shades) {
      context.globalAlpha = layer.opacity;
      const smooth = context.imageSmoothingEnabled;
      context.imageSmoothingEnabled = shades;
      context.drawImage(layer.fill(this.k), 0, 0);
      context.imageSmoothingEnabled = smooth;
      context.globalAlpha = 1;
    }
    if (layer.style !== "fill" && !shades) {
      const line = 1.6 / sx;
      context.lineWidth = line;
      context.setLineDash(layer.told.dashed ? [line * 3, line * 2] : []);
      for (const [label, path] of layer.outlines(this.k)) {
        const [r, g, b] = layer.told.colors[label] || [255, 255, 255];
        context.strokeStyle = `rgb(${r} ${g} ${b})`;
        context.stroke(path);
      }
      context.setLineDash([]);
    }
  }

  paintBrush(context) {
    const at = this.cursor.screen || this.hover;
    if (!at || (this.tool !== "brush" && this.tool !== "erase")) return;
    const [u, v] = this.toImage(...at), [rx, ry] = this.radius;
    context.lineWidth = 1.5 / this.scale.sx;
    context.strokeStyle = this.tool === "erase" ? "#fff" : this.page.labelColor();
    context.beginPath();
    context.ellipse(u, v, rx, ry, 0, 0, 2 * Math.PI);
    context.stroke();
  }

  /** Hounsfield units and labels under the cursor, or null. */
  probe(stored) {
    const at = this.cursor.screen || this.hover;
    if (!at || !stored) return null;
    const [x, y] = this.toPixel(...at).map(Math.round);
    if (!this.inside(x, y)) return null;
    const hu = stored[y * this.data.columns + x] * this.data.slope + this.data.intercept;
    const names = [];
    for (const layer of this.layers.values()) {
      if (!this.showOverlays || layer.style === "hidden") continue; // what is not shown is not told
      const v = layer.at(this.k, x, y);
      if (v && layer.told.kind === "labels") names.push(`${layer.told.title}: ${layer.told.titles[v] || v}`);
      if (v && layer.told.kind === "shades") names.push(`${layer.told.title}: ${(v / 255).toFixed(2)}`);
    }
    return { x, y, hu, names };
  }
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, Number.isFinite(value) ? value : low));

/** Gray of every stored value, as RGBA in one number; as hemolens.preprocessing.window.to_gray rounds it. */
function grayTable([level, width], slope, intercept) {
  const table = new Uint32Array(65536);
  const low = level - width / 2;
  for (let i = 0; i < 65536; i++) {
    const hu = (i - 32768) * slope + intercept;
    const g = Math.max(0, Math.min(255, Math.round(((hu - low) / width) * 255)));
    table[i] = ((255 << 24) | (g << 16) | (g << 8) | g) >>> 0;
  }
  return table;
}
