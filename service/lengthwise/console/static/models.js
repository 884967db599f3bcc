// What is served, what each version promises, and what is refused and why.

import { byId, counted, headOf, make, short } from "./dom.js";

const HEADS = ["Model", "State", "Version", "Accuracy", "Takes", "Answers", "Missing values", "Runs on", "Promises"];

export function showModels(state) {
  const names = [...new Set(state.models.map((model) => model.model))];
  const rows = names.flatMap((name) => state.models.filter((model) => model.model === name).toReversed().map(rowOf));
  const table = make("table", {}, headOf(HEADS), make("tbody", {}, ...rows));
  byId("served").replaceChildren(rows.length ? table : make("p", { text: state.reason ?? "No model is served." }));
  const refused = state.refused.map(({ model, reason }) => make("li", {}, make("code", { text: model }), `: ${reason.replace(`${model}: `, "")}`));
  byId("refused").replaceChildren(refused.length ? make("ul", {}, ...refused) : make("p", { class: "soft", text: "Nothing: every version that was found is served." }));
}

function rowOf(model) {
  const cells = [
    make("td", { class: "name", text: model.model }),
    stateOf(model),
    make("td", {}, model.version, ...pills(model)),
    make("td", { text: accuracyOf(model) }),
    make("td", { text: `${takes(model)}, ${model.min_length} to ${model.max_length} steps${model.long === "reject" ? "" : `; longer: ${model.long}`}` }),
    make("td", { text: `${answersOf(model)}${model.attention ? ", with attention" : ""}` }),
    make("td", { text: model.missing === "refuse" ? "refused" : `taken (${model.missing})` }),
    make("td", { text: `${model.provider.replace("ExecutionProvider", "")}, ${model.precision}` }),
    make("td", { text: promiseOf(model.promise) }),
  ];
  cells.forEach((cell, i) => cell.setAttribute("data-head", HEADS[i]));
  return make("tr", {}, ...cells);
}

/** What a call names to get this version. */
const pills = (model) => [...(model.default ? ["default"] : []), ...model.aliases].map((text) => make("span", { class: "pill", text }));

function accuracyOf(model) {
  const facts = model.accuracy === null ? [] : [`${model.accuracy.toFixed(4)} on ${model.accuracy_answers} answers of ${model.accuracy_data}`];
  if (model.trained) facts.push(`trained ${model.trained}`);
  if (model.exported) facts.push(`exported ${model.exported}`);
  return facts.join("; ") || "not known";
}

const takes = (model) => (model.input === "tokens" ? `tokens of ${model.vocabulary}` : counted(model.features, "feature"));

function answersOf(model) {
  const count = model.labels.length;
  const listed = model.labels.slice(0, 6).join(", ");
  return `${model.task}: ${count > 6 ? `${count} labels (${listed}, …)` : listed}`;
}

function promiseOf(promise) {
  if (!promise) return "nothing was verified here";
  if (promise.bits) return "the same bits in every batch";
  return `the same answer within ${short(promise.tolerance)}`;
}

function stateOf(model) {
  if (model.broken) {
    const retry = `tried again in ${short(model.broken.next_try_seconds, "s")}`;
    return make("td", { class: "bad-text", text: `does not work: ${model.broken.reason ?? "its batches fail"}; ${retry}` });
  }
  return make("td", { class: "good-text", text: model.queue_sequences ? `ready, ${model.queue_sequences} wait` : "ready" });
}
