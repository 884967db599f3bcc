// The answers to all sequences of a file: a table with the accuracy, a confusion matrix, and a download.

import { hits, pairsOf } from "./answers.js";
import { byId, counted, cut, headOf, make } from "./dom.js";

const HEADS = ["Sequence", "Steps", "Label", "Answer", "Probability"];
const AT_ONCE = 64;
const MOST_LABELS = 40;

export class FileTable {
  /** `ask(body)` sends a request; `choose(place)` shows one sequence. */
  constructor(ask, choose) {
    this.ask = ask;
    this.choose = choose;
    byId("download").addEventListener("click", () => this.download());
    this.clear();
  }

  clear() {
    this.turn = (this.turn ?? 0) + 1;
    this.rows = [];
    byId("file-part").hidden = true;
    byId("confusion-part").hidden = true;
  }

  /** Asks for all of them, some at a time; one that the model refuses is asked for alone, and says why. */
  async answer(model, sequences, most) {
    this.clear();
    const { turn } = this;
    const call = (part) => this.ask({ model: model.model, version: model.version, sequences: part.map((each) => each.asRequest()) });
    const each = async (part) => {
      try {
        const answered = await call(part);
        this.labels = answered.labels;
        return answered.predictions;
      } catch (error) {
        if (part.length === 1 || error.status !== 422) return part.map(() => ({ error: error.message }));
        const alone = [];
        for (const one of part) alone.push(...(await each([one])));
        return alone;
      }
    };
    byId("file-part").hidden = false;
    byId("file-note").textContent = "Asking …";
    const count = Math.min(most, AT_ONCE);
    for (let index = 0; index < sequences.length; index += count) {
      const part = sequences.slice(index, index + count);
      const predictions = await each(part);
      if (turn !== this.turn) return;
      this.rows.push(...part.map((sequence, i) => rowOf(sequence, index + i, predictions[i], this.labels)));
    }
    this.show(`${model.model}, version ${model.version}`);
    this.showConfusion(model.labels);
  }

  show(name) {
    const sum = (name) => this.rows.reduce((total, row) => total + row[name], 0);
    const [right, compared] = [sum("right"), sum("compared")];
    const failed = this.rows.filter((row) => row.error).length;
    const facts = [`${counted(this.rows.length, "sequence")} by ${name}`];
    if (compared) facts.push(`accuracy ${(right / compared).toFixed(4)}: ${right} of ${compared} answers are the label`);
    const others = this.rows.filter((row) => row.label !== null && !row.error && !row.compared).length;
    if (others) facts.push(`the labels of ${others} are not compared: the model has ${cut(this.labels.join(", "))}`);
    if (failed) facts.push(`${failed} without an answer`);
    byId("file-note").textContent = `${facts.join("; ")}.`;
    const hit = (row) => (row.compared > 1 ? ` (${row.right} of ${row.compared})` : "");
    const heads = this.rows.some((row) => row.probability !== null) ? HEADS : HEADS.slice(0, -1); // only one label has one
    const cells = (row) => [row.id, row.steps, shown(row.label), row.error ?? shown(row.answer) + hit(row), row.probability?.toFixed(4) ?? ""];
    const lines = this.rows.map((row, index) => {
      const link = make("button", { type: "button", class: "quiet", text: row.id, onclick: () => this.choose(index) });
      const parts = cells(row).slice(0, heads.length).map((text, i) => make("td", { "data-head": heads[i] }, i ? text : link));
      return make("tr", { class: row.error || 2 * row.right < row.compared ? "bad-text" : null }, ...parts);
    });
    byId("file-table").replaceChildren(headOf(heads), make("tbody", {}, ...lines));
  }

  /** How often each label of the data got each answer. Several labels of one sequence have no such table. */
  showConfusion(known) {
    const pairs = this.rows.flatMap((row) => row.pairs);
    if (!pairs.length || this.rows.some((row) => row.several)) return;
    const sums = (keys) => keys.reduce((counts, key) => counts.set(key, (counts.get(key) ?? 0) + 1), new Map());
    const counts = sums(pairs.map((pair) => JSON.stringify(pair)));
    const totals = sums(pairs.flat());
    const present = [...new Set([...known, ...totals.keys()])].filter((label) => totals.has(label));
    const frequent = new Set(present.toSorted((a, b) => totals.get(b) - totals.get(a)).slice(0, MOST_LABELS));
    const labels = present.filter((label) => frequent.has(label));
    const cell = (label, answer) => {
      const count = counts.get(JSON.stringify([label, answer])) ?? 0;
      return make("td", { text: count, class: count === 0 ? "soft" : label === answer ? "good-text" : "bad-text" });
    };
    const lines = labels.map((label) => make("tr", {}, make("th", { text: cut(label, 24), scope: "row" }), ...labels.map((answer) => cell(label, answer))));
    byId("confusion").replaceChildren(headOf(["", ...labels.map((label) => cut(label, 24))]), make("tbody", {}, ...lines));
    const left = present.length - labels.length;
    byId("confusion-note").textContent = `A row is a label of the file, a column an answer${left ? `; the ${MOST_LABELS} most frequent of ${present.length} labels` : ""}.`;
    byId("confusion-part").hidden = false;
  }

  /** The table as a CSV file; several labels of a row are a JSON array, so that a comma in one of them splits nothing. */
  download() {
    const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    const whole = (labels) => (Array.isArray(labels) ? JSON.stringify(labels) : labels);
    const lines = this.rows.map((row) => [row.id, row.steps, whole(row.label), whole(row.answer), row.probability, row.error].map(quoted).join(","));
    const file = new Blob([`id,steps,label,answer,probability,error\n${lines.join("\n")}\n`], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(file), download: "answers.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

/** Labels for people: of the same ones in a row, how many they are. */
function shown(labels) {
  const runs = [];
  for (const label of [labels ?? ""].flat()) {
    if (runs.length && runs.at(-1).label === label) runs.at(-1).count += 1;
    else runs.push({ label, count: 1 });
  }
  return cut(runs.map(({ label, count }) => `${label ?? "–"}${count > 1 ? ` × ${count}` : ""}`).join(", "));
}

function rowOf(sequence, index, prediction, labels) {
  const pairs = pairsOf(sequence, prediction, labels);
  const [right, compared] = hits(pairs);
  return {
    id: sequence.id || String(index + 1),
    steps: sequence.length,
    label: sequence.label,
    answer: prediction.label ?? prediction.assigned ?? prediction.step_labels ?? null,
    probability: prediction.score ?? null,
    error: prediction.error ?? null,
    several: prediction.assigned !== undefined,
    pairs,
    right,
    compared,
  };
}
