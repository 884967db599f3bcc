// The same call for a terminal and for Python. The key of the page is never in them.

import { hasKey } from "./service.js";

const MOST_SHOWN = 800;

/** The call as a curl command. */
export function curl(address, body) {
  const key = hasKey() ? ` \\\n  -H "authorization: Bearer $LENGTHWISE_KEY"` : "";
  const text = JSON.stringify(body).replaceAll("'", `'\\''`);
  return `curl -s '${address}' -H 'content-type: application/json'${key} \\\n  -d '${text}'`;
}

/** The call as a Python program with this project's own client (pip install 'lengthwise[client]'). */
export function python(address, body) {
  const url = address.replace(/\/predict$/, "");
  const key = hasKey() ? `, key=os.environ["LENGTHWISE_KEY"]` : "";
  const options = Object.entries({ model: body.model, version: body.version }).map(([name, text]) => `, ${name}=${literal(text)}`);
  if (body.outputs) options.push(", attention=True");
  return `${hasKey() ? "import os\n\n" : ""}import lengthwise\n\nsequences = ${literal(body.sequences)}\nwith lengthwise.Client("${url}"${key}) as client:\n    predictions = client.predict(sequences${options.join("")})\nprint(predictions[0])`;
}

/** A value of JSON as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
  return JSON.stringify(value);
}

/** A text for the page: of a long one, the beginning and the end. */
export function shown(text) {
  if (text.length <= MOST_SHOWN) return text;
  return `${text.slice(0, MOST_SHOWN - 200)}\n … ${(text.length - MOST_SHOWN).toLocaleString("en")} characters more, which are copied too … \n${text.slice(-200)}`;
}

/** Copies a text; without the clipboard, which pages over plain HTTP do not have, by a selection. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser did not allow it");
}
