import type { CombinedError } from "@urql/core";
import { DiagnosisCard } from "../../components/Diagnosis";
import { diagnose } from "../../failure";
import { useLog } from "../../log/useLog";

/** Why there is nothing to show. */
export function Failure({ error }: { error: CombinedError }) {
  const { restart } = useLog();
  return (
    <div role="alert">
      <DiagnosisCard diagnosis={diagnose(error)} />
      <p>
        <button type="button" onClick={restart}>Try now</button> It is tried again by itself, too, and goes on where it stopped.
      </p>
    </div>
  );
}
