import styles from "./Icon.module.css";

export type Tone = "info" | "running" | "success" | "warning" | "error";

const shapes: Record<Tone, string> = {
  info: "M8 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5Z",
  running: "M8 2.5A5.5 5.5 0 1 1 2.5 8",
  success: "m3.5 8.5 3 3 6-7",
  warning: "M8 2.5 14 13H2L8 2.5Zm0 4v3m0 1.6v.4",
  error: "m4 4 8 8m0-8-8 8",
};

const labels: Record<Tone, string> = { info: "", running: "Running:", success: "Success:", warning: "Warning:", error: "Error:" };

/** A tone by shape and colour, and by a word for those who see neither. */
export function Icon({ tone, label = labels[tone] }: { tone: Tone; label?: string }) {
  return (
    <>
      <svg className={`${styles.icon} ${styles[tone]}`} viewBox="0 0 16 16" aria-hidden="true">
        <path d={shapes[tone]} />
      </svg>
      {label && <span className="hidden">{label} </span>}
    </>
  );
}
