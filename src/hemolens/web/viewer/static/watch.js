// Watches the analyses: asks the server how far they are, draws a bar for each, and tells Python when one is over.
// Without analyses it is a clock that lets Python draw again.

import { calm } from "./calm.js";

const WATCHES = new WeakMap();
const AGAIN_MS = 2500;
const PATIENCE = 4; // answers that may be missing before the user is told

export function render(component) {
  let watch = WATCHES.get(component.parentElement);
  if (!watch) WATCHES.set(component.parentElement, (watch = new Watch(component.parentElement.querySelector(".root") || component.parentElement)));
  clearTimeout(watch.leaving);
  watch.update(component);
}

export function leave(parent) {
  const watch = WATCHES.get(parent);
  if (!watch) return;
  watch.leaving = setTimeout(() => { watch.stop(); WATCHES.delete(parent); }, 300); // Streamlit may mount again at once
}

class Watch {
  constructor(root) {
    root.innerHTML = '<div class="jobs"></div><div class="error" role="alert" hidden></div>';
    this.list = root.querySelector(".jobs");
    this.error = root.querySelector(".error");
    this.rows = new Map();
    this.told = 0;
    this.missed = 0;
  }

  update({ data, setTriggerValue }) {
    this.data = data;
    this.tell = setTriggerValue;
    this.stop();
    this.draw([]);
    if (data.watched.length) this.look();
    else if (!data.jobs) this.timer = setTimeout(() => this.due(), data.every);
  }

  stop() {
    clearTimeout(this.timer);
    this.round = {}; // an answer that is still on its way belongs to none
  }

  due() {
    if (!calm() || document.hidden) this.timer = setTimeout(() => this.due(), 500);
    else this.tell("due", Date.now());
  }

  async look() {
    const round = this.round;
    const jobs = await this.ask();
    if (round !== this.round) return;
    if (jobs) {
      this.draw(jobs);
      const running = new Set(jobs.filter((job) => !job.over).map((job) => job.id));
      const over = this.data.watched.some((id) => !running.has(id));
      if (over && calm() && Date.now() - this.told > AGAIN_MS) {
        this.told = Date.now();
        this.tell("due", this.told);
      }
    }
    this.timer = setTimeout(() => this.look(), this.data.every);
  }

  async ask() {
    try {
      const answer = await fetch(this.data.jobs, { credentials: "same-origin" });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error);
      this.missed = 0;
      this.error.hidden = true;
      return told.jobs;
    } catch (error) {
      this.missed += 1;
      if (this.missed >= PATIENCE) {
        this.error.hidden = false;
        this.error.textContent = error instanceof TypeError || !error.message ? "The server does not answer. Check that it runs, then reload the page." : error.message;
      }
      return null;
    }
  }

  draw(jobs) {
    const shown = new Set(jobs.filter((job) => !job.over || this.data.watched.includes(job.id)).map((job) => job.id));
    if (jobs.length) for (const [id, row] of this.rows) if (!shown.has(id)) { row.node.remove(); this.rows.delete(id); }
    for (const id of this.rows.keys()) if (!jobs.length && !this.data.watched.includes(id)) { this.rows.get(id).node.remove(); this.rows.delete(id); }
    for (const job of jobs) if (shown.has(job.id)) this.row(job).show(job);
  }

  row(job) {
    if (!this.rows.has(job.id)) this.rows.set(job.id, new Row(this.list, job, this.data.jobs));
    return this.rows.get(job.id);
  }
}

class Row {
  constructor(list, job, url) {
    this.node = document.createElement("div");
    this.node.className = "job";
    this.node.innerHTML = '<div class="text" role="status" aria-live="polite"></div><progress max="1"></progress><button type="button">Stop</button>';
    [this.text, this.bar, this.button] = this.node.children;
    this.bar.setAttribute("aria-label", `Analysis of ${job.name}`);
    this.button.title = `Stop the analysis of ${job.name}`;
    this.button.addEventListener("click", () => {
      this.button.disabled = true;
      fetch(`${url}/${job.id}`, { method: "DELETE", credentials: "same-origin" }).catch(() => { this.button.disabled = false; });
    });
    list.append(this.node);
  }

  show(job) {
    if (this.text.textContent !== job.text) this.text.textContent = job.text; // said aloud when it changes
    this.bar.value = job.fraction;
  }
}
