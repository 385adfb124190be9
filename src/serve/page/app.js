// Three tabs: texts as they are typed, a table, and the model. Whatever comes from a text, a label or a file is put in as text.

import { CsvReader } from "./csv.js";
import { showModel } from "./model.js";

export const byId = (id) => document.getElementById(id);

/** An element with a class and a text. */
export function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== "") made.textContent = text;
  return made;
}

export const plural = (count, noun) => `${count} ${noun}${Number(count) === 1 ? "" : "s"}`;
export const percent = (p) => `${(100 * p).toFixed(1)} %`;

// ---- The server

let info = null;
let watching = false;

/** What an answer that is none says. */
export async function refusal(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function trouble(text) {
  byId("trouble").hidden = !text;
  if (byId("trouble").textContent !== text) byId("trouble").textContent = text;
}

/** Asks until the server answers again, and then shows what it has. */
export function watch() {
  if (watching) return;
  watching = true;
  const ask = async () => {
    try {
      const response = await fetch("health", { cache: "no-store" });
      if (response.ok) {
        watching = false;
        trouble("");
        await start();
        return;
      }
      trouble(`${await refusal(response)}. This page tries again by itself.`);
    } catch {
      trouble("The server can't be reached. This page tries again by itself.");
    }
    setTimeout(ask, 1500);
  };
  ask();
}

/** A server that answers was only too slow with this: asking at once again would make it slower. */
async function watchUnlessReady() {
  try {
    if ((await fetch("health", { cache: "no-store" })).ok) return;
  } catch {
    // It can't be reached.
  }
  watch();
}

async function start() {
  if (await learn()) label();
}

/** What the server has now; whether it has told. */
async function learn() {
  let response;
  try {
    response = await fetch("info");
  } catch {
    watch();
    return false;
  }
  if (response.status === 401) trouble("A key is needed: load this page again, and give it as the password.");
  else if (!response.ok) watch();
  if (!response.ok) return false;
  info = await response.json();
  const names = info.models.map((model) => model.run).join(", ");
  byId("about").textContent = `${names}: ${plural(info.labels.length, "label")}, on ${info.device}`;
  document.title = `${names} - bert-xla`;
  if (!byId("model").hidden) showModel(info);
  return true;
}

/** Another model than before may have answered. */
function loaded(response) {
  const loads = response.headers.get("x-model-loads");
  if (loads !== null && Number(loads) !== info.loads) learn();
}

// ---- Tabs

const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab.id === "tab-model" && info) learn();
}

for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[to % tabs.length];
    select(next);
    next.focus();
  });
}

// ---- Texts

let asking = null;
let timer = 0;

byId("input").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(label, 200);
});

async function label() {
  if (!info) return;
  asking?.abort();
  const now = (asking = new AbortController());
  const all = byId("input").value.split("\n").map((line) => line.trim()).filter((line) => line);
  const texts = all.slice(0, info.limits.inputs);
  if (texts.length === 0) {
    byId("answers").replaceChildren();
    byId("texts-status").textContent = "";
    return;
  }
  let response;
  try {
    const body = JSON.stringify({ inputs: texts, probabilities: true });
    const headers = { "content-type": "application/json" };
    response = await fetch("predict", { method: "POST", body, headers, signal: now.signal });
    if (!response.ok) {
      const why = await refusal(response);
      if (now.signal.aborted) return;
      byId("answers").replaceChildren();
      byId("texts-status").textContent = `Not labelled: ${why}`;
      if (response.status === 503) await watchUnlessReady();
      return;
    }
    loaded(response);
    const rows = await response.json();
    if (now.signal.aborted) return;
    const cut = (response.headers.get("x-truncated-inputs") ?? "").split(",").map(Number);
    const isCut = new Set(response.headers.has("x-truncated-inputs") ? cut : []);
    byId("answers").replaceChildren(...rows.map((row, at) => answer(texts[at], row, isCut.has(at))));
    byId("texts-status").textContent = summary(rows, all.length - texts.length);
  } catch {
    if (!now.signal.aborted) watch();
  }
}

