// What is served, what each version promises, and what is refused and why.

import { byId, make, short } from "./dom.js";

export function showModels(state) {
  const names = [...new Set(state.models.map((model) => model.model))];
  const served = names.map((name) => modelOf(name, state.models.filter((model) => model.model === name)));
  byId("served").replaceChildren(...(served.length ? served : [make("p", { text: state.reason ?? "No model is served." })]));
  const refused = state.refused.map(({ model, reason }) => make("li", {}, make("code", { text: model }), `: ${reason.replace(`${model}: `, "")}`));
  byId("refused").replaceChildren(refused.length ? make("ul", {}, ...refused) : make("p", { class: "soft", text: "Nothing: every version that was found is served." }));
}

function modelOf(name, versions) {
  const head = make("tr", {}, ...["Version", "Takes", "Answers", "Missing values", "Runs on", "Promises", "State"].map((text) => make("th", { text, scope: "col" })));
  const rows = versions.toReversed().map((model) =>
    make(
      "tr",
      {},
      make("td", { text: model.version }),
      make("td", { text: `${takes(model)}, ${model.min_length} to ${model.max_length} steps${model.long === "reject" ? "" : `; longer: ${model.long}`}` }),
      make("td", { text: `${answersOf(model)}${model.attention ? ", with attention" : ""}` }),
      make("td", { text: model.missing === "refuse" ? "refused" : `taken (${model.missing})` }),
      make("td", { text: `${model.provider.replace("ExecutionProvider", "")}, ${model.precision}` }),
      make("td", { text: promiseOf(model.promise) }),
      stateOf(model),
    ),
  );
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  return make("div", { class: "model" }, make("h3", { text: name }), make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Versions of ${name}` }, table));
}

const takes = (model) => (model.input === "tokens" ? `tokens of ${model.vocabulary}` : `${model.features} ${model.features === 1 ? "feature" : "features"}`);

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
