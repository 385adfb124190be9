// CSV as the server writes it: commas, double quotes around fields that need them.

/** Takes text in pieces that end anywhere, and gives the rows that are whole. */
export class CsvReader {
  #row = [];
  #field = "";
  /** Inside quotes; after a quote there, which may end them or stand for itself. */
  #quoted = false;
  #ending = false;
  #any = false;

  push(text) {
    const rows = [];
    for (const c of text) {
      if (this.#ending) {
        this.#ending = false;
        if (c === '"') { this.#field += c; continue; }
        this.#quoted = false;
      }
      if (this.#quoted) {
        if (c === '"') this.#ending = true; else this.#field += c;
      } else if (c === '"') {
        this.#quoted = this.#any = true;
      } else if (c === ",") {
        this.#end();
      } else if (c === "\n") {
        this.#end();
        rows.push(this.#row);
        this.#row = [];
        this.#any = false;
      } else if (c !== "\r") {
        this.#field += c;
        this.#any = true;
      }
    }
    return rows;
  }

  /** The last row, where no line break ends it. */
  finish() {
    if (!this.#any && this.#row.length === 0) return [];
    this.#end();
    return [this.#row];
  }

  #end() {
    this.#row.push(this.#field);
    this.#field = "";
    this.#any = true;
  }
}

export function parseCsv(text) {
  const reader = new CsvReader();
  return [...reader.push(text), ...reader.finish()];
}
