// A picture as a file: its prompt once more, with the host's own SaveImage at its end.
//
// What leads to the picture is in the server's cache, so that nothing is computed again unless another prompt came
// between; the PNG is lossless and holds prompt and workflow as every saved picture of the host does.

import { api } from "../../../scripts/api.js";
import { upstream } from "./graph.js";
import { newId, queue, remembered } from "./server.js";
import { t } from "./words.js";

/** Save what the frame `shown` shows; return the names of the files.
 *
 * Where the frame does not say its `prompt` and `workflow`, the server is asked how it was made.
 */
export async function save(shown) {
  const { prompt, workflow } = shown.prompt ? shown : await remembered(shown.prompt_id);
  const source = prompt[shown.node].inputs.images;
  const ids = Object.keys(prompt).map((id) => Number.parseInt(id, 10));
  const saver = String(1 + Math.max(workflow?.last_node_id ?? 0, ...ids)); // no node in the page has this id
  const saving = {
    ...upstream(prompt, [source[0]]),
    [saver]: {
      class_type: "SaveImage",
      inputs: { images: source, filename_prefix: "InstaFlow" },
      _meta: { title: "Save Image" },
    },
  };
  const id = newId();
  const saved = outcome(id, saver);
  try {
    await queue({ id, client: api.clientId, prompt: saving, targets: [saver], workflow });
  } catch (error) {
    saved.cancel();
    throw error;
  }
  return (await saved.files).map((file) => file.filename);
}

/** The files that node `saver` writes in prompt `id`, as a promise; `cancel` stops listening. */
function outcome(id, saver) {
  const listening = new AbortController();
  const on = (event, heard) =>
    api.addEventListener(event, ({ detail }) => detail.prompt_id === id && heard(detail), { signal: listening.signal });
  const files = new Promise((resolve, reject) => {
    on("executed", (detail) => detail.node === saver && resolve(detail.output.images));
    on("execution_error", (detail) => reject(new Error(t("Not saved: {0}", detail.exception_message.trim()))));
    on("execution_interrupted", () => reject(new Error(t("Not saved: interrupted."))));
  }).finally(() => listening.abort());
  return { files, cancel: () => listening.abort() };
}
