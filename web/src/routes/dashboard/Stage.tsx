import { useId, type ReactNode } from "react";
import { Icon, type Tone } from "../../components/Icon";
import styles from "./Stage.module.css";

interface Props {
  title: string;
  tone: Tone;
  /** In one or two words: "running". */
  state?: string;
  /** At the heading's right end. */
  took?: ReactNode;
  children: ReactNode;
}

/** One part of a push's way: the push itself, a build, a deployment. */
export function Stage({ title, tone, state, took, children }: Props) {
  const id = useId();
  return (
    <section className={styles.stage} aria-labelledby={id}>
      <h3 id={id}>
        <span className={styles.mark}><Icon tone={tone} label="" /></span>
        {title}{" "}
        {state && <span className={`${styles.state} ${styles[tone]}`}>{state}</span>}{" "}
        {took && <span className={styles.took}>{took}</span>}
      </h3>
      <div className={styles.body}>{children}</div>
    </section>
  );
}
