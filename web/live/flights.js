// The prompts that were asked and have not ended, and what becomes of those nobody waits for.

import { forget, interrupt, takeBack } from "./server.js";

const FORGET_AFTER = 200; // ms; the server notes a prompt's end a moment after it has told us

/** A flight is { pictures, from, waited, begun }: what its prompt draws, { prompt, workflow, seeds } each; when its
 * next picture was asked for or begun; whether it waited for another flight; when it began, 0 before that. */
export class Flights {
  #flying = new Map(); // prompt id -> flight, in the order they were asked
  #dropped = new Set(); // prompt ids called off whose end the server may still tell
  #done = []; // prompt ids to be forgotten

  get all() {
    return [...this.#flying.values()];
  }

  get = (id) => this.#flying.get(id);

  add(id, pictures) {
    this.#flying.set(id, { pictures, from: performance.now(), waited: this.#flying.size > 0, begun: 0 });
  }

  /** The server says that it has begun this prompt. */
  began(id) {
    const flight = this.#flying.get(id);
    if (!flight) return;
    flight.begun = performance.now();
    if (flight.waited) flight.from = flight.begun;
  }

  /** The server says that this prompt has ended, `well` or not; returns its flight unless it was called off. */
  ended(id, well) {
    const flight = this.#flying.get(id);
    this.#flying.delete(id);
    if (this.#dropped.delete(id) || (flight && well)) this.#forgetSoon([id]);
    return flight;
  }

  /** Call off those that are `needless`. What runs comes to its end unseen: the page would report a failed job. */
  async drop(needless) {
    const ids = [...this.#flying].filter(([, flight]) => needless(flight)).map(([id]) => id);
    for (const id of ids) {
      this.#flying.delete(id);
      this.#dropped.add(id);
    }
    if (ids.length) await takeBack(ids);
  }

  /** Stop all at once; nobody listens from now on. */
  stop(options) {
    const ids = [...this.#flying.keys(), ...this.#dropped];
    this.#flying.clear();
    this.#dropped.clear();
    if (!ids.length) return;
    takeBack(ids, options);
    for (const id of ids) interrupt(id, options);
    this.#forgetSoon(ids);
  }

  /** Have the server forget what has ended. */
  forget(options) {
    if (this.#done.length) forget(this.#done.splice(0), options);
  }

  #forgetSoon(ids) {
    if (!this.#done.length) setTimeout(() => this.forget(), FORGET_AFTER);
    this.#done.push(...ids);
  }
}
