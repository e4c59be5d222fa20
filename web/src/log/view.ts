// A view of the read models as of the newest cursor: receives cursors, hands on what a query answered there.
import type { CombinedError, OperationResult } from "@urql/core";

/** What a query answered; both are undefined while nothing is known yet. After an error the last answer stays. */
export interface Answer<Data> {
  data: Data | undefined;
  error: CombinedError | undefined;
}

/** Milliseconds until a failed query is tried again. */
const tryAgainAfter = 2000;

/**
 * Asks again whenever the log has moved on. One request is under way at a time, then the newest cursor has its turn: a
 * flood of events starves neither the page nor the server.
 */
export class View<Data> {
  #answer: Answer<Data> = { data: undefined, error: undefined };
  #wanted: string | undefined;
  #asking = false;
  #listeners = new Set<() => void>();
  readonly #ask: (atLeast: string) => PromiseLike<OperationResult<Data>>;

  constructor(ask: (atLeast: string) => PromiseLike<OperationResult<Data>>) {
    this.#ask = ask;
  }

  readonly subscribe = (listener: () => void) => {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  };

  readonly answer = () => this.#answer;

  /** Wants what there is at a cursor. */
  moveTo(cursor: string) {
    this.#wanted = cursor;
    if (!this.#asking) void this.#run();
  }

  async #run() {
    this.#asking = true;
    for (let cursor = this.#take(); cursor !== undefined; cursor = this.#take()) {
      const { data, error } = await this.#ask(cursor);
      this.#answer = error ? { data: this.#answer.data, error } : { data, error: undefined };
      for (const listener of this.#listeners) listener();
      if (error && this.#listeners.size > 0) {
        this.#wanted ??= cursor;
        await new Promise((resolve) => setTimeout(resolve, tryAgainAfter));
      }
    }
    this.#asking = false;
  }

  /** The newest wanted cursor, undefined when none is or nobody looks any more. */
  #take(): string | undefined {
    const cursor = this.#listeners.size > 0 ? this.#wanted : undefined;
    this.#wanted = undefined;
    return cursor;
  }
}
