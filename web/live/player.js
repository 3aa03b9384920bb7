// When to ask for a picture: one prompt runs, only the newest waits.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Connection } from "./connection.js";
import { drawSeeds, fingerprint, inputOf, nodesOf, upstream } from "./graph.js";
import { forget, interrupt, newId, queue, takeBack } from "./server.js";
import { t } from "./words.js";

const LOOK_EVERY = 25; // ms between two looks at the graph
const REMEMBERED = 8; // prompts: more than are ever on their way
const FORGET_AFTER = 200; // ms; the server notes a prompt's end a moment after it has told us

const root = () => app.rootGraph ?? app.graph;

/** Follows the graph for the live nodes that are switched on. */
export class Player {
  #on = new Map(); // live node -> what to call with an error that stops it
  #flying = new Map(); // prompt id -> { from, waited, begun }, in the order they were asked
  #seen = ""; // fingerprint at the last look
  #stale = false; // the graph may ask for something that was not asked yet
  #prompt = null; // the last that was asked for, and
  #asked = ""; // its input
  #known = new Map(); // prompt id -> { prompt, workflow } of the last few, in flight or not
  #busy = false;
  #timer = 0;
  #done = []; // prompt ids to be forgotten
  #connection = null; // open while a node is on
  playing = false;

  /** needsWorkflow(class): whether nodes of it read the workflow that a prompt came from; seen(announced, picture): what
   * to do with a frame. */
  constructor({ needsWorkflow, seen }) {
    Object.assign(this, { needsWorkflow, seen });
  }

  isOn = (node) => this.#on.has(node);

  /** The `prompt` and `workflow` that were asked under this id, if they were lately. */
  asked = (id) => this.#known.get(id);

  /** When this prompt was asked or, where it waited for another, began: a time of performance.now(). */
  since = (id) => this.#flying.get(id)?.from;

  start(node, onError) {
    this.#on.set(node, onError);
    this.#asked = "";
    this.#stale = true;
    if (!this.#timer) this.#look();
  }

  /** Stop following for `node`; with the last one, what was asked and is not drawn is called off. */
  stop(node, options = {}) {
    if (!this.#on.delete(node)) return;
    this.#asked = "";
    if (!this.#on.size) this.#callOff(options);
  }

  /** Stop following for every node, because of `error`. */
  fail(error) {
    const told = [...this.#on.values()];
    this.#on.clear();
    this.#callOff();
    for (const tell of told) tell(error);
  }

  /** The page is closing. */
  close() {
    this.#on.clear();
    this.#callOff({ keepalive: true });
    this.#forget({ keepalive: true });
  }

  #heard(type, data) {
    const asked = this.#flying.get(data.prompt_id);
    if (!asked) return;
    if (type === "execution_start") {
      if (asked.waited) asked.from = performance.now();
      asked.begun = true;
      this.#step();
    } else if (type === "execution_success") {
      this.#flying.delete(data.prompt_id);
      this.#done.push(data.prompt_id);
      if (this.#done.length === 1) setTimeout(() => this.#forget(), FORGET_AFTER);
      this.#step();
    } else if (type === "execution_interrupted") {
      this.#flying.delete(data.prompt_id);
      this.fail(new Error(t("interrupted")));
    } else if (type === "execution_error") {
      this.#flying.delete(data.prompt_id);
      this.fail(new Error(`${data.node_type}: ${data.exception_message.trim()}`));
      api.dispatchEvent(new CustomEvent(type, { detail: data })); // the page marks the node as it always does
    }
  }

  #look() {
    this.#timer = 0;
    if (!this.#on.size) return;
    const began = performance.now();
    this.#step();
    // Looking at a very large graph takes at most a tenth of the time.
    this.#timer = setTimeout(() => this.#look(), Math.max(LOOK_EVERY, 9 * (performance.now() - began)));
  }

  async #step() {
    if (this.#busy || !this.#on.size || document.hidden) return;
    this.#busy = true;
    try {
      const now = fingerprint(root());
      if (now !== this.#seen) [this.#seen, this.#stale] = [now, true];
      if (!this.#connection) await this.#connect();
      if (await this.#mayAsk()) await this.#ask();
    } catch (error) {
      this.fail(error);
    } finally {
      this.#busy = false;
    }
  }

  async #connect() {
    this.#connection = new Connection({
      heard: (type, data) => this.#heard(type, data),
      seen: (announced, picture) => this.seen(announced, picture),
      lost: () => this.fail(new Error(t("the connection to the server was lost"))),
    });
    await this.#connection.open();
  }

  /** Whether there is something to ask for, and room: for one prompt; while playing, for one more to wait at the server. */
  async #mayAsk() {
    const waiting = [...this.#flying.keys()].find((id) => !this.#flying.get(id).begun);
    if (this.playing ? !waiting : !this.#flying.size) return this.#stale || this.playing;
    if (!this.#stale || !this.playing) return false;
    this.#flying.delete(waiting); // the change is newer
    await takeBack([waiting]);
    return true;
  }

  async #ask() {
    if (!this.#stale) {
      if (!drawSeeds(root(), this.#prompt)) {
        throw new Error(t("Play found no seed to draw: no node that leads here has one."));
      }
      this.#seen = fingerprint(root());
    }
    this.#stale = false;
    const { output, workflow } = await app.graphToPrompt();
    const targets = this.#targets(output);
    const prompt = upstream(output, targets);
    const input = inputOf(prompt);
    if (!targets.length || input === this.#asked) return;
    [this.#prompt, this.#asked] = [prompt, input];
    const id = newId();
    this.#flying.set(id, { from: performance.now(), waited: this.#flying.size > 0, begun: false });
    this.#known.set(id, { prompt, workflow });
    if (this.#known.size > REMEMBERED) this.#known.delete(this.#known.keys().next().value);
    const needed = Object.values(prompt).some((node) => this.needsWorkflow(node.class_type));
    const client = this.#connection.id;
    await queue({ id, client, prompt, targets, workflow: needed ? workflow : undefined });
  }

  #targets(output) {
    return [...nodesOf(root())].filter(([id, node]) => this.#on.has(node) && output[id]).map(([id]) => id);
  }

  #callOff(options) {
    this.playing = false;
    this.#connection?.close();
    this.#connection = null;
    const ids = [...this.#flying.keys()];
    this.#flying.clear();
    if (!ids.length) return;
    takeBack(ids, options);
    for (const id of ids) interrupt(id, options);
    this.#done.push(...ids);
    setTimeout(() => this.#forget(), FORGET_AFTER);
  }

  #forget(options) {
    if (this.#done.length) forget(this.#done.splice(0), options);
  }
}
