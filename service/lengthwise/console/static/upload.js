// Files: small ones of JSON are read here, all others by the server; of a table, the user may choose the columns.

import { byId, counted, make, offer } from "./dom.js";
import { Sequence, parse } from "./sequence.js";
import { readFile } from "./service.js";

const READ_HERE = /\.(json|txt)$/i;
const TABLE = /\.(csv|tsv|csv\.gz)$/i;
const PARQUET = /\.parquet$/i;
const ROLES = ["id", "time", "label"];

export class Upload {
  /** `context()` is {model, limits}; `use(sequences, note)` takes what was read, `refuse(why)` why it was not; `say(text)` what is done. */
  constructor(context, use, refuse, say) {
    this.context = context;
    this.say = say;
    this.use = use;
    this.refuse = refuse;
    byId("file").addEventListener("change", () => this.choose());
    byId("read-again").addEventListener("click", () => this.read(this.chosenColumns()));
  }

  choose() {
    [this.file] = byId("file").files;
    byId("file").value = "";
    this.forget();
    if (this.file) this.read();
  }

  /** Takes the choice of columns away: something else is shown than a table. */
  forget() {
    byId("columns").hidden = true;
    byId("column-padding").value = "";
  }

  async read(columns = {}) {
    const { file } = this;
    const { model, limits } = this.context();
    if (!model) return;
    this.say(`Reading ${file.name} …`);
    try {
      if (file.size > limits.max_body_bytes) throw new Error(`it has ${file.size.toLocaleString("en")} bytes, and the server takes ${limits.max_body_bytes.toLocaleString("en")}`);
      if (READ_HERE.test(file.name)) {
        const sequences = parse(await file.text(), model);
        return this.use(sequences, counted(sequences.length, "sequence"));
      }
      const read = await readFile(file, model, columns);
      const taken = read.columns;
      if (taken) this.offerColumns([...ROLES.map((role) => taken[role]).filter(Boolean), ...taken.values, ...taken.left_out], taken);
      if (!read.sequences.length) throw new Error(read.problems[0] ?? "there is no sequence in it");
      const count = read.sequences[0].steps[0].length;
      if (model.input === "values" && count !== model.features) throw new Error(`the model takes ${counted(model.features, "feature")} a step, and it has ${count}${taken ? `: ${taken.values.join(", ")}. Choose the columns` : ""}`);
      const sequences = read.sequences.map((each) => new Sequence(each.steps, { ...each, origin: file.name, names: taken?.values }));
      const left = read.left_out ? [`${read.left_out} more ${read.left_out === 1 ? "was" : "were"} left out`] : [];
      const wrong = read.problems.length ? [`not read: ${read.problems.slice(0, 3).join("; ")}`] : [];
      byId("taken").textContent = `Taken as ${[read.taken, ...wrong].join("; ")}.`;
      this.use(sequences, [counted(sequences.length, "sequence"), ...left, ...(taken ? [] : wrong), ...read.doubts].join("; "));
    } catch (error) {
      if (byId("columns").hidden) await this.offerHeader(error.message);
      this.refuse(`${file.name} cannot be read: ${error.message}.`.replace("..", "."));
    }
  }

  /** Offers the columns of a table that the server could not read: by its first line, or as the refusal lists them. */
  async offerHeader(refusal) {
    if (PARQUET.test(this.file.name)) {
      const [, listed = ""] = refusal.match(/the columns are (.*?)(?:: say|$)/) ?? [];
      const names = [...listed.matchAll(/'([^']*)'|"([^"]*)"/g)].map(([, one, other]) => one ?? other);
      if (names.length) this.offerColumns(names, { values: [] });
    }
    if (!TABLE.test(this.file.name)) return;
    const [line] = (await this.head()).replace(/^\uFEFF/, "").split(/\r?\n/);
    const separator = [",", ";", "\t"].reduce((best, each) => (line.split(each).length > line.split(best).length ? each : best));
    const names = line.split(separator).map((name) => name.trim().replace(/^"(.*)"$/, "$1"));
    if (names.some((name) => name !== "" && Number.isNaN(Number(name)))) this.offerColumns(names, { values: [] });
  }

  /** The beginning of a file as text; nothing if it cannot be unpacked. */
  async head() {
    const packed = this.file.stream();
    const reader = (/\.gz$/i.test(this.file.name) ? packed.pipeThrough(new DecompressionStream("gzip")) : packed).getReader();
    const { value } = await reader.read().catch(() => ({}));
    reader.cancel().catch(() => {});
    return new TextDecoder().decode(value);
  }

  offerColumns(names, taken) {
    byId("columns").hidden = false;
    byId("taken").textContent = "";
    for (const role of ROLES) {
      offer(byId(`column-${role}`), [["", role === "id" ? "none: one sequence" : "none"], ...names.map((name) => [name, name])]);
      byId(`column-${role}`).value = taken[role] ?? "";
    }
    byId("column-values").replaceChildren(...names.map((name) => make("label", {}, make("input", { type: "checkbox", value: name, checked: taken.values.includes(name) }), name)));
  }

  /** The columns for a call. An id of none is said: the user has chosen it, and is not asked again. */
  chosenColumns() {
    const roles = ROLES.map((role) => [role, byId(`column-${role}`).value]).filter(([role, name]) => name || role === "id");
    const used = roles.map(([, name]) => name);
    const values = [...document.querySelectorAll("#column-values :checked")].map((each) => each.value);
    const padding = byId("column-padding").value;
    return { ...Object.fromEntries(roles), ...(padding ? { padding } : {}), values: values.filter((name) => !used.includes(name)) };
  }
}
