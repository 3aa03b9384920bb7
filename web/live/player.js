// When to ask for a picture: one prompt runs, only the newest waits.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Connection } from "./connection.js";
import { drawn, fingerprint, inputOf, nodesOf, seedsOf, setSeeds, upstream } from "./graph.js";
import { forget, interrupt, newId, queue, takeBack } from "./server.js";
import { origin, together } from "./together.js";
import { t } from "./words.js";

const LOOK_EVERY = 25; // ms between two looks at the graph
const FORGET_AFTER = 200; // ms; the server notes a prompt's end a moment after it has told us
const AHEAD = 1000; // ms of playing that one prompt draws, where pictures come that fast,
const MOST = 12; // pictures at most: the server keeps what led to each until the next prompt
const ITSELF = ["PROMPT", "DYNPROMPT", "UNIQUE_ID", "EXTRA_PNGINFO"]; // hidden inputs

const root = () => app.rootGraph ?? app.graph;

/** Whether a prompt on its way asks for the graph as it stands, and not for drawn seeds. */
const standing = (asked) => !asked.pictures[0].seeds.length;

/** Follows the graph for the live nodes that are switched on. */
export class Player {
  #on = new Map(); // live node -> what to call with an error that stops it
  // prompt id -> what was asked and is on its way, in that order: { pictures: [{ prompt, workflow, seeds }], as many are
  // drawn; from: when its next one was begun; waited: for another prompt; begun: when, or 0 }
  #flying = new Map();
  #dropped = new Set(); // prompt ids called off whose end the server may still tell
  #seen = ""; // fingerprint at the last look
  #stale = false; // the graph may ask for something that was not asked yet
  #prompt = null; // the last that was asked for, and
  #asked = ""; // the input of the last that was asked for or, while playing, shown
  #shown = null; // while seeds are drawn: those that the page is to have after, [widget, value] each
  #many = 1; // pictures the last prompt asked for
  #each = Infinity; // ms a picture took lately
  #busy = false;
  #timer = 0;
  #done = []; // prompt ids to be forgotten
  #connection = null; // open while a node is on
  playing = false;

  /** isHanded(class, input): whether the host hands its nodes that hidden input; seen(announced, picture, milliseconds): what
   * to do with a frame, `announced` with the node's id in the page and the `prompt` and `workflow` it was made by. */
  constructor({ isHanded, seen }) {
    Object.assign(this, { isHanded, seen });
  }

  isOn = (node) => this.#on.has(node);

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

  /** Draw one new seed after the other. */
  play() {
    this.playing = true;
  }

  /** Keep the picture that is shown. */
  async pause() {
    this.playing = false;
    try {
      await this.#drop((asked) => !standing(asked));
    } catch (error) {
      this.fail(error);
    }
  }

  #heard(type, data) {
    const asked = this.#flying.get(data.prompt_id);
    if (type === "execution_start" && asked) {
      asked.begun = performance.now();
      if (asked.waited) asked.from = asked.begun;
      this.#step();
    }
    if (!["execution_success", "execution_interrupted", "execution_error"].includes(type)) return;
    this.#flying.delete(data.prompt_id);
    if (this.#dropped.delete(data.prompt_id) || (asked && type === "execution_success")) this.#over(data.prompt_id);
    if (!asked) return;
    if (type === "execution_success") {
      this.#each = (performance.now() - asked.begun) / asked.pictures.length;
      this.#step();
    } else if (type === "execution_interrupted") {
      this.fail(new Error(t("interrupted")));
    } else {
      this.fail(new Error(`${data.node_type}: ${data.exception_message.trim()}`));
      const detail = { ...data, node_id: origin(data.node_id).id };
      api.dispatchEvent(new CustomEvent(type, { detail })); // the page marks the node as it always does
    }
  }

