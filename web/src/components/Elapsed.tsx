import { duration } from "../format";
import { useNow } from "./useNow";

/** How long something took, or takes so far when it has not ended. */
export function Elapsed({ from, to }: { from: string; to: string | null | undefined }) {
  const now = useNow(!to);
  return <span>{duration((to ? Date.parse(to) : now) - Date.parse(from))}</span>;
}