function answer(text, scores, isCut) {
  const item = element("li");
  const shown = element("p", "text", text);
  shown.dir = "auto";
  const bars = element("dl", "bars");
  for (const [at, { label, score }] of scores.entries()) {
    const name = element("dt", at === 0 ? "first" : "", label);
    name.dir = "auto";
    const value = element("dd");
    const track = element("div", "track");
    const fill = element("div", "fill");
    fill.style.width = `${100 * score}%`;
    track.append(fill);
    value.append(track, element("span", "number", percent(score)));
    bars.append(name, value);
  }
  item.append(shown, bars);
  if (isCut) item.append(element("p", "cut", "Longer than the model reads: only its beginning counts."));
  return item;
}

function summary(rows, left) {
  const counts = new Map();
  for (const [first] of rows) counts.set(first.label, (counts.get(first.label) ?? 0) + 1);
  const each = rows.length === 1
    ? `${rows[0][0].label}: ${percent(rows[0][0].score)}`
    : [...counts].map(([label, count]) => `${count} × ${label}`).join(", ");
  return left > 0 ? `${each}. ${plural(left, "more line")} left out: give them as a table.` : each;
}

// ---- A table

const PAGE = 200;
let chosen = null;
let header = [];
let rows = [];
let order = { column: -1, down: false };
let shownRows = PAGE;
let stopping = null;

