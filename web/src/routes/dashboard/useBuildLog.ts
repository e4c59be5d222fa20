import type { Client, CombinedError } from "@urql/core";
import { useEffect, useState } from "react";
import { useClient } from "urql";
import { graphql } from "../../gql";
import type { BuildLogQueryVariables } from "../../gql/graphql";

const BuildLogDocument = graphql(`
  query BuildLog($build: ID!, $attempt: ID, $after: Int64!) {
    buildLog(build: $build, attempt: $attempt, after: $after) {
      attempt
      text
      next
      done
      nextAttempt
    }
  }
`);

export interface Output {
  text: string;
  /** Nothing follows. */
  done: boolean;
  error: CombinedError | undefined;
}

const nothing: Output = { text: "", done: false, error: undefined };

/** Milliseconds until it is asked again whether there is more output: it is not part of the log that is followed. */
const askAgainAfter = 1000;

/** The output of a build's newest attempt so far, growing until the attempt has ended. */
export function useBuildLog(build: string): Output {
  const client = useClient();
  const [output, setOutput] = useState(nothing);
  useEffect(() => {
    const stop = new AbortController();
    void readOn(client, build, stop.signal, setOutput);
    return () => { stop.abort(); };
  }, [client, build]);
  return output;
}

async function readOn(client: Client, build: string, signal: AbortSignal, report: (output: Output) => void) {
  let text = "";
  const from: BuildLogQueryVariables = { build, attempt: null, after: 0 };
  for (;;) {
    const { data, error } = await client.query(BuildLogDocument, { ...from }, { requestPolicy: "network-only" }).toPromise();
    if (signal.aborted) return;
    const part = data?.buildLog;
    text += part?.text ?? "";
    const next = part?.done ? part.nextAttempt : "";
    report({ text, done: (part?.done ?? false) && next === "", error });
    if (next) {
      from.attempt = next;
      from.after = 0;
      continue;
    }
    if (part?.done) return;
    const more = part !== undefined && part.next > from.after;
    from.attempt = part?.attempt || from.attempt;
    from.after = part?.next ?? from.after;
    if (!more) await new Promise((resolve) => setTimeout(resolve, askAgainAfter));
  }
}
