// The what-if page: sends the form as it changes and puts the answers in place.
"use strict";
const form = document.getElementById("form");
const status_ = document.getElementById("status");
const pane = (name) => document.getElementById(name);
const WAIT = 120;
const QUIET = 500;
let pins = new URLSearchParams(location.search).getAll("pin");
let running = null;
let timer = null;

function query() {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (typeof value === "string") found.set(name, value.trim());
  return found;
}

function address(asked) {
  const shown = new URLSearchParams(asked);
  for (const pin of pins) shown.append("pin", pin);
  history.replaceState(null, "", "/?" + shown);
}

async function fetched(path, asked, signal) {
  const response = await fetch(path + "?" + asked, { signal });
  if (response.status === 409) throw new DOMException("superseded", "AbortError");
  return { text: await response.text(), ok: response.ok };
}

const drawn = pane("curve");

function place(name, got) {
  const into = name === "curve" ? drawn : pane(name);
  into.innerHTML = got.text;
  into.classList.remove("stale");
  // The curve is drawn later than the answer and stands in the middle of it.
  if (name === "answer") into.querySelector("#curve-here")?.replaceWith(drawn);
}

function say(text) { status_.textContent = text; }

async function ask() {
  if (running) running.abort();
  running = new AbortController();
  const signal = running.signal;
  const asked = query();
  address(asked);
  pane("answer").classList.add("stale");
  say("Pricing layouts…");
  try {
    const first = await fetched("/answer", asked, signal);
    place("answer", first);
    say(first.ok ? "" : "No answer to this.");
    if (!first.ok) { drawn.replaceChildren(); return; }
    if (pins.length) await compare(asked, signal);
    await new Promise((done) => setTimeout(done, QUIET));
    signal.throwIfAborted();
    if (pane("answer").firstElementChild.dataset.whole === "0") {
      say("Searching all layouts…");
      const whole = new URLSearchParams(asked);
      whole.set("whole", "1");
      place("answer", await fetched("/answer", whole, signal));
      say("");
    }
    await curve(asked, signal);
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer: is krzem ui still running?");
  }
}

async function curve(asked, signal) {
  for (let known = -1; ;) {
    const got = await fetched("/curve", asked, signal);
    place("curve", got);
    const shown = drawn.firstElementChild;
    if (!got.ok || shown.dataset.known === shown.dataset.wanted || Number(shown.dataset.known) <= known) return;
    known = Number(shown.dataset.known);
  }
}

async function compare(asked, signal) {
  const all = new URLSearchParams(asked);
  for (const pin of pins) all.append("pin", pin);
  place("pinned", await fetched("/pinned", all, signal));
}

function soon() { clearTimeout(timer); timer = setTimeout(ask, WAIT); }

function slide(range) {
  const values = range.dataset.values.split(" ");
  const field = pane(range.dataset.for);
  range.max = values.length - 1;
  const set = () => {
    const now = parseFloat(field.value);
    const gaps = values.map((v) => Math.abs(Math.log(parseFloat(v) / (now || parseFloat(values[0])))));
    range.value = gaps.indexOf(Math.min(...gaps));
    range.setAttribute("aria-valuetext", field.value || "as published");
  };
  set();
  range.addEventListener("input", () => {
    field.value = values[range.value];
    range.setAttribute("aria-valuetext", field.value);
    soon();
  });
  field.addEventListener("input", set);
}

function switched() {
  const on = [], off = [];
  for (const select of form.querySelectorAll("[data-switch]")) {
    if (select.value === "off") off.push(select.dataset.switch);
    else if (select.value) on.push(select.dataset.switch + "=" + select.value);
  }
  pane("switches").value = on.join(",");
  pane("without").value = off.join(",");
}

async function drop(files) {
  const body = new FormData();
  for (const file of files) body.append("file", file);
  body.append("on", query().get("device") + ":" + query().get("devices"));
  say("Reading what was dropped…");
  const response = await fetch("/drop", { method: "POST", body });
  const shown = pane("dropped");
  if (!response.ok) { shown.innerHTML = await response.text(); say("It could not be read."); return; }
  const found = await response.json();
  const note = document.createElement("p");
  note.className = "answer";
  note.textContent = found.says + " ";
  if (found.kind === "model") pane("model").value = found.model;
  else {
    const link = document.createElement("a");
    link.href = found.report;
    link.target = "_blank";
    link.rel = "noopener";
    link.textContent = "Open the whole check";
    note.append(link);
  }
  shown.replaceChildren(note);
  say("");
  if (found.kind === "model") soon();
}

form.addEventListener("input", (event) => {
  if (event.target.type === "range" || event.target.type === "file") return;
  if (event.target.dataset.switch !== undefined) switched();
  soon();
});
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
form.addEventListener("change", (event) => {
  if (event.target.name === "engine") { switched(); address(query()); location.reload(); }
});
form.querySelectorAll("input[type=range]").forEach(slide);

document.addEventListener("click", async (event) => {
  const copied = event.target.dataset.copy;
  if (copied) {
    await navigator.clipboard.writeText(pane(copied).textContent);
    event.target.textContent = "Copied";
  }
  if (event.target.id === "unpin") { pins = []; pane("pinned").replaceChildren(); address(query()); }
});
pane("pin").addEventListener("click", () => {
  pins = [...pins.slice(-1), String(query())];
  ask();
});
pane("theme").addEventListener("click", (event) => {
  const now = document.documentElement.dataset.theme
    || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  event.target.setAttribute("aria-pressed", String(next === "dark"));
});
const target = pane("drop");
for (const kind of ["dragover", "dragleave", "drop"])
  target.addEventListener(kind, (event) => {
    event.preventDefault();
    target.classList.toggle("over", kind === "dragover");
    if (kind === "drop") drop(event.dataTransfer.files);
  });
pane("files").addEventListener("change", (event) => drop(event.target.files));
ask();