byId("file").addEventListener("change", () => { if (byId("file").files[0]) take(byId("file").files[0]); });
// The same file, which may have been mended, is chosen again.
byId("file").addEventListener("click", () => { byId("file").value = ""; });
byId("again").addEventListener("click", () => take(chosen));
byId("stop").addEventListener("click", () => stopping?.abort());
for (const [name, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  byId("drop").addEventListener(name, (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    byId("drop").classList.toggle("over", over);
    if (name === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
// A file that is dropped beside it would take the page's place.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => hasFiles(event) && event.preventDefault());

function hasFiles(event) {
  return event.dataTransfer.types.includes("Files");
}

function query(file) {
  const query = new URLSearchParams({ probabilities: true, texts: true });
  const end = file.name.toLowerCase().split(".").pop();
  const format = { jsonl: "jsonl", ndjson: "jsonl", json: "jsonl", parquet: "parquet" }[end];
  if (format) query.set("format", format);
  else {
    query.set("separator", end === "tsv" ? "tab" : byId("separator").value);
    if (byId("first-row").value) query.set("header", byId("first-row").value);
  }
  if (byId("text-column").value) query.set("text_column", byId("text-column").value);
  if (byId("id-column").value) query.set("id_column", byId("id-column").value);
  if (byId("skip-bad").checked) query.set("skip_bad_rows", true);
  return query;
}

async function take(file) {
  stopping?.abort();
  const now = (stopping = new AbortController());
  chosen = file;
  byId("again").disabled = false;
  [header, rows, shownRows, order] = [[], [], PAGE, { column: -1, down: false }];
  byId("labelled").hidden = true;
  setDownload(null);
  byId("running").hidden = false;
  byId("progress").removeAttribute("value");
  byId("table-status").textContent = `Sending ${file.name}…`;
  try {
    const response = await fetch(`predict.csv?${query(file)}`, { method: "POST", body: file, signal: now.signal });
    if (response.ok) {
      loaded(response);
      await receive(response, now);
    } else {
      const why = await refusal(response);
      if (stopping !== now) return;
      byId("table-status").textContent = `Not labelled: ${why}`;
      if (response.status === 422) {
        byId("table-status").textContent += ". The fields above say otherwise.";
        byId("layout").open = true;
      }
      if (response.status === 503) await watchUnlessReady();
    }
  } catch {
    if (stopping !== now) return;
    const hasChanged = !now.signal.aborted && !(await isReadable(file));
    if (stopping !== now) return;
    const why = now.signal.aborted ? "Stopped" : "The connection was lost";
    byId("table-status").textContent = hasChanged
      ? `${file.name} has changed since it was chosen: choose it again.`
      : `${why} after ${plural(rows.length, "row")}.`;
    if (!hasChanged && !now.signal.aborted) watch();
    if (rows.length > 0) showRows();
  } finally {
    if (stopping === now) {
      byId("running").hidden = true;
    }
  }
}

/** Browsers don't read a file that is another than when it was chosen. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** Rows as they come, and all of them as a file at the end. */
async function receive(response, now) {
  const total = Number(response.headers.get("x-rows"));
  const [reader, decoder, csv, pieces] = [response.body.getReader(), new TextDecoder(), new CsvReader(), []];
  byId("labelled").hidden = false;
  byId("progress").max = Math.max(total, 1);
  let drawn = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (stopping !== now) return;
    if (!done) pieces.push(value);
    const some = csv.push(done ? decoder.decode() : decoder.decode(value, { stream: true }));
    if (done) some.push(...csv.finish());
    if (header.length === 0 && some.length > 0) setHeader(some.shift());
    rows.push(...some);
    byId("progress").value = rows.length;
    if (done) break;
    // Now and then: it is read aloud, too.
    if (performance.now() - drawn > 1500) {
      byId("table-status").textContent = `${rows.length} of ${plural(total, "row")}`;
      showRows();
      drawn = performance.now();
    }
  }
  byId("table-status").textContent = counted(total) + noted(response.headers);
  setDownload(new Blob(pieces, { type: "text/csv" }));
  showRows();
}

/** What else there is to know of the table. */
function noted(headers) {
  const [columns, skipped, empty] = ["x-columns", "x-skipped-rows", "x-rows-without-text"].map((name) => headers.get(name));
  const notes = [
    columns && `columns by position, from 0: ${columns}`,
    Number(skipped) > 0 && `${plural(skipped, "bad row")} left out`,
    Number(empty) > 0 && `${plural(empty, "row")} without a text, labelled all the same`,
  ];
  return notes.filter((note) => note).map((note) => `; ${note}`).join("");
}

function counted(total) {
  const counts = new Map();
  for (const row of rows) counts.set(row[2], (counts.get(row[2]) ?? 0) + 1);
  return `${plural(total, "row")}: ${[...counts].map(([label, count]) => `${count} × ${label}`).join(", ")}`;
}

let download = null;

function setDownload(blob) {
  download = blob;
  byId("download").disabled = !blob;
}

byId("download").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(download);
  link.download = `${chosen.name.replace(/\.[^.]*$/, "")}-labelled.csv`;
  link.click();
  // Once the browser has it.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

function setHeader(names) {
  header = names;
  byId("columns").replaceChildren(...names.map((name, at) => {
    const cell = element("th", at > 2 ? "number" : "");
    cell.scope = "col";
    const button = element("button", "", name.replace(/^p_/, ""));
    button.type = "button";
    button.addEventListener("click", () => {
      order = { column: at, down: order.column === at ? !order.down : at > 2 };
      showRows();
    });
    cell.append(button);
    return cell;
  }));
  const labels = info.labels.map((label) => new Option(label, label));
  byId("only").replaceChildren(new Option("all", ""), ...labels);
}

for (const id of ["filter", "only"]) byId(id).addEventListener("input", () => { shownRows = PAGE; showRows(); });
byId("more").addEventListener("click", () => { shownRows += PAGE; showRows(); });

function showRows() {
  const [part, only] = [byId("filter").value.toLowerCase(), byId("only").value];
  const fits = (row) => (!only || row[2] === only) && (!part || row[1].toLowerCase().includes(part));
  const some = part || only ? rows.filter(fits) : rows.slice();
  const { column, down } = order;
  if (column >= 0) {
    const compare = column > 2
      ? (a, b) => Number(a[column]) - Number(b[column])
      : (a, b) => a[column].localeCompare(b[column], undefined, { numeric: true });
    some.sort((a, b) => (down ? compare(b, a) : compare(a, b)));
  }
  for (const [at, cell] of [...byId("columns").children].entries()) {
    if (at === column) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  byId("rows").replaceChildren(...some.slice(0, shownRows).map((row) => {
    const line = element("tr");
    for (const [at, value] of row.entries()) {
      const cell = element("td", at > 2 ? "number" : at === 1 ? "text" : "", at > 2 ? percent(Number(value)) : value);
      cell.dir = "auto";
      line.append(cell);
    }
    return line;
  }));
  byId("shown").textContent = `${Math.min(some.length, shownRows)} of ${plural(some.length, "row")} shown.`;
  byId("more").hidden = some.length <= shownRows;
}

start();
