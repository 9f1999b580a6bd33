// A cursor that keys move over the picture, for what a mouse would do there: read HU, paint, erase, press on a lesion.

const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const FAR = 10;

export class Cursor {
  constructor(viewer) {
    this.viewer = viewer;
    this.at = null; // pixel of the slice: column, row; null while the keys scroll
  }

  /** Where it is on the screen, or null. */
  get screen() { return this.at && this.viewer.toScreen(this.at[0] + 0.5, this.at[1] + 0.5); }

  get drawing() { return Boolean(this.at && this.viewer.drag?.byKey); }

  /** What a key does while the picture has the focus; null leaves it to the viewer. */
  action(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return this.drawing ? () => this.lift() : null;
    const press = e.key === "Enter" || e.key === " ";
    if (!this.at) return press ? () => this.begin() : null;
    if (press) return () => this.press();
    if (e.key === "Escape") return () => { if (this.drawing) this.lift(); else this.end(); };
    if (STEPS[e.key]) return () => this.move(...STEPS[e.key].map((d) => d * (e.shiftKey ? FAR : 1)));
    const jump = { PageDown: 1, PageUp: -1 }[e.key];
    if (jump) return () => this.leaveSlice(() => this.viewer.show(this.viewer.k + jump));
    if (e.key === "n" || e.key === "p") return () => { this.lift(); this.next(e.key === "n" ? 1 : -1); };
    return null;
  }

  begin() {
    this.at = this.middle();
    this.toLesion(); // in the middle of the view where the slice has none
    const { tool } = this.viewer;
    const press = { brush: "Enter puts the brush down and lifts it", erase: "Enter puts the eraser down and lifts it", pick: "Enter presses" }[tool];
    this.say(`Cursor on: arrow keys move it, with Shift ${FAR} pixels${press ? `, ${press}` : ""}, Escape ends it.`);
  }

  end() {
    this.lift();
    this.at = null;
    this.viewer.draw();
    this.viewer.page.say("Cursor off: arrow keys change the slice.");
  }

  /** Press where it is: as a press of the mouse, or the brush down and up. */
  press() {
    const { viewer } = this;
    if (viewer.tool === "pick") return viewer.pick(this.at);
    if (viewer.tool !== "brush" && viewer.tool !== "erase") return this.say();
    if (this.drawing) { this.lift(); return this.say(); }
    viewer.drag = { kind: viewer.tool, byKey: true };
    viewer.startStroke(viewer.tool, this.screen);
    this.say();
  }

  /** End the stroke that is being drawn. */
  lift() {
    const { viewer } = this;
    if (!this.drawing) return;
    const { stroke } = viewer.drag;
    viewer.drag = null;
    if (stroke) viewer.endStroke(stroke);
    viewer.draw();
  }

  move(dx, dy) {
    const { viewer } = this, { columns, rows } = viewer.data;
    this.at = [Math.min(columns - 1, Math.max(0, this.at[0] + dx)), Math.min(rows - 1, Math.max(0, this.at[1] + dy))];
    this.keepInView();
    if (viewer.drag?.stroke) viewer.goOnStroke(this.screen);
    viewer.draw();
    this.say();
  }

  leaveSlice(go) {
    this.lift(); // a stroke belongs to one slice
    go();
    this.viewer.draw();
  }

  /** Stand in the outline of this slice that is nearest, or stay. */
  toLesion() {
    const [x, y] = this.at, away = (place) => (place[0] - x) ** 2 + (place[1] - y) ** 2;
    this.stand(this.places().sort((a, b) => away(a) - away(b))[0]);
  }

  /** Go to the next outline of this slice, or of the next slice with another lesion. */
  next(step) {
    const places = this.places(), here = places.findIndex(([x, y]) => x === this.at[0] && y === this.at[1]);
    const place = places[here < 0 ? (step > 0 ? 0 : places.length - 1) : here + step];
    if (place) return this.stand(place);
    const { viewer } = this, before = viewer.k;
    this.leaveSlice(() => viewer.jumpLesion(step));
    if (viewer.k !== before) this.stand(this.places().at(step > 0 ? 0 : -1));
  }

  stand(place) {
    if (place) this.at = place;
    this.keepInView();
    this.viewer.draw();
    this.say();
  }

  /** A pixel inside each outline of this slice: the one nearest to its middle. */
  places() {
    const { viewer } = this, { columns, rows } = viewer.data;
    const layer = [...viewer.layers.values()].find((one) => one.told.kind === "labels" && one.style !== "hidden");
    const plane = layer?.slice(viewer.k), seen = new Uint8Array(rows * columns), found = [];
    for (let i = 0; plane && i < plane.length; i++) {
      if (!plane[i] || seen[i]) continue;
      const whole = [i];
      seen[i] = 1;
      for (let n = 0; n < whole.length; n++) {
        const at = whole[n], x = at % columns;
        for (const [to, inside] of [[at - 1, x > 0], [at + 1, x < columns - 1], [at - columns, at >= columns], [at + columns, at < plane.length - columns]]) {
          if (inside && !seen[to] && plane[to] === plane[i]) { seen[to] = 1; whole.push(to); }
        }
      }
      const points = whole.map((at) => [at % columns, Math.floor(at / columns)]);
      const middle = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
      const away = (point) => (point[0] - middle[0]) ** 2 + (point[1] - middle[1]) ** 2;
      found.push(points.reduce((best, point) => (away(point) < away(best) ? point : best)));
    }
    return found;
  }

  middle() {
    const { columns, rows } = this.viewer.data;
    const [x, y] = this.viewer.toPixel(...this.viewer.middle());
    return [Math.min(columns - 1, Math.max(0, Math.round(x))), Math.min(rows - 1, Math.max(0, Math.round(y)))];
  }

  /** Move a magnified picture so that the cursor is seen. */
  keepInView() {
    const { viewer } = this, box = viewer.page.stage.getBoundingClientRect(), [x, y] = this.screen;
    const into = (value, size) => Math.max(12 - value, 0) + Math.min(size - 12 - value, 0);
    viewer.pan = [viewer.pan[0] + into(x, box.width), viewer.pan[1] + into(y, box.height)];
  }

  say(lead = "") {
    const { viewer } = this, found = viewer.probe(viewer.scan.slice(viewer.k));
    const place = `Row ${this.at[1]}, column ${this.at[0]}`;
    const told = found ? `${place}: ${Math.round(found.hu)} HU${found.names.length ? `, ${found.names.join(", ")}` : ""}` : place;
    viewer.page.say([lead, this.drawing ? `${told}. ${viewer.tool === "erase" ? "Erasing" : "Painting"}` : told].filter(Boolean).join(" "));
  }

  paint(context) {
    if (!this.at) return;
    const { sx, sy } = this.viewer.scale, [u, v] = [this.at[0] + 0.5, this.at[1] + 0.5];
    for (const [color, wide] of [["#000", 4], ["#ffd54a", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = wide / sx;
      context.beginPath();
      for (const [dx, dy] of [[-1, 0], [1, 0], [0, -1], [0, 1]]) {
        context.moveTo(u + (4 * dx) / sx, v + (4 * dy) / sy);
        context.lineTo(u + (14 * dx) / sx, v + (14 * dy) / sy);
      }
      context.stroke();
    }
  }
}
