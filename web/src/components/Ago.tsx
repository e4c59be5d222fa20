import { ago } from "../format";
import { useNow } from "./useNow";

/** How long ago a time was, the exact time on hover. */
export function Ago({ time }: { time: string }) {
  const now = useNow();
  return <time dateTime={time} title={new Date(time).toLocaleString()}>{ago(time, now)}</time>;
}
