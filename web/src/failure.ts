// What went wrong between the page and the server, told as a Diagnosis like any other failure. Pure.
import type { CombinedError } from "@urql/core";
import type { DiagnosisFieldsFragment } from "./gql/graphql";

/** The server doesn't know who asks. */
export function isSignedOut(error: CombinedError): boolean {
  return codeOf(error) === "UNAUTHENTICATED" || statusOf(error) === 401;
}

/** The cursor means nothing to the server (any more): the log was restored, or another one is served. */
export function mustStartOver(error: CombinedError): boolean {
  return codeOf(error).startsWith("CURSOR_");
}

/** Tells a failed request to a person. */
export function diagnose(error: CombinedError): Omit<DiagnosisFieldsFragment, " $fragmentName"> {
  const refusal = error.graphQLErrors[0];
  if (refusal === undefined) return unreachable(error);
  const fix = textOf(refusal.extensions, "fix");
  const behind = codeOf(error) === "READ_MODEL_BEHIND";
  return {
    code: codeOf(error) || "REQUEST_FAILED",
    title: "PipeOps could not answer",
    step: refusal.path?.join(".") ?? "",
    error: refusal.message,
    reason: behind ? "The read models have not caught up with the log yet" : "The server refused the request of this page",
    fixes: fix ? [fix] : ["Reload the page", "Look at the log of `pipeops serve` around this time"],
    run: behind ? "pipeops doctor" : "",
    docs: "",
    log: [],
  };
}

function unreachable(error: CombinedError) {
  const status = statusOf(error);
  return {
    code: "SERVER_UNREACHABLE",
    title: "PipeOps can't be reached",
    step: "",
    error: status ? `HTTP ${status}` : (error.networkError?.message ?? error.message),
    reason: status ? "Something answered, but not as PipeOps does" : "No answer came from the address of this page",
    fixes: [
      "Start PipeOps if it is not running: pipeops up",
      "Check the network, VPN or proxy between this browser and the server",
    ],
    run: "pipeops doctor",
    docs: "",
    log: [],
  };
}

function codeOf(error: CombinedError): string {
  return error.graphQLErrors.map((e) => textOf(e.extensions, "code")).find(Boolean) ?? "";
}

function textOf(extensions: Record<string, unknown>, key: string): string {
  const value = extensions[key];
  return typeof value === "string" ? value : "";
}

function statusOf(error: CombinedError): number | undefined {
  const response: unknown = error.response;
  return response instanceof Response && !response.ok ? response.status : undefined;
}
