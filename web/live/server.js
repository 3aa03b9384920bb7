// What the live mode says to the server, all through the host's own addresses.

import { api } from "../../../scripts/api.js";
import { t } from "./words.js";

const post = (path, body, options = {}) =>
  api.fetchApi(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    ...options,
  });

/** Queue a prompt under an id of our own, so that its first messages, which may come before the answer, are known. */
export async function queue({ id, client, prompt, targets, workflow }) {
  const answer = await post("/prompt", {
    client_id: client,
    prompt_id: id,
    prompt,
    partial_execution_targets: targets,
    extra_data: workflow ? { extra_pnginfo: { workflow } } : {},
  });
  const body = await answer.json();
  if (answer.ok && !Object.keys(body.node_errors ?? {}).length) return;
  if (answer.ok) await takeBack([id]); // only part of it would run
  throw new Error(refusal(body));
}

/** Remove prompts that have not begun. */
export const takeBack = (ids, options) => post("/queue", { delete: ids }, options);

/** Stop this prompt if it is the one that runs. */
export const interrupt = (id, options) => post("/interrupt", { prompt_id: id }, options);

/** Remove finished prompts from the history: what left nothing behind is of no use there. */
export const forget = (ids, options) => post("/history", { delete: ids }, options);

/** The prompt and the workflow that the server remembers under an id. */
export async function remembered(id) {
  const entry = (await (await api.fetchApi(`/history/${id}`)).json())[id];
  if (!entry) throw new Error(t("The server no longer knows how this picture was made. Draw it again, then save it."));
  return { prompt: entry.prompt[2], workflow: entry.prompt[3].extra_pnginfo?.workflow };
}

/** A new prompt id, also on a page that is not served securely. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function refusal(body) {
  const said = Object.values(body.node_errors ?? {}).flatMap((node) =>
    node.errors.map((error) => `${node.class_type}: ${error.message} (${error.details})`),
  );
  return said.join("; ") || body.error?.message || t("The server refused the graph.");
}
