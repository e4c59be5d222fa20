import type { Phase, PushStatus, Severity } from "../gql/graphql";
import type { Tone } from "./Icon";

/** Colour and shape of a severity. */
export const toneOfSeverity: Record<Severity, Tone> = { INFO: "info", SUCCESS: "success", WARNING: "warning", ERROR: "error" };

/** Colour and shape of a phase. */
export const toneOfPhase: Record<Phase, Tone> = {
  WAITING: "info",
  RUNNING: "running",
  ROLLING_BACK: "warning",
  SUCCEEDED: "success",
  FAILED: "error",
  ROLLED_BACK: "warning",
  SUPERSEDED: "info",
};

/** Colour and shape of a push's status. */
export const toneOfPush: Record<PushStatus, Tone> = {
  RECEIVED: "info",
  BUILDING: "running",
  BUILT: "success",
  DEPLOYING: "running",
  ROLLING_BACK: "warning",
  LIVE: "success",
  FAILED: "error",
  ROLLED_BACK: "warning",
  SUPERSEDED: "info",
  IGNORED: "info",
};

/** A value of an enum in words: "rolling back" of ROLLING_BACK. */
export function words(value: string): string {
  return value.toLowerCase().replaceAll("_", " ");
}
