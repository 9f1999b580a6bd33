// The viewer's controls: buttons, sliders, readouts, and what a screen reader hears.

const PRESETS = [["brain", "Brain", "1"], ["subdural", "Subdural", "2"], ["bone", "Bone", "3"], ["stroke", "Stroke", "4"]];
const TOOLS = [["window", "Window", "w"], ["brush", "Add", "b"], ["erase", "Erase", "e"], ["pick", "Click", "c"]];
const HINTS = {
  window: "Drag to change the window.",
  brush: "Draw to add blood of the chosen kind.",
  erase: "Draw to take blood away.",
  pick: "Click a lesion to give it the chosen kind, or to remove it.",
};
const KEYS = [
  ["↑ ↓ or ← →", "one slice back or on (picture focused)"], ["Page Up, Page Down, Home, End", "five slices; first; last"],
  ["1 2 3 4", "window: brain, subdural, bone, stroke"], ["n, p", "next, previous lesion"], ["o", "outline, filling, both, none"],
  ["Enter", "a cursor for the arrow keys: HU under it are read aloud; Shift: ten pixels; Page Up, Page Down: slices; Escape ends it"],
  ["[ ]", "less, more opaque"], ["h", "hide and show what is drawn over the scan"], ["+ − r", "larger, smaller, whole picture"],
];
const TOOL_KEYS = [["w b e c", "tools: window, add, erase, click"], ["Enter, again Enter", "cursor; then: brush or eraser down and up, or press there"], [", .", "smaller, larger brush"], ["Ctrl+Z, Ctrl+Y", "undo, redo"]];
const MOUSE = [
  ["wheel", "slices"], ["Ctrl + wheel, pinch", "zoom"], ["drag", "window (left–right: width, up–down: level)"],
  ["right drag", "window, whatever the tool"], ["Shift + drag", "move the picture"], ["double click", "whole picture"],
];

