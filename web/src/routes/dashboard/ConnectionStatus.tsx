import { positionOf } from "../../log/cursor";
import type { Seen } from "../../log/follow";
import { useLog } from "../../log/useLog";
import styles from "./ConnectionStatus.module.css";

/** Whether what the page shows is what happens, and up to which event of the log. */
export function ConnectionStatus() {
  const seen = useLog();
  return (
    <p className={`${styles.status} ${styles[seen.state]}`}>
      <i aria-hidden="true" />
      <span role="status">{told(seen)}</span>
      {seen.cursor !== undefined && <span className={styles.position} title={`Cursor ${seen.cursor}`}>event {positionOf(seen.cursor)}</span>}
    </p>
  );
}

function told({ state, replayed }: Seen): string {
  switch (state) {
    case "connecting":
      return "Connecting…";
    case "replaying":
      return "Replaying…";
    case "reconnecting":
      return "Reconnecting…";
    case "signed-out":
      return "Signed out";
    case "live":
      return replayed === 0 ? "Live" : `Live, replayed ${replayed} ${replayed === 1 ? "event" : "events"}`;
  }
}
