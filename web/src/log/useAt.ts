import type { AnyVariables, TypedDocumentNode } from "@urql/core";
import { useEffect, useMemo, useSyncExternalStore } from "react";
import { useClient } from "urql";
import { isSignedOut } from "../failure";
import { useLog } from "./useLog";
import { View, type Answer } from "./view";

/**
 * What a query of read models answers as of where the page stands in the log, and again whenever that moves on.
 * `variables` must stay the same function while it gives the same variables.
 */
export function useAt<Data, Variables extends AnyVariables>(
  query: TypedDocumentNode<Data, Variables>,
  variables: (atLeast: string) => Variables,
): Answer<Data> {
  const client = useClient();
  const { cursor, restart } = useLog();
  const view = useMemo(
    () => new View<Data>((atLeast) => client.query(query, variables(atLeast), { requestPolicy: "network-only" }).toPromise()),
    [client, query, variables],
  );
  const answer = useSyncExternalStore(view.subscribe, view.answer);

  useEffect(() => {
    if (cursor !== undefined) view.moveTo(cursor);
  }, [view, cursor]);
  useEffect(() => {
    if (answer.error && isSignedOut(answer.error)) restart();
  }, [answer.error, restart]);
  return answer;
}
