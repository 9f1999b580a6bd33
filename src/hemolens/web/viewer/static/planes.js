// Three planes and the head in 3D, drawn by NiiVue: a window on the brain beside a half-transparent skull.

const VIEWS = new WeakMap();
const WINDOWS = [["Brain", 0, 80], ["Subdural", -32, 182], ["Bone", -800, 2000]];
const SKULL = { from: 150, to: 1400 };
const KEYS = { ArrowLeft: [-15, 0], ArrowRight: [15, 0], ArrowUp: [0, 15], ArrowDown: [0, -15] };

export function render(component) {
  let view = VIEWS.get(component.parentElement);
  if (!view) VIEWS.set(component.parentElement, (view = new Planes(component.parentElement.querySelector(".root") || component.parentElement)));
  clearTimeout(view.leaving);
  view.update(component.data);
}

export function leave(parent) {
  const view = VIEWS.get(parent);
  if (!view) return;
  view.leaving = setTimeout(() => { view.close(); VIEWS.delete(parent); }, 300);
}

class Planes {
  constructor(root) {
    root.innerHTML = `
      <div class="hl">
        <div class="bar" role="toolbar" aria-label="Three planes and 3D">
          <div class="group" role="group" aria-label="Window of the planes"></div>
          <label>Lesions <input type="range" class="lesions" min="0" max="100" value="60" aria-label="Opacity of the lesions in the planes, percent"></label>
          <label>Skull <input type="range" class="skull" min="0" max="100" value="50" aria-label="Opacity of the skull in 3D, percent"></label>
          <div class="group" role="group" aria-label="Look at the head from">
            <button type="button" data-look="180,15">Front</button><button type="button" data-look="270,15">Left</button>
            <button type="button" data-look="90,15">Right</button><button type="button" data-look="0,15">Back</button><button type="button" data-look="180,90">Top</button>
          </div>
          <div class="group legend" aria-label="Colors"></div>
        </div>
        <div class="three">
          <div class="stage"><canvas class="two" tabindex="0" role="application" aria-label="Axial, coronal and sagittal planes: click to move the cross, wheel to scroll"></canvas><div class="waiting"></div></div>
          <div class="stage"><canvas class="solid" tabindex="0" role="application" aria-label="The head in 3D: drag or use the arrow keys to turn it, wheel to zoom"></canvas><div class="waiting"></div></div>
        </div>
        <div class="corner-text" role="status" aria-live="polite"></div>
      </div>`;
    this.root = root;
    this.angles = [235, 20];
    this.find = (name) => root.querySelector(name);
    const bar = this.find(".group");
    for (const [title, low, high] of WINDOWS) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: title });
      button.addEventListener("click", () => this.setWindow(low, high));
      button.dataset.low = low;
      bar.append(button);
    }
    this.find(".lesions").addEventListener("input", (e) => this.two?.setOpacity(1, e.target.value / 100));
    this.find(".skull").addEventListener("input", (e) => this.setSkull(e.target.value / 100));
    for (const button of root.querySelectorAll("[data-look]")) {
      button.addEventListener("click", () => this.look(...button.dataset.look.split(",").map(Number)));
    }
    this.find(".solid").addEventListener("keydown", (e) => {
      const turn = KEYS[e.key];
      if (!turn || !this.solid) return;
      e.preventDefault();
      e.stopPropagation();
      this.look(this.angles[0] + turn[0], Math.max(-90, Math.min(90, this.angles[1] + turn[1])));
    });
    for (const canvas of root.querySelectorAll("canvas")) canvas.addEventListener("wheel", (e) => e.preventDefault(), { passive: false });
  }

  close() {
    for (const one of [this.two, this.solid]) one?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.two = this.solid = null;
  }

  async update(data) {
    for (const stage of this.root.querySelectorAll(".stage")) stage.style.height = `${Math.min(data.pictureHeight, Math.max(320, stage.clientWidth))}px`;
    const shown = data.planes.join();
    if (this.shown === shown) return;
    this.shown = shown;
    try {
      this.say("Preparing the three planes …");
      const library = await import(window.location.origin + data.library);
      const slow = software();
      this.close();
      // One after the other: the planes stand while the head is still being made.
      await this.draw((library.Niivue ? library : globalThis.niivue).Niivue, data, slow);
    } catch (error) {
      this.shown = null;
      const line = error instanceof TypeError ? "The server does not answer. Reload the page." : error.message;
      this.say(/webgl/i.test(line) ? "This browser has no WebGL 2, which the 3D view needs. Use a current Chrome, Edge or Firefox." : line);
    }
  }

  say(line, stages = this.root.querySelectorAll(".stage")) {
    for (const stage of stages) {
      const node = stage.querySelector(".waiting");
      node.textContent = line;
      node.style.display = line ? "" : "none";
      stage.setAttribute("aria-busy", String(Boolean(line)));
    }
  }

  async draw(Niivue, data, slow) {
    const common = { logLevel: "error", backColor: [0, 0, 0, 1], isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, isColorbar: false, loadingText: "", forceDevicePixelRatio: 1 };
    const labels = labelColors(data.subtypes);
    const open = async (canvas, [head, lesions], options, skull, settle) => {
      const view = new Niivue({ ...common, ...options });
      await view.attachToCanvas(canvas);
      // Each step below would build every texture anew, which takes seconds without a graphics card: once is enough.
      view.updateGLVolume = () => {};
      if (skull) view.addColormap("hemolens_skull", skull);
      await view.addVolumeFromUrl({ url: "head.nii", name: "head.nii", buffer: head, colormap: skull ? "hemolens_skull" : "gray",
        cal_min: skull ? SKULL.from : data.window[0], cal_max: skull ? SKULL.to : data.window[1] });
      await view.addVolumeFromUrl({ url: "lesions.nii", name: "lesions.nii", buffer: lesions, opacity: skull ? 1 : 0.6 });
      view.volumes[1].setColormapLabel(labels);
      view.setInterpolation(false);
      settle(view);
      delete view.updateGLVolume;
      view.updateGLVolume();
      return view;
    };
    const planes = await Promise.all(data[slow ? "coarse" : "planes"].map(bytes));
    this.two = await open(this.find(".two"), planes, { show3Dcrosshair: false, crosshairColor: [1, 0.84, 0.3, 0.8], crosshairGap: 6, isOrientationTextVisible: true, multiplanarShowRender: 0, fontSizeScaling: 0.4, fontMinPx: 14 }, null, (view) => {
      view.setMultiplanarLayout(2); // a grid
      view.setSliceType(view.sliceTypeMultiplanar);
    });
    if (data.center) {
      this.two.scene.crosshairPos = this.two.mm2frac(data.center);
      this.two.drawScene();
    }
    this.markWindow(data.window[0]);
    this.drawLegend(data.subtypes, planes[1]);
    const [flat, round] = this.root.querySelectorAll(".stage");
    this.say("", [flat]);
    this.say("Preparing the head …", [round]);
    await new Promise((done) => setTimeout(done, 30)); // let them be seen
    this.solid = await open(this.find(".solid"), await Promise.all(data.solid.map(bytes)), { show3Dcrosshair: false, isOrientationTextVisible: true, isOrientCube: true, forceDevicePixelRatio: slow ? 0.5 : 1 }, skullColors(), (view) => {
      view.setSliceType(view.sliceTypeRender);
      view.setOpacity(0, this.find(".skull").value / 100);
      [view.scene.renderAzimuth, view.scene.renderElevation] = this.angles;
    });
    this.say("", [round]);
  }

  drawLegend(subtypes, lesions) {
    this.find(".legend").replaceChildren(...subtypes.filter((s) => this.present(lesions, s.label)).map((s) => {
      const label = document.createElement("span"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${s.color.join(" ")})`;
      label.append(swatch, ` ${s.title} `);
      return label;
    }));
  }

  present(buffer, label) { return new Uint8Array(buffer, 352).includes(label); }

  setWindow(low, high) {
    if (!this.two) return;
    Object.assign(this.two.volumes[0], { cal_min: low, cal_max: high });
    this.two.updateGLVolume();
    this.markWindow(low);
  }

  markWindow(low) {
    for (const button of this.root.querySelectorAll("[data-low]")) button.setAttribute("aria-pressed", String(Number(button.dataset.low) === low));
  }

  setSkull(opacity) {
    if (!this.solid) return;
    this.solid.setOpacity(0, opacity);
  }

  look(azimuth, elevation) {
    this.angles = [azimuth, elevation];
    this.solid?.setRenderAzimuthElevation(azimuth, elevation);
  }
}

/** Whether there is no graphics card: every voxel and pixel costs the processor then. */
function software() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const told = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = told ? gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

async function bytes(url) {
  const answer = await fetch(url, { credentials: "same-origin" });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || "The server does not answer. Reload the page.");
  return answer.arrayBuffer();
}

function labelColors(subtypes) {
  const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (const s of subtypes) {
    [map.R, map.G, map.B].forEach((channel, i) => channel.push(s.color[i]));
    map.A.push(255);
    map.I.push(s.label);
    map.labels.push(s.title);
  }
  return map;
}

function skullColors() {
  return { R: [0, 205, 255], G: [0, 195, 248], B: [0, 175, 232], A: [0, 26, 110], I: [0, 60, 255] };
}