export function buildPage(root, data, viewer) {
  root.innerHTML = "";
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key in node && key !== "list" && typeof value !== "object") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const group = (label, ...children) => make("div", { className: "group", role: "group", "aria-label": label }, ...children);

  // Window
  const again = () => page.update(viewer.data, viewer);
  const presets = PRESETS.map(([name, title, key]) => make("button", {
    type: "button", textContent: title, title: `${title} window (key ${key})`, "aria-keyshortcuts": key,
    onclick: () => { viewer.preset(name); again(); }, "data-preset": name,
  }));
  const number = (label, min, max) => make("input", {
    type: "number", min, max, step: 1, "aria-label": label,
    onchange: () => { viewer.setWindow(Number(level.value), Number(width.value)); again(); },
  });
  const level = number("Window level in Hounsfield units", -1024, 3071), width = number("Window width in Hounsfield units", 1, 6000);
  const custom = group("Custom window", make("label", {}, "Level", level), make("label", {}, "Width", width));

  // Tools
  const tools = TOOLS.map(([name, title, key]) => make("button", {
    type: "button", textContent: title, title: `${HINTS[name]} (key ${key})`, "aria-keyshortcuts": key,
    onclick: () => { viewer.setTool(name); again(); }, "data-tool": name,
  }));
  const kinds = make("select", { "aria-label": "Kind of hemorrhage for the tools" });
  const size = make("input", {
    type: "range", min: 1, max: 30, step: 1, "aria-label": "Brush width in millimeters",
    oninput: () => { viewer.setBrush(Number(size.value)); again(); },
  });
  const sizeShown = make("span");
  const undo = make("button", { type: "button", textContent: "Undo", title: "Undo (Ctrl+Z)", onclick: () => viewer.tell("undo") });
  const redo = make("button", { type: "button", textContent: "Redo", title: "Redo (Ctrl+Y)", onclick: () => viewer.tell("redo") });
  const hint = make("span", { className: "name" });
  const toolBar = make("div", { className: "bar", role: "toolbar", "aria-label": "Correction tools" },
    group("Tool", ...tools), make("label", {}, "Kind", kinds), make("label", {}, "Brush", size, sizeShown), group("History", undo, redo), hint);

  // Picture
  const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "CT slice viewer" });
  canvas.setAttribute("aria-describedby", "hl-hint");
  const heard = make("span", { id: "hl-hint", className: "hidden", textContent: "Arrow keys change the slice; Enter shows a cursor. All keys are listed below the picture." });
  const corners = Object.fromEntries(["tl", "tr", "bl", "br"].map((c) => [c, make("div", { className: `corner ${c}`, "aria-hidden": "true" })]));
  const letters = ["l", "r", "t", "b"].map((c) => make("div", { className: `letter ${c}`, "aria-hidden": "true" }));
  const waiting = make("div", { className: "waiting", textContent: "Loading slices …", hidden: true });
  const stage = make("div", { className: "stage" }, canvas, heard, ...Object.values(corners), ...letters, waiting);

  // Slices
  const strip = make("canvas", { className: "strip", title: "Probability of hemorrhage in each slice: click to go there" });
  strip.setAttribute("role", "img");
  const slider = make("input", {
    type: "range", min: 1, step: 1, "aria-label": "Slice", oninput: () => viewer.show(Number(slider.value) - 1),
  });
  const ends = [make("span", { className: "end" }), make("span", { className: "end" })];
  const below = make("div", { className: "below" }, ends[0], slider, ends[1], make("span"), strip, make("span"));

  const layers = make("div", { className: "bar", role: "group", "aria-label": "What is drawn over the scan" });
  const list = (rows) => make("dl", {}, ...rows.flatMap(([a, b]) => [make("dt", { textContent: a }), make("dd", { textContent: b })]));
  const help = make("details", {}, make("summary", { textContent: "Keys and mouse" }), list([...MOUSE, ...KEYS, ...(data.tools ? TOOL_KEYS : [])]));
  const live = make("div", { className: "hidden", role: "status", "aria-live": "polite" });
  root.append(make("div", { className: "hl" },
    make("div", { className: "bar", role: "toolbar", "aria-label": "Window" }, group("Presets", ...presets), custom),
    toolBar, stage, below, layers, help, live));

  let spoken;
  const page = {
    root, canvas, stage, strip,
    label: () => Number(kinds.value),
    labelColor: () => { const s = viewer.data.subtypes.find((one) => one.label === Number(kinds.value)); return s ? `rgb(${s.color.join(" ")})` : "#fff"; },

    update(data, viewer) {
      for (const button of presets) button.setAttribute("aria-pressed", String(button.dataset.preset === viewer.presetName));
      [level.value, width.value] = viewer.window;
      slider.max = data.slices;
      slider.value = viewer.k + 1;
      ends.forEach((end, i) => { end.textContent = data.ends[i]; });
      toolBar.hidden = !data.tools;
      toolBar.style.display = data.tools ? "" : "none";
      for (const button of tools) button.setAttribute("aria-pressed", String(button.dataset.tool === viewer.tool));
      size.value = viewer.brushMm;
      sizeShown.textContent = `${viewer.brushMm} mm`;
      hint.textContent = HINTS[viewer.tool];
      updateKinds(data, viewer);
      updateLayers(data, viewer);
      viewer.draw();
    },

    announce(viewer) {
      slider.value = viewer.k + 1;
      page.say(describe(viewer));
    },

    /** Let a screen reader say it, once the keys rest. */
    say(text) {
      clearTimeout(spoken);
      spoken = setTimeout(() => { live.textContent = text; }, 250);
    },

    paint(viewer, stored) {
      const { data, k } = viewer;
      waiting.hidden = Boolean(stored) && !viewer.scan.error;
      waiting.style.display = waiting.hidden ? "none" : "";
      const problem = viewer.scan.error || [...viewer.layers.values()].map((l) => l.error).find(Boolean);
      waiting.textContent = problem || "Loading slices …";
      const [l, r, t, b] = data.letters[k];
      [l, r, t, b].forEach((letter, i) => { letters[i].textContent = letter; });
      const p = data.probability[k];
      corners.tl.textContent = [`Slice ${k + 1} / ${data.slices}`, `index ${k} in files`, ...(data.labels[k] !== String(k) ? [data.labels[k]] : [])].join("\n");
      corners.tr.textContent = `Hemorrhage ${percent(p[0])}`;
      corners.br.textContent = `L ${viewer.window[0]}  W ${viewer.window[1]}`;
      const probe = viewer.probe(stored);
      corners.bl.textContent = probe ? `${data.approximate ? "about " : ""}${Math.round(probe.hu)} HU\n${["row " + probe.y + ", column " + probe.x, ...probe.names].join("\n")}` : "";
      canvas.setAttribute("aria-label", describe(viewer));
      slider.setAttribute("aria-valuetext", describe(viewer));
      slider.value = k + 1;
      [level.value, width.value].forEach((v, i) => { if (Number(v) !== viewer.window[i] && document.activeElement === null) (i ? width : level).value = viewer.window[i]; });
      if (viewer.drag?.kind === "window") { [level.value, width.value] = viewer.window; for (const button of presets) button.setAttribute("aria-pressed", String(button.dataset.preset === viewer.presetName)); }
      paintStrip(viewer);
    },
  };

  function updateKinds(data, viewer) {
    const wanted = viewer.tool === "pick" ? [...data.subtypes, { label: 0, title: "Nothing: remove it" }] : data.subtypes;
    if (kinds.children.length === wanted.length) return;
    const chosen = kinds.value;
    kinds.replaceChildren(...wanted.map((s) => make("option", { value: s.label, textContent: s.title })));
    if ([...kinds.options].some((option) => option.value === chosen)) kinds.value = chosen;
    else kinds.value = "4";
  }

  function updateLayers(data, viewer) {
    const shape = JSON.stringify(data.overlays.map((o) => [o.name, o.title, o.present]));
    if (layers.dataset.shape !== shape) {
      layers.dataset.shape = shape;
      layers.replaceChildren(...[...viewer.layers.values()].map((layer) => layerControls(layer, viewer)));
    }
    [...viewer.layers.values()].forEach((layer, i) => {
      const row = layers.children[i];
      row.querySelector("select").value = layer.style;
      row.querySelector("input[type=range]").value = Math.round(layer.opacity * 100);
    });
  }

  function layerControls(layer, viewer) {
    const { told } = layer;
    const style = make("select", { "aria-label": `${told.title}: how it is drawn`, onchange: () => { viewer.setStyle(layer, style.value); } },
      ...(told.kind === "labels" ? [["both", "outline and fill"], ["outline", "outline"], ["fill", "fill"], ["hidden", "hidden"]] : [["fill", "shown"], ["hidden", "hidden"]])
        .map(([value, text]) => make("option", { value, textContent: text })));
    if (told.kind !== "labels" && layer.style !== "hidden") layer.style = "fill";
    const opacity = make("input", { type: "range", min: 0, max: 100, step: 5, "aria-label": `${told.title}: opacity in percent`, style: "width: 90px",
      oninput: () => viewer.setOpacity(layer, Number(opacity.value) / 100) });
    const present = told.kind === "labels" ? told.present : [];
    const boxes = present.map((label) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = `rgb(${(told.colors[label] || [255, 255, 255]).join(" ")})`;
      const box = make("input", { type: "checkbox", checked: !layer.off.has(label), onchange: () => viewer.toggleLabel(layer, label, box.checked) });
      return make("label", {}, box, swatch, told.titles[label] || String(label));
    });
    return group(told.title, make("span", { className: "name", textContent: told.title }), style, opacity, ...boxes);
  }

  function describe(viewer) {
    const { data, k } = viewer, p = data.probability[k];
    let best = 1;
    for (let i = 2; i < p.length; i++) if (p[i] > p[best]) best = i;
    const kind = p[0] >= 0.5 ? `, most likely ${data.findings[best]}` : "";
    return `Slice ${k + 1} of ${data.slices}, probability of hemorrhage ${percent(p[0])}${kind}`;
  }

  function paintStrip(viewer) {
    const { data, k } = viewer, ratio = window.devicePixelRatio || 1;
    const context = strip.getContext("2d"), w = strip.width, h = strip.height, step = w / data.slices;
    context.clearRect(0, 0, w, h);
    const marks = 5 * ratio, top = 2 * ratio, full = h - marks - top - 2 * ratio;
    const gap = step > 4 * ratio ? ratio : 0;
    context.fillStyle = "rgba(255, 255, 255, .16)";
    context.fillRect(k * step, 0, step, h);
    const layer = [...viewer.layers.values()].find((l) => l.told.kind === "labels" && l.style !== "hidden");
    const holds = layer?.holding(data.slices);
    for (let i = 0; i < data.slices; i++) {
      const p = data.probability[i][0];
      context.fillStyle = i === k ? "#ffffff" : `hsl(${Math.round(210 - 205 * p)} ${Math.round(25 + 55 * p)}% 60%)`;
      const height = Math.max(ratio, p * full);
      context.fillRect(i * step + gap / 2, top + full - height, step - gap, height);
      if (holds && holds[i]) {
        context.fillStyle = `rgb(${(layer.told.colors[holds[i]] || [255, 255, 255]).join(" ")})`;
        context.fillRect(i * step + gap / 2, h - marks, step - gap, marks);
      }
    }
    strip.setAttribute("aria-label", `Probability of hemorrhage in each of ${data.slices} slices; highest ${percent(Math.max(...data.probability.map((row) => row[0])))}`);
  }
  return page;
}

const percent = (p) => (p > 0 && p < 0.01 ? "< 1 %" : p > 0.99 && p < 1 ? "> 99 %" : `${Math.round(p * 100)} %`);
