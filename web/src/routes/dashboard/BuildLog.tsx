import { useNavigate } from "@tanstack/react-router";
import { Failure } from "./Failure";
import styles from "./BuildLog.module.css";
import { useBuildLog } from "./useBuildLog";

/** A build's output, fetched and followed once it is opened. Which one is open stands in the URL. */
export function BuildLog({ build, open }: { build: string; open: boolean }) {
  const navigate = useNavigate({ from: "/" });
  const toggle = (nowOpen: boolean) => {
    if (nowOpen === open) return;
    void navigate({ search: (was) => ({ ...was, log: nowOpen ? build : undefined }), replace: true, resetScroll: false });
  };
  return (
    <details className={styles.log} open={open} onToggle={(event) => { toggle(event.currentTarget.open); }}>
      <summary>Build output</summary>
      {open && <Output build={build} />}
    </details>
  );
}

function Output({ build }: { build: string }) {
  const { text, done, error } = useBuildLog(build);
  return (
    <>
      {error && <Failure error={error} />}
      <pre tabIndex={0} aria-label="Build output" aria-busy={!done}>{text || (done ? "There is no output." : "Waiting for output…")}</pre>
    </>
  );
}
