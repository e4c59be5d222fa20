import { useCallback } from "react";
import { Diagnosis } from "../../components/Diagnosis";
import { graphql } from "../../gql";
import { isAfter } from "../../log/cursor";
import { useAt } from "../../log/useAt";
import { Failure } from "./Failure";
import { FirstPush } from "./FirstPush";
import { Loading } from "./Loading";
import { PushHeader } from "./PushHeader";
import { Timeline } from "./Timeline";

const LastPushDocument = graphql(`
  query LastPush($project: ID!, $atLeast: Cursor) {
    project(id: $project, atLeast: $atLeast) {
      ...FirstPush
    }
    timeline(project: $project, atLeast: $atLeast) {
      push {
        position
        ...PushHeader
      }
      ...Timeline
    }
    pushes(project: $project, ignored: true, first: 1, atLeast: $atLeast) {
      position
      diagnosis {
        ...DiagnosisFields
      }
    }
  }
`);

interface Props {
  /** Id. */
  project: string;
  /** Id of the build whose output is open. */
  openLog: string | undefined;
}

/** The last push to a project and everything that became of it so far. */
export function LastPush({ project, openLog }: Props) {
  const variables = useCallback((atLeast: string) => ({ project, atLeast }), [project]);
  const { data, error } = useAt(LastPushDocument, variables);
  if (!data) return error ? <Failure error={error} /> : <Loading />;

  const { timeline, pushes } = data;
  // A push that was ignored because something is missing: it leads to no timeline, so it must be told here.
  const [newest] = pushes;
  const ignored = isAfter(newest?.position, timeline?.push.position) ? newest?.diagnosis : undefined;
  return (
    <>
      {ignored && <div role="alert"><Diagnosis diagnosis={ignored} /></div>}
      {timeline && <PushHeader push={timeline.push} />}
      {timeline && <Timeline timeline={timeline} openLog={openLog} />}
      {!timeline && !ignored && data.project && <FirstPush project={data.project} />}
    </>
  );
}