  #frame(announced, picture) {
    const asked = this.#flying.get(announced.prompt_id);
    if (!asked) return; // called off
    const { id, index } = origin(announced.node);
    const { prompt, workflow, seeds } = asked.pictures[index];
    if (!standing(asked)) this.#follow(seeds, prompt);
    const now = performance.now();
    this.seen({ ...announced, node: id, prompt, workflow }, picture, now - asked.from);
    if (announced.index === announced.count - 1) asked.from = now;
  }

  /** Let the page's seeds be those of the picture that is shown, unless the graph was changed since. */
  #follow(seeds, prompt) {
    if (this.#shown) this.#shown = seeds;
    if (this.#shown || this.#changed() || this.#stale || [...this.#flying.values()].some(standing)) return;
    setSeeds(seeds);
    this.#seen = fingerprint(root());
    this.#asked = inputOf(prompt);
  }

  #look() {
    this.#timer = 0;
    if (!this.#on.size) return;
    const began = performance.now();
    this.#step();
    // Looking at a very large graph takes at most a tenth of the time.
    this.#timer = setTimeout(() => this.#look(), Math.max(LOOK_EVERY, 9 * (performance.now() - began)));
  }

  #changed() {
    const now = fingerprint(root());
    if (now === this.#seen) return false;
    [this.#seen, this.#stale] = [now, true];
    return true;
  }

  async #step() {
    if (this.#busy || !this.#on.size || document.hidden) return;
    this.#busy = true;
    try {
      this.#changed();
      if (!this.#connection) await this.#connect();
      if (this.#stale && this.playing) await this.#drop((asked) => !asked.begun);
      if (this.#mayAsk()) await this.#ask();
    } catch (error) {
      this.fail(error);
    } finally {
      this.#busy = false;
    }
  }

  async #connect() {
    this.#connection = new Connection({
      heard: (type, data) => this.#heard(type, data),
      seen: (announced, picture) => this.#frame(announced, picture),
      lost: () => this.fail(new Error(t("the connection to the server was lost"))),
    });
    await this.#connection.open();
  }

  /** Whether there is something to ask for, and room: for one prompt; while playing, for one more to wait at the server. */
  #mayAsk() {
    if (!this.#stale && !this.playing) return false;
    const flying = [...this.#flying.values()];
    return this.playing ? flying.every((asked) => asked.begun) : !flying.length;
  }

  /** Call off what is on its way and `needless`. What runs comes to its end unseen: the page would report a failed job. */
  async #drop(needless) {
    const ids = [...this.#flying].filter(([, asked]) => needless(asked)).map(([id]) => id);
    if (!ids.length) return;
    for (const id of ids) {
      if (standing(this.#flying.get(id))) this.#asked = "";
      this.#flying.delete(id);
      this.#dropped.add(id);
    }
    await takeBack(ids);
  }

  async #ask() {
    const asItStands = this.#stale;
    this.#stale = false;
    const pictures = asItStands ? [await this.#read()] : await this.#draw();
    const [{ prompt, workflow }] = pictures;
    const targets = this.#targets(prompt);
    [this.#prompt, this.#many] = [prompt, pictures.length];
    if (!targets.length || !(asItStands || this.playing)) return;
    if (asItStands) {
      const input = inputOf(prompt);
      if (input === this.#asked) return;
      this.#asked = input;
    }
    const id = newId();
    this.#flying.set(id, { pictures, from: performance.now(), waited: this.#flying.size > 0, begun: 0 });
    await queue({
      id,
      client: this.#connection.id,
      ...together(pictures.map((picture) => picture.prompt), targets),
      workflow: this.#reads(prompt, ["EXTRA_PNGINFO"]) ? workflow : undefined,
    });
  }

  /** What the graph in the page asks for now. */
  async #read() {
    const { output, workflow } = await app.graphToPrompt();
    return { prompt: upstream(output, this.#targets(output)), workflow, seeds: [] };
  }

  /** What the graph asks for with new seeds, for as many pictures as are asked together. */
  async #draw() {
    const seeds = seedsOf(root(), this.#prompt);
    if (!seeds.length) throw new Error(t("Play found no seed to draw: no node that leads here has one."));
    // Twice as many each time: who changes the graph meanwhile waits for the next picture, and not for a full prompt. A
    // node that looks at itself or at the whole prompt is to see what it sees in the page.
    const many = this.#reads(this.#prompt, ITSELF) ? 1 : Math.min(2 * this.#many, AHEAD / this.#each, MOST);
    const pictures = [];
    this.#shown = seeds.map((widget) => [widget, widget.value]);
    try {
      do {
        const values = seeds.map((widget) => [widget, drawn(widget)]);
        setSeeds(values);
        pictures.push({ ...(await this.#read()), seeds: values });
      } while (pictures.length < Math.floor(many));
    } finally {
      setSeeds(this.#shown);
      this.#shown = null;
      this.#seen = fingerprint(root());
    }
    return pictures;
  }

  /** Whether a node of `prompt` reads one of the host's hidden inputs `names`. */
  #reads(prompt, names) {
    return Object.values(prompt).some((node) => names.some((name) => this.isHanded(node.class_type, name)));
  }

  #targets(prompt) {
    return [...nodesOf(root())].filter(([id, node]) => this.#on.has(node) && prompt[id]).map(([id]) => id);
  }

  #callOff(options) {
    this.playing = false;
    this.#connection?.close();
    this.#connection = null;
    const ids = [...this.#flying.keys(), ...this.#dropped];
    this.#flying.clear();
    this.#dropped.clear();
    if (!ids.length) return;
    takeBack(ids, options);
    for (const id of ids) interrupt(id, options);
    this.#over(...ids);
  }

  /** Have the server forget these prompts, a few at a time. */
  #over(...ids) {
    if (!this.#done.length) setTimeout(() => this.#forget(), FORGET_AFTER);
    this.#done.push(...ids);
  }

  #forget(options) {
    if (this.#done.length) forget(this.#done.splice(0), options);
  }
}
