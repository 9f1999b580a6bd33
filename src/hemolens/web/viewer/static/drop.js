// Where files are dropped: they are sent one by one, straight to the server's disk, with a bar; then Python is told.

import { calm } from "./calm.js";

const BOXES = new WeakMap();
const AT_ONCE = 3;
let last = null;

export function render(component) {
  const root = component.parentElement.querySelector(".root") || component.parentElement;
  let box = BOXES.get(component.parentElement);
  if (!box) {
    // Streamlit may take the box away and put another in its place; an upload that is under way moves there.
    const moved = last && (last.busy || last.waiting) && !last.parts.drop.isConnected;
    box = moved ? last : new Box(root);
    if (moved) root.replaceChildren(box.parts.drop);
    BOXES.set(component.parentElement, (last = box));
  }
  box.update(component);
}

export function leave() {} // see render: what is under way goes on when the page is back

class Box {
  constructor(root) {
    root.innerHTML = `
      <div class="drop" role="group" aria-label="Drop a scan here">
        <div class="rest"><strong>Drop a scan here</strong></div>
        <div class="row rest">
          <button type="button" class="files">Choose files</button>
          <button type="button" class="folder">Choose a folder</button>
        </div>
        <div class="small rest limit"></div>
        <div class="text" role="status" aria-live="polite" hidden></div>
        <progress max="1" value="0" aria-label="Upload" hidden></progress>
        <button type="button" class="stop" hidden>Stop the upload</button>
        <div class="error" role="alert" hidden></div>
        <input type="file" class="pick" multiple tabindex="-1" aria-label="Files of a scan">
        <input type="file" class="pickfolder" webkitdirectory multiple tabindex="-1" aria-label="Folder of a scan">
      </div>`;
    this.root = root;
    const find = (name) => root.querySelector(name);
    this.parts = { drop: find(".drop"), text: find(".text"), bar: find("progress"), stop: find(".stop"), error: find(".error"), limit: find(".limit"), rest: [...root.querySelectorAll(".rest")] };
    for (const [button, input] of [[".files", ".pick"], [".folder", ".pickfolder"]]) {
      find(button).addEventListener("click", () => find(input).click());
      find(input).addEventListener("change", (e) => {
        this.send([...e.target.files].map((file) => [file.webkitRelativePath || file.name, file]));
        e.target.value = "";
      });
    }
    this.parts.stop.addEventListener("click", () => this.stop());
    const { drop } = this.parts;
    drop.addEventListener("dragover", (e) => { e.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", async (e) => {
      e.preventDefault();
      drop.classList.remove("over");
      this.send(await dropped(e.dataTransfer));
    });
  }

  update({ data, setTriggerValue }) {
    this.data = data;
    this.tell = setTriggerValue;
    this.parts.limit.textContent = `Zip, DICOM, NIfTI, PNG or JPEG; up to ${data.limitText} at once`;
    if (this.waiting && data.taken.includes(this.waiting)) {
      this.waiting = null;
      clearInterval(this.again);
      this.rest();
    }
  }

  rest() {
    this.busy = false;
    for (const part of this.parts.rest) part.hidden = false;
    for (const part of [this.parts.text, this.parts.bar, this.parts.stop]) part.hidden = true;
  }

  fail(line) {
    this.rest();
    this.parts.error.hidden = false;
    this.parts.error.textContent = line;
  }

  stop() {
    this.stopped = true;
    for (const request of this.requests) request.abort();
    this.requests.clear();
    fetch(`${this.data.upload}/${this.batch}`, { method: "DELETE" });
    this.fail("The upload was stopped. Drop the files again when you are ready.");
  }

  async send(files) {
    const wanted = files.filter(([name, file]) => file.size > 0 && !name.split("/").some((part) => part.startsWith(".")));
    if (this.busy) return;
    this.parts.error.hidden = true;
    if (!files.length) return;
    if (!wanted.length) return this.fail("These files are empty. Drop the files of a scan.");
    const total = wanted.reduce((sum, [, file]) => sum + file.size, 0);
    if (total > this.data.limit) return this.fail(`These files are larger than ${this.data.limitText} together. Drop the head series alone.`);
    this.busy = true;
    this.stopped = false;
    this.requests = new Set();
    this.batch = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
    for (const part of this.parts.rest) part.hidden = true;
    for (const part of [this.parts.text, this.parts.bar, this.parts.stop]) part.hidden = false;
    const sent = new Array(wanted.length).fill(0);
    const show = () => {
      const bytes = sent.reduce((a, b) => a + b, 0);
      this.parts.bar.value = bytes / total;
      this.parts.text.textContent = `Sending ${wanted.length === 1 ? wanted[0][0] : `${wanted.length} files`}: ${megabytes(bytes)} of ${megabytes(total)}`;
    };
    show();
    try {
      let next = 0;
      await Promise.all(Array.from({ length: Math.min(AT_ONCE, wanted.length) }, async () => {
        while (next < wanted.length && !this.stopped) {
          const i = next++;
          await this.one(wanted[i], (bytes) => { sent[i] = bytes; show(); });
          sent[i] = wanted[i][1].size;
        }
      }));
      if (this.stopped) return;
      this.parts.stop.hidden = true;
      this.parts.text.textContent = "Sent. The analysis begins.";
      this.waiting = this.batch;
      const tell = () => this.tell("dropped", { batch: this.batch, files: wanted.length });
      tell();
      // Until Python says that it has it.
      this.again = setInterval(() => this.parts.drop.isConnected && calm() && tell(), 2500);
    } catch (error) {
      if (this.stopped) return;
      this.stopped = true;
      for (const request of this.requests) request.abort();
      fetch(`${this.data.upload}/${this.batch}`, { method: "DELETE" }).catch(() => {});
      this.fail(error.message);
    }
  }

  one([name, file], progress) {
    return new Promise((done, fail) => {
      const request = new XMLHttpRequest();
      this.requests.add(request);
      request.open("POST", `${this.data.upload}/${this.batch}?name=${encodeURIComponent(name)}`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.upload.onprogress = (e) => progress(e.loaded);
      request.onload = () => {
        this.requests.delete(request);
        if (request.status < 300) return done();
        let line = "The server refused this file. Reload the page and try again.";
        try { line = JSON.parse(request.responseText).error || line; } catch { /* no JSON: the general line stands */ }
        fail(new Error(line));
      };
      request.onerror = () => fail(new Error("The upload broke off. Check that the server runs, then drop the files again."));
      request.onabort = () => fail(new Error("The upload was stopped. Drop the files again when you are ready."));
      request.send(file);
    });
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file.name, file]);
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files;
}

async function walk(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    files.push([entry.fullPath.replace(/^\//, ""), file]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const more = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!more.length) return;
    for (const one of more) await walk(one, files);
  }
}

const megabytes = (bytes) => (bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KB` : `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 27 ? 1 : 0)} MB`);
