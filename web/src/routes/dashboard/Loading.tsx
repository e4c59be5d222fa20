import styles from "./Loading.module.css";

/** What is shown until the first answer. */
export function Loading() {
  return (
    <div role="status" className={styles.loading}>
      <span className="hidden">Loading…</span>
      <i /><i /><i />
    </div>
  );
}
