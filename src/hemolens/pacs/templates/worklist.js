"use strict";
// The worklist: asks the API every few seconds and writes what it says. Nothing is put into the page as HTML.
const EVERY_MS = 5000;
const WORDS = { positive: "Positive", no_answer: "No answer", waiting: "Not ready", negative: "Negative" };
const SENT = { none: "–", pending: "on its way", delivered: "yes", undelivered: "NOT SENT" };
const $ = (id) => document.getElementById(id);
let entries = [];
let open = null;

function token() { return sessionStorage.getItem("hemolens-token"); }

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...(options.headers || {}) };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) throw Object.assign(new Error("token"), { needsToken: true });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(typeof told.detail === "string" ? told.detail : `The service answered ${answer.status}.`);
  }
  return answer.json();
}

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

function percent(value) { return value === null ? "–" : `${(100 * value).toFixed(0)} %`; }
function milliliters(value) { return value === null ? "–" : `${value.toFixed(1)} mL`; }

function remarks(entry) {
  const told = [];
  if (entry.job.error) told.push(entry.job.error);
  if (entry.job.partial) told.push("Part of the scan is missing from this result.");
  if (entry.updating) told.push("More images came since; this result is of the earlier ones.");
  return told;
}

function row(entry) {
  const line = make("tr", null, entry.urgency);
  line.append(make("td", entry.place, "number"));
  const finding = make("td");
  finding.append(make("span", WORDS[entry.urgency], "badge"));
  for (const text of remarks(entry)) finding.append(make("span", text, "remark"));
  line.append(finding);
  const done = entry.job.state === "done";
  line.append(make("td", done ? percent(entry.job.probability) : "–", "number"));
  line.append(make("td", done ? milliliters(entry.job.volume_ml) : "–", "number"));
  line.append(make("td", span(entry.waiting_s), "number"));
  line.append(make("td", span(entry.turnaround_s), "number"));
  line.append(make("td", SENT[entry.delivery], entry.delivery === "undelivered" ? "unsent" : ""));
  const study = make("td");
  const button = make("button", "Details");
  button.type = "button";
  button.setAttribute("aria-label", `Details of place ${entry.place}, ${WORDS[entry.urgency]}`);
  button.dataset.job = entry.job.id;
  button.addEventListener("click", () => show(entry));
  study.append(button);
  if (entry.viewer_url) {
    const link = make("a", "Images");
    link.href = entry.viewer_url;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.setAttribute("aria-label", `Images of place ${entry.place}, in a new tab`);
    study.append(" ", link);
  }
  study.append(make("div", entry.study_uid, "uid"));
  line.append(study);
  return line;
}

function draw() {
  const part = $("part").value;
  const shown = entries.filter((entry) => !part || entry.urgency === part);
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.job : null;
  $("rows").replaceChildren(...shown.map(row));
  if (focused) {
    const again = [...$("rows").querySelectorAll("button")].find((b) => b.dataset.job === focused);
    if (again) again.focus();
  }
  $("none").hidden = shown.length > 0;
}

function say(text) { if ($("status").textContent !== text) $("status").textContent = text; }

function trouble(text) {
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== (text || "")) $("trouble").textContent = text || "";
}

async function refresh() {
  try {
    const told = await ask("/api/v1/worklist");
    entries = told.entries;
    const n = (name) => told.counts[name] || 0;
    const unsent = entries.filter((entry) => entry.delivery === "undelivered").length;
    say(`${n("positive")} positive, ${n("no_answer")} without an answer, ${n("waiting")} not ready, ` +
      `${n("negative")} negative.` + (unsent ? ` Could not be sent: ${unsent}.` : ""));
    trouble("");
    $("signin").hidden = true;
    $("list").hidden = false;
    draw();
  } catch (error) {
    if (error.needsToken) {
      if ($("signin").hidden) {
        say(token() ? "This token was not accepted. Ask for another one." : "An access token is needed.");
        sessionStorage.removeItem("hemolens-token");
        $("list").hidden = true;
        $("signin").hidden = false;
        $("token").focus();
      }
    } else {
      const why = error instanceof TypeError ? "The service cannot be reached." : error.message;
      trouble(`${why} What is shown may be old; this page tries again by itself.`);
    }
  }
}

