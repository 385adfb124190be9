// Drives the page in a headless Chromium: node page.mjs ADDRESS FOLDER TABLE BROKEN PID. ADDRESS is a server's and PID its process; TABLE is a CSV file of
// 600 rows, BROKEN one that can't be used. Screenshots and the downloaded table are left in FOLDER. What isn't as expected ends it.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";

const require = createRequire(`${process.env.NODE_MODULES}/`);
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const [address, folder, tablePath, brokenPath, pid] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, acceptDownloads: true });
const page = await context.newPage();

const complaints = [];
page.on("pageerror", (error) => complaints.push(`error: ${error}`));
page.on("console", (message) => {
  // A refused request is one of the things that are tried.
  if (message.type() === "error" && !message.text().includes("Failed to load resource")) complaints.push(message.text());
});

const text = (selector) => page.locator(selector).innerText();
const until = (selector, pattern) =>
  page.waitForFunction(
    ([selector, source]) => new RegExp(source).test(document.querySelector(selector)?.innerText ?? ""),
    [selector, pattern.source],
    { timeout: 30_000 },
  );

/** Axe finds nothing serious in what is shown now. */
async function accessible(name) {
  // Not by the page, whose policy forbids it.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = serious.map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 200)).join(" | ")}`);
  assert.deepEqual(told, [], `axe on ${name}`);
}

async function picture(name) {
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `${name} is ${wide} pixels wider than the window`);
}

// ---- Texts

await page.goto(address);
await until("#about", /labels/);
await page.locator("#input").pressSequentially("behi barcha");
await until("#texts-status", /%$/);
assert.equal(await page.locator("#answers > li").count(), 1);
const [first] = await page.evaluate(async () => {
  const response = await fetch("predict", { method: "POST", body: JSON.stringify({ inputs: "behi barcha" }) });
  return (await response.json())[0];
});
assert.equal(await text("#answers .first"), first.label);
assert.equal(await text("#answers .number >> nth=0"), `${(100 * first.score).toFixed(1)} %`);

// Several at once, pasted; one in Arabic, one that is no HTML, one that is too long.
await page.evaluate((text) => navigator.clipboard?.writeText(text).catch(() => {}), "");
await page.locator("#input").fill(`ya3tik essa7a\n\n\u0628\u0631\u0634\u0627 \u0628\u0627\u0647\u064a\n<img src=x onerror=alert(1)>\n${"barcha ".repeat(400)}`);
await until("#texts-status", /×/);
assert.equal(await page.locator("#answers > li").count(), 4);
assert.equal(await page.locator("#answers .cut").count(), 1);
assert.equal(await page.locator("#answers img").count(), 0);
const direction = (at) => page.locator("#answers .text").nth(at).evaluate((one) => getComputedStyle(one).direction);
assert.deepEqual([await direction(0), await direction(1)], ["ltr", "rtl"]);
await page.locator("#input").fill("ya3tik essa7a\n\u0628\u0631\u0634\u0627 \u0628\u0627\u0647\u064a\nma 3ajebnich");
await until("#texts-status", /×/);
await accessible("texts");
await picture("texts");

// ---- Keys

await page.locator("#tab-texts").focus();
await page.keyboard.press("ArrowRight");
assert.equal(await page.evaluate(() => document.activeElement.id), "tab-table");
assert.equal(await page.locator("#table").isVisible(), true);
await page.keyboard.press("End");
assert.equal(await page.locator("#model").isVisible(), true);
await page.keyboard.press("ArrowRight");
assert.equal(await page.locator("#texts").isVisible(), true);

// ---- A table

await page.locator("#tab-table").click();
await page.locator("#file").setInputFiles(brokenPath);
await until("#table-status", /Not labelled: the table: /);
await accessible("a broken table");
await picture("broken");
await page.locator("#file").setInputFiles(tablePath);
await until("#table-status", /^600 rows: /);
assert.match(await text("#shown"), /^200 of 600 rows/);
await page.locator("#more").click();
assert.match(await text("#shown"), /^400 of 600 rows/);
const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#download").click()]);
await download.saveAs(`${folder}/labelled.csv`);
const label = await page.locator("#rows td >> nth=2").innerText();
await page.locator("#only").selectOption(label);
await page.waitForFunction(
  (label) => [...document.querySelectorAll("#rows tr")].every((row) => row.cells[2].innerText === label), label);
