// What tells of a model's training: curves, the confusion matrix and the errors of the held-out rows, and its card.

import { byId, element, percent, refusal, watch } from "./app.js";
import { parseCsv } from "./csv.js";

let shown = null;

export function showModel(info) {
  const members = info.models.map((model, at) => new Option(`${at + 1}: ${model.run}`, at));
  byId("which").hidden = members.length < 2;
  const chosen = Math.min(byId("member").selectedIndex, members.length - 1);
  byId("member").replaceChildren(...members);
  byId("member").selectedIndex = Math.max(chosen, 0);
  byId("member").onchange = () => show(info);
  show(info);
}

/** A file of the model; an empty text where there is none. */
async function read(at, name) {
  const response = await fetch(`model/${at}/${name}`);
  if (response.status === 404) return "";
  if (!response.ok) throw new Error(await refusal(response));
  return response.text();
}

async function show(info) {
  const at = byId("member").selectedIndex;
  const key = `${info.loaded} ${at}`;
  if (shown === key) return;
  byId("model-status").textContent = "Reading…";
  try {
    const names = ["card.html", "history.jsonl", "dev_predictions.csv"];
    const [card, history, predictions] = await Promise.all(names.map((name) => read(at, name)));
    // Another one may have been chosen meanwhile.
    if (byId("member").selectedIndex !== at) return;
    // The server lets no HTML but its own through.
    byId("card").innerHTML = card || "<p>There is none.</p>";
    // They scroll where they are wide, by keys too.
    for (const wide of byId("card").querySelectorAll("table")) wide.tabIndex = 0;
    showCurves(history.split("\n").filter((line) => line).map((line) => JSON.parse(line)));
    showHeldOut(parseCsv(predictions));
    byId("model-status").textContent = about(info, info.models[at]);
    shown = key;
  } catch (error) {
    byId("model-status").textContent = `It can't be shown: ${error.message}`;
    // So says fetch of a server that can't be reached.
    if (error instanceof TypeError) watch();
  }
}

function about(info, model) {
  const parts = [
    `${model.layers} layers`, `${(model.parameters / 1e6).toFixed(1)} M parameters`, `reads ${model.max_length} tokens`,
    `on ${info.device}`, `loaded ${new Date(info.loaded).toLocaleString()}`,
  ];
  return parts.join(", ");
}

// ---- Curves

function showCurves(epochs) {
  byId("training").hidden = epochs.length === 0;
  if (epochs.length === 0) return;
  const chart = (name, train, held) => curves(name, epochs.map((e) => e[train]), epochs.map((e) => e[held]));
  byId("curves").replaceChildren(chart("Loss", "loss", "val_loss"), chart("Accuracy", "accuracy", "val_accuracy"));
  const columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_f1", "seconds"];
  const value = (v) => (v == null ? "" : Number.isInteger(v) ? `${v}` : v.toFixed(4));
  byId("epochs").replaceChildren(table(columns, epochs.map((epoch) => columns.map((name) => value(epoch[name])))));
}

function svg(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Lines over epochs, of values that may be missing. */
function curves(name, train, held) {
  const [width, height, left, right, top, bottom] = [360, 220, 46, 350, 16, 190];
  const known = [...train, ...held].filter((value) => value != null);
  const low = Math.min(...known), high = Math.max(...known);
  const x = (at) => (train.length < 2 ? (left + right) / 2 : left + ((right - left) * at) / (train.length - 1));
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  const last = (values) => values.filter((value) => value != null).at(-1);
  const said = `${name} of ${train.length} epochs: at the end ${last(train)?.toFixed(3)} in training, ${last(held)?.toFixed(3) ?? "none"} on held-out rows`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  chart.append(svg("path", { d: `M${left} ${top}V${bottom}H${right}`, class: "axis", fill: "none" }));
  for (const value of [low, high]) {
    chart.append(svg("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  }
  chart.append(svg("text", { x: left, y: height - 12, "text-anchor": "middle" }, "1"));
  chart.append(svg("text", { x: right, y: height - 12, "text-anchor": "end" }, `epoch ${train.length}`));
  const names = [[train, "train", "training", 60], [held, "held", "held out", 130]];
  for (const [values, kind, text, at] of names) {
    if (last(values) === undefined) continue;
    const points = values.map((value, i) => (value == null ? null : `${x(i)} ${y(value)}`)).filter((point) => point);
    chart.append(svg("path", { d: `M${points.join("L")}`, class: kind }));
    for (const point of points) {
      const [cx, cy] = point.split(" ");
      chart.append(svg("circle", { cx, cy, r: 2.5, class: kind }));
    }
    chart.append(svg("text", { x: left + at, y: height - 12, class: `${kind}-text` }, text));
  }
  const figure = element("figure");
  figure.append(element("figcaption", "", name), chart);
  return figure;
}

// ---- Held-out rows

function showHeldOut([header, ...rows]) {
  byId("held-out").hidden = rows.length === 0;
  if (rows.length === 0) return;
  const [id, label, predicted] = ["id", "label", "predicted"].map((name) => header.indexOf(name));
  const labels = [...new Set(rows.flatMap((row) => [row[label], row[predicted]]))].sort();
  const counts = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row[label], row[predicted]]);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const count = (truth, answer) => counts.get(JSON.stringify([truth, answer])) ?? 0;
  const matrix = table(["label \\ answer", ...labels], labels.map((truth) => [truth, ...labels.map((a) => `${count(truth, a)}`)]));
  for (const [at, line] of [...matrix.tBodies[0].rows].entries()) {
    const sum = labels.reduce((sum, answer) => sum + count(labels[at], answer), 0);
    for (const cell of [...line.cells].slice(1)) {
      cell.style.background = `rgba(var(--shade), ${(0.35 * Number(cell.textContent)) / Math.max(sum, 1)})`;
    }
  }
  byId("confusion").replaceChildren(matrix);
  const its = (row) => Number(row[header.indexOf(`p_${row[predicted]}`)]);
  const wrong = rows.filter((row) => row[label] !== row[predicted]).sort((a, b) => its(b) - its(a));
  const right = rows.length - wrong.length;
  byId("right").textContent = `${right} of ${rows.length} are right: ${percent(right / rows.length)}.`;
  const shownRows = wrong.slice(0, 200).map((row) => [row[id], row[label], row[predicted], percent(its(row))]);
  byId("errors").replaceChildren(table(["ID", "label", "answer", "its probability"], shownRows));
}

function table(columns, rows) {
  const made = element("table");
  const head = made.createTHead().insertRow();
  for (const name of columns) {
    const cell = element("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [at, value] of row.entries()) {
      const cell = at === 0 ? element("th", "", value) : element("td", "", value);
      if (at === 0) cell.scope = "row";
      cell.dir = "auto";
      line.append(cell);
    }
  }
  return made;
}