function pair(list, name, value) {
  list.append(make("dt", name), make("dd", value));
}

function lesionTable(lesions) {
  const table = make("table");
  table.append(make("caption", "Lesions"));
  const head = make("tr");
  for (const name of ["Kind", "Probability", "Volume", "Slices"]) {
    const cell = make("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = make("tbody");
  for (const lesion of lesions) {
    const line = make("tr");
    const volume = lesion.volume_ml === undefined ? "–" : milliliters(lesion.volume_ml);
    line.append(make("td", lesion.subtype), make("td", percent(lesion.probability), "number"),
      make("td", volume, "number"), make("td", lesion.slices.map((k) => k + 1).join(", ")));
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  return table;
}

async function show(entry) {
  open = entry;
  $("detail-title").textContent = `${WORDS[entry.urgency]}, place ${entry.place}`;
  $("detail-body").replaceChildren(make("p", "Loading…"));
  $("again").hidden = true;
  if (!$("detail").open) $("detail").showModal();
  try {
    const told = await ask(`/api/v1/jobs/${encodeURIComponent(entry.job.id)}`);
    const list = make("dl");
    pair(list, "Study", told.job.study_uid);
    pair(list, "Series", told.job.series_uid);
    pair(list, "State", told.job.error ? `${told.job.state}: ${told.job.error}` : told.job.state);
    pair(list, "Images", told.job.instances);
    pair(list, "Model", told.job.model);
    if (told.change) pair(list, "Since the scan before", changed(told.change));
    for (const d of told.deliveries) {
      pair(list, `To ${d.destination}`, d.error ? `${d.state}: ${d.error}` : d.state);
    }
    const parts = [list];
    if (told.job.state === "done") {
      const findings = await ask(`/api/v1/jobs/${encodeURIComponent(entry.job.id)}/findings`).catch(() => null);
      if (findings && findings.lesions.length) parts.push(lesionTable(findings.lesions));
      for (const note of findings ? findings.quality : []) parts.push(make("p", `${note.severity}: ${note.message}`));
    }
    parts.push(make("p", told.notice, "notice"));
    if (open !== entry) return;
    $("detail-body").replaceChildren(...parts);
    const failed = told.deliveries.filter((d) => d.state === "failed" || d.state === "dead").map((d) => d.id);
    const stuck = told.job.state === "failed" || told.job.state === "dead" ? [told.job.id] : [];
    $("again").dataset.ids = JSON.stringify([...stuck, ...failed]);
    $("again").hidden = stuck.length + failed.length === 0;
  } catch (error) {
    $("detail-body").replaceChildren(make("p", error.needsToken ? "The token is no longer accepted." : error.message));
  }
}

function changed(change) {
  if (change.difference_ml === null) return "volumes cannot be compared";
  const sign = change.difference_ml > 0 ? "+" : change.difference_ml < 0 ? "−" : "±";
  const hours = change.hours === null ? "" : ` in ${span(3600 * change.hours)}`;
  const growth = change.growth ? " (growth: more than 6 mL or a third)" : "";
  return `${sign}${Math.abs(change.difference_ml).toFixed(1)} mL${hours}, from ${milliliters(change.prior_volume_ml)}${growth}`;
}

$("signin-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("hemolens-token", $("token").value.trim());
  $("token").value = "";
  $("signin").hidden = true;
  refresh();
});
$("part").addEventListener("change", draw);
$("close").addEventListener("click", () => $("detail").close());
$("again").addEventListener("click", async () => {
  try {
    const told = await ask("/api/v1/retry", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ids: JSON.parse($("again").dataset.ids) }),
    });
    say(`${told.queued} queued again.`);
    $("detail").close();
    await refresh();
  } catch (error) {
    $("detail-body").append(make("p", error.message, "remark"));
  }
});
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