await page.locator("#only").selectOption("");
await page.locator("#filter").fill("unlike any other");
await until("#shown", /^1 of 1 row /);
await page.locator("#filter").fill("");
await page.locator("#columns button >> nth=3").click();
const column = page.locator("#columns th >> nth=3");
assert.equal(await column.getAttribute("aria-sort"), "descending");
const values = await page.locator("#rows tr").evaluateAll((rows) => rows.map((row) => parseFloat(row.cells[3].innerText)));
assert.deepEqual(values, [...values].sort((a, b) => b - a));
await accessible("a table");
await picture("table");

// A table of tabs leaves the field for others as it is, and a text that is dropped elsewhere goes where it should.
const typed = (name, text) => ({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
await page.locator("#file").setInputFiles(typed("tabs.tsv", "id\ttext\n1\tx, y\n"));
await until("#table-status", /^1 row: /);
assert.equal(await page.locator("#rows td >> nth=1").innerText(), "x, y");
await page.locator("#file").setInputFiles(typed("commas.csv", "id,text\n1,z\n"));
await page.waitForFunction(() => document.querySelector("#rows td:nth-child(2)")?.innerText === "z");
const taken = await page.evaluate(() => {
  const data = new DataTransfer();
  data.setData("text/plain", "a text");
  return !document.querySelector("#input").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
});
assert.equal(taken, false);

// While a table is on its way, it can be stopped.
await page.route(/predict\.csv/, () => {});
await page.locator("#file").setInputFiles(typed("slow.csv", "id,text\n1,z\n"));
await page.locator("#stop").click();
await until("#table-status", /^Stopped after 0 rows/);
assert.equal(await page.locator("#stop").isVisible(), false);
await page.unroute(/predict\.csv/);

// Dropped, with its name and its texts as they are.
const dropped = await page.evaluateHandle(() => {
  const data = new DataTransfer();
  data.items.add(new File(['ID,text\n7,"a ""quoted"", text\nof two lines"\n'], "dropped.csv"));
  return data;
});
await page.locator("#drop").dispatchEvent("drop", { dataTransfer: dropped });
await until("#table-status", /^1 row: /);
assert.equal(await page.locator("#rows td >> nth=1").evaluate((cell) => cell.textContent), 'a "quoted", text\nof two lines');

// ---- The model

await page.locator("#tab-model").click();
await until("#model-status", /layers/);
await page.locator("#curves svg >> nth=1").waitFor();
assert.equal(await page.locator("#card h2, #card h3").count() > 2, true);
assert.match(await text("#right"), /are right/);
const sum = await page.locator("#confusion td").evaluateAll((cells) => cells.reduce((sum, cell) => sum + Number(cell.innerText), 0));
assert.match(await text("#right"), new RegExp(`of ${sum} are`));
await page.locator("#held-out summary").click();
await accessible("the model");
await page.locator("#held-out summary").click();
await picture("model");

// ---- Dark, and on a phone

await page.emulateMedia({ colorScheme: "dark" });
for (const tab of ["texts", "table", "model"]) {
  await page.locator(`#tab-${tab}`).click();
  await accessible(`${tab}, dark`);
  await picture(`${tab}-dark`);
}
await page.setViewportSize({ width: 375, height: 720 });
for (const tab of ["texts", "table", "model"]) {
  await page.locator(`#tab-${tab}`).click();
  await picture(`${tab}-phone`);
}
await accessible("a phone");
await page.emulateMedia({ colorScheme: "light" });

// ---- Another model in its place

await page.locator("#tab-model").click();
await until("#model-status", /loaded/);
const before = await text("#model-status");
// Its time is told to a second.
await page.waitForTimeout(1100);
process.kill(Number(pid), "SIGHUP");
await page.waitForFunction(async () => (await (await fetch("info")).json()).loads === 2, null, { timeout: 30_000 });
await page.locator("#tab-texts").click();
const told = page.waitForResponse(/\/info$/);
await page.locator("#input").fill("mezyen");
await told;
await page.locator("#tab-model").click();
await page.waitForFunction((before) => document.querySelector("#model-status").innerText !== before, before);
await until("#model-status", /loaded/);

// ---- A server that is gone, and comes again

await context.setOffline(true);
await page.locator("#tab-texts").click();
await page.locator("#input").fill("khayeb");
await until("#trouble", /can't be reached/);
await accessible("no server");
await picture("gone");
await context.setOffline(false);
await page.locator("#trouble").waitFor({ state: "hidden", timeout: 30_000 });
await until("#texts-status", /%$/);

assert.deepEqual(complaints, []);
await browser.close();
console.log("page: as expected");
