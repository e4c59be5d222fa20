import { CombinedError, createClient, makeErrorResult, makeResult, type Exchange, type Operation, type OperationResult } from "@urql/core";
import { getOperationAST, GraphQLError } from "graphql";
import { filter, fromPromise, make, merge, mergeMap, pipe, share, takeUntil, type Observer } from "wonka";
import type { Link } from "../log/follow";
import { mustFit, type Fixture } from "./fit";

type Reply = Fixture | CombinedError;

/** An answer, or how to find it. One that is a promise holds the page up until it resolves. */
export type Answer = Reply | ((variables: Record<string, unknown>) => Reply | Promise<Reply>);

/** What the page asked for. */
export interface Asked {
  name: string;
  variables: Record<string, unknown>;
}

/**
 * A server for component tests: it answers by the operation's name, keeps what it was asked, and fails the test when it
 * has no answer or one that no longer fits the document. The page's own client, exchanges and log stand before it.
 */
export class TestServer {
  readonly asked: Asked[] = [];
  /** Broken expectations; a test ends with none. */
  readonly problems: string[] = [];
  readonly link: Link;
  answers: Record<string, Answer>;
  readonly #connected = new Set<() => void>();
  #subscriber: { operation: Operation; observer: Observer<OperationResult> } | undefined;

  constructor(answers: Record<string, Answer>) {
    this.answers = answers;
    const client = createClient({ url: "http://test.invalid/graphql", preferGetMethod: false, exchanges: [this.#exchange] });
    this.link = {
      client,
      onConnected: (listener) => {
        this.#connected.add(listener);
        return () => { this.#connected.delete(listener); };
      },
    };
  }

  /** How often an operation was asked for. */
  times(name: string): number {
    return this.asked.filter((a) => a.name === name).length;
  }

  /** The variables of each time that an operation was asked for, oldest first. */
  variablesOf(name: string): Record<string, unknown>[] {
    return this.asked.filter((a) => a.name === name).map((a) => a.variables);
  }

  /** Sends a batch of the log to who subscribed: the events at these positions, and the cursor after them. */
  send(cursor: string, positions: string[]) {
    const { operation, observer } = this.#mustBeSubscribed();
    const data = { events: { cursor, events: positions.map((position) => ({ position })) } };
    this.#check(operation, data);
    observer.next(makeResult(operation, { data }));
  }

  /** Ends the subscription: in order, or with an error. */
  cut(error?: CombinedError) {
    const { operation, observer } = this.#mustBeSubscribed();
    this.#subscriber = undefined;
    if (error) observer.next({ ...makeErrorResult(operation, error), error });
    observer.complete();
  }

  get subscribed(): boolean {
    return this.#subscriber !== undefined;
  }

  #mustBeSubscribed() {
    if (!this.#subscriber) throw new Error("the page has no subscription");
    return this.#subscriber;
  }

  readonly #exchange: Exchange = () => (operations$) => {
    const shared$ = share(operations$);
    const torndown$ = (operation: Operation) => pipe(shared$, filter((o) => o.kind === "teardown" && o.key === operation.key));
    return merge([
      pipe(
        shared$,
        filter((o) => o.kind === "query" || o.kind === "mutation"),
        mergeMap((operation) => pipe(fromPromise(this.#answer(operation)), takeUntil(torndown$(operation)))),
      ),
      pipe(
        shared$,
        filter((o) => o.kind === "subscription"),
        mergeMap((operation) => pipe(make<OperationResult>((observer) => this.#subscribe(operation, observer)), takeUntil(torndown$(operation)))),
      ),
    ]);
  };

  async #answer(operation: Operation): Promise<OperationResult> {
    const { name, variables } = this.#note(operation);
    const answer = this.answers[name];
    const reply = typeof answer === "function" ? await answer(variables) : answer;
    if (reply instanceof CombinedError) return { ...makeErrorResult(operation, reply), error: reply };
    if (reply) this.#check(operation, reply);
    else this.problems.push(`there is no answer for ${name}`);
    return makeResult(operation, { data: reply ?? null });
  }

  #subscribe(operation: Operation, observer: Observer<OperationResult>) {
    this.#note(operation);
    this.#subscriber = { operation, observer };
    for (const listener of this.#connected) listener();
    return () => {
      if (this.#subscriber?.observer === observer) this.#subscriber = undefined;
    };
  }

  #note({ query, variables }: Operation<unknown>): Asked {
    const asked = { name: getOperationAST(query)?.name?.value ?? "", variables: { ...variables } };
    this.asked.push(asked);
    return asked;
  }

  #check(operation: Operation<unknown>, reply: Fixture) {
    try {
      mustFit(operation.query, { ...operation.variables }, reply);
    } catch (problem) {
      this.problems.push(String(problem));
    }
  }
}

/** A refusal as the server words it. */
export function refused(code: string, message: string, fix = ""): CombinedError {
  return new CombinedError({ graphQLErrors: [new GraphQLError(message, { extensions: { code, field: "", fix } })] });
}

/** No answer at all. */
export function unreachable(message = "Failed to fetch"): CombinedError {
  return new CombinedError({ networkError: new TypeError(message) });
}
