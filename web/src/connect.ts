// Makes the link to the server that served the page: requests over HTTP, the log over graphql-transport-ws. Both carry
// the session's cookie by themselves. Effects: the network.
import { createClient, fetchExchange, subscriptionExchange } from "@urql/core";
import { createClient as createSocket } from "graphql-ws";
import type { Link } from "./log/follow";

const pingEvery = 10_000;
const pongWithin = 5_000;

/** Connects to the server at an origin, "http://127.0.0.1:8787". */
export function connect(origin: string): Link {
  const url = new URL("/graphql", origin);
  const socketURL = new URL(url);
  socketURL.protocol = url.protocol === "https:" ? "wss:" : "ws:";

  let silent: ReturnType<typeof setTimeout> | undefined;
  const socket = createSocket({
    url: socketURL.href,
    // The one who follows the log tries again, because only it knows the cursor to go on from.
    retryAttempts: 0,
    keepAlive: pingEvery,
    on: {
      // A frozen server or a lost route closes nothing: no pong in time means lost.
      ping: (received) => {
        if (!received) silent = setTimeout(() => { socket.terminate(); }, pongWithin);
      },
      pong: (received) => { if (received) clearTimeout(silent); },
      closed: () => { clearTimeout(silent); },
    },
  });

  const client = createClient({
    url: url.href,
    preferGetMethod: false,
    // By itself the client would also accept an event stream, and a server may take it at its word for every query.
    fetchOptions: { credentials: "same-origin", headers: { accept: "application/graphql-response+json, application/json" } },
    // No cache: the server's state as of a cursor is asked for when the cursor moves.
    exchanges: [
      subscriptionExchange({
        forwardSubscription: ({ query = "", variables }) => ({
          subscribe: (sink) => ({ unsubscribe: socket.subscribe({ query, variables }, sink) }),
        }),
      }),
      fetchExchange,
    ],
  });
  return { client, onConnected: (listener) => socket.on("connected", () => { listener(); }) };
}
