import { useState } from "react";
import styles from "./Command.module.css";

/** Something to type into a terminal, with a button that copies it. One line or several. */
export function Command({ children }: { children: string }) {
  const [copied, setCopied] = useState<"" | "Copied" | "Select it and copy by hand">("");
  const copy = () => {
    // Browsers give the clipboard to https and localhost only.
    const done = window.isSecureContext ? navigator.clipboard.writeText(children) : Promise.reject(new Error("no clipboard"));
    done.then(() => { setCopied("Copied"); }, () => { setCopied("Select it and copy by hand"); });
  };
  return (
    <div className={styles.command}>
      <pre tabIndex={0} aria-label="Command"><code>{children}</code></pre>
      <button type="button" onClick={copy} aria-label={`Copy ${children.split("\n", 1)[0] ?? ""}`}>Copy</button>
      <span className={styles.copied} role="status">{copied}</span>
    </div>
  );
}
