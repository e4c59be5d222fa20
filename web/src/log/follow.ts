// Follows the log: receives batches of events from the server's subscription, hands on where the page stands (Seen).
// Effects: the network. However often the connection is cut, it resumes after the last cursor, which lives in memory:
// nothing is missed, and nothing counts twice.
import type { Client, CombinedError } from "@urql/core";
import { onEnd, pipe, subscribe } from "wonka";
import { isSignedOut, mustStartOver } from "../failure";
import type { EventsSubscription } from "../gql/graphql";
import { isAfter, positionOf, reaches } from "./cursor";
import { EventsDocument, HeadDocument } from "./documents";

/** The way to one server. */
export interface Link {
  client: Client;
  /** Calls back whenever the subscription's connection stands; gives the way to stop that. */
  onConnected: (listener: () => void) => () => void;
}

/** Where the page stands in the log, and how well it is connected. */
export interface Seen {
  state: "connecting" | "replaying" | "live" | "reconnecting" | "signed-out";
  /** Everything up to it has been seen; undefined until the server was reached. */
  cursor: string | undefined;
  /** Events that happened while the connection was lost, and were made up for. */
  replayed: number;
  /** Why there is no connection. */
  error: CombinedError | undefined;
}

export const unseen: Seen = { state: "connecting", cursor: undefined, replayed: 0, error: undefined };

export interface FollowOptions {
  link: Link;
  report: (seen: Seen) => void;
  signal: AbortSignal;
  /** Milliseconds before the first, second, … new try; the last one from then on. */
  delays?: readonly number[];
}

/** Follows until the signal is aborted or the server doesn't know us. */
export async function follow({ link, report, signal, delays = [250, 500, 1000, 2000, 5000] }: FollowOptions): Promise<void> {
  let seen = unseen;
  const change = (part: Partial<Seen>) => {
    seen = { ...seen, ...part };
    if (!signal.aborted) report(seen);
  };
  for (let failures = 0; ; failures++) {
    // Asked over HTTP first: a refused WebSocket doesn't say why, and the head tells how much there is to replay.
    const { data, error } = await link.client.query(HeadDocument, {}, { requestPolicy: "network-only" }).toPromise();
    if (signal.aborted) return;
    if (error && isSignedOut(error)) {
      change({ state: "signed-out", error });
      return;
    }
    let lost = error;
    if (data) {
      const { head } = data;
      const after = seen.cursor ?? head;
      change({ cursor: after, replayed: 0 });
      const standing = (cursor: string) => (reaches(cursor, head) ? "live" : "replaying");
      lost = await listen(link, after, signal, {
        connected: () => {
          failures = 0;
          change({ state: standing(seen.cursor ?? after), error: undefined });
        },
        batch: ({ cursor, events }) => {
          const missed = events.filter((e) => !isAfter(e.position, positionOf(head))).length;
          change({ state: standing(cursor), cursor, replayed: seen.replayed + missed, error: undefined });
        },
      });
      if (lost && mustStartOver(lost)) change({ cursor: undefined });
    }
    change({ state: seen.cursor === undefined ? "connecting" : "reconnecting", error: lost });
    if (await pause(delays[Math.min(failures, delays.length - 1)] ?? 0, signal)) return;
  }
}

interface Listener {
  connected: () => void;
  batch: (batch: EventsSubscription["events"]) => void;
}

/** Subscribes once; gives why it ended, undefined when the server ended it in order. */
function listen(link: Link, after: string, signal: AbortSignal, on: Listener): Promise<CombinedError | undefined> {
  return new Promise((resolve) => {
    let lost: CombinedError | undefined;
    const forget = link.onConnected(on.connected);
    const subscription = pipe(
      link.client.subscription(EventsDocument, { after }),
      onEnd(() => {
        forget();
        resolve(lost);
      }),
      subscribe(({ data, error }) => {
        lost = error;
        if (data && !error) on.batch(data.events);
      }),
    );
    signal.addEventListener("abort", () => { subscription.unsubscribe(); }, { once: true });
  });
}

/** Waits for a time, or until the signal is aborted; tells whether it was. */
function pause(milliseconds: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => { resolve(signal.aborted); }, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(true); }, { once: true });
  });
}
