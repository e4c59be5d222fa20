import { Diagnosis } from "../../components/Diagnosis";
import { Elapsed } from "../../components/Elapsed";
import { toneOfPhase, words } from "../../components/tone";
import { graphql, unmask, type FragmentType } from "../../gql";
import type { TimelineFragment } from "../../gql/graphql";
import { BuildLog } from "./BuildLog";
import { EntryList } from "./EntryList";
import { Stage } from "./Stage";

const BuildFields = graphql(`
  fragment BuildStage on Build {
    id
    phase
    dockerfile
    startedAt
    finishedAt
    diagnosis {
      ...DiagnosisFields
    }
  }
`);

interface Props {
  build: FragmentType<typeof BuildFields>;
  entries: TimelineFragment["entries"];
  openLog: string | undefined;
}

/** A build: what happened, its output, and why it failed. */
export function BuildStage({ build, entries, openLog }: Props) {
  const { id, phase, dockerfile, startedAt, finishedAt, diagnosis } = unmask(BuildFields, build);
  return (
    <Stage
      title={dockerfile === "Dockerfile" ? "Build" : `Build of ${dockerfile}`}
      tone={toneOfPhase[phase]}
      state={words(phase)}
      took={startedAt && <Elapsed from={startedAt} to={finishedAt} />}
    >
      <EntryList entries={entries} below={{ BuildFailed: diagnosis && <Diagnosis diagnosis={diagnosis} /> }} />
      {startedAt && <BuildLog build={id} open={openLog === id} />}
    </Stage>
  );
}
