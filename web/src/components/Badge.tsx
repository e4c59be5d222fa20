import styles from "./Badge.module.css";
import { Icon, type Tone } from "./Icon";

/** A state in one word, with its colour and shape. */
export function Badge({ tone, children }: { tone: Tone; children: string }) {
  return (
    <span className={`${styles.badge} ${styles[tone]}`}>
      <Icon tone={tone} label="" />
      {children}
    </span>
  );
}
