import { Diagnosis } from "../../components/Diagnosis";
import { Elapsed } from "../../components/Elapsed";
import { toneOfPhase, words } from "../../components/tone";
import { graphql, unmask, type FragmentType } from "../../gql";
import type { TimelineFragment } from "../../gql/graphql";
import styles from "./DeploymentStage.module.css";
import { EntryList } from "./EntryList";
import { Stage } from "./Stage";

const DeploymentFields = graphql(`
  fragment DeploymentStage on Deployment {
    serviceName
    environmentName
    phase
    progress {
      wanted
      available
    }
    startedAt
    finishedAt
    diagnosis {
      ...DiagnosisFields
    }
    rollbackDiagnosis {
      ...DiagnosisFields
    }
  }
`);

interface Props {
  deployment: FragmentType<typeof DeploymentFields>;
  entries: TimelineFragment["entries"];
}

/** A deployment: how far it is, what happened, and why it or its roll-back failed. */
export function DeploymentStage({ deployment, entries }: Props) {
  const d = unmask(DeploymentFields, deployment);
  return (
    <Stage
      title={`Deploy ${d.serviceName} to ${d.environmentName}`}
      tone={toneOfPhase[d.phase]}
      state={words(d.phase)}
      took={d.startedAt && <Elapsed from={d.startedAt} to={d.finishedAt} />}
    >
      {(d.phase === "RUNNING" || d.phase === "ROLLING_BACK") && d.progress.wanted > 0 && (
        <label className={styles.progress}>
          <progress max={d.progress.wanted} value={d.progress.available} />
          {d.progress.available} of {d.progress.wanted} pods available
        </label>
      )}
      <EntryList
        entries={entries}
        context={`${d.serviceName} to ${d.environmentName}: `}
        below={{
          DeploymentFailed: d.diagnosis && <Diagnosis diagnosis={d.diagnosis} />,
          RollbackFailed: d.rollbackDiagnosis && <Diagnosis diagnosis={d.rollbackDiagnosis} />,
        }}
      />
    </Stage>
  );
}
