import { graphql, unmask, type FragmentType } from "../../gql";
import type { TimelineFragment } from "../../gql/graphql";
import { BuildStage } from "./BuildStage";
import { DeploymentStage } from "./DeploymentStage";
import { EntryList } from "./EntryList";
import { Stage } from "./Stage";

const TimelineFields = graphql(`
  fragment Timeline on Timeline {
    push {
      builds {
        id
        ...BuildStage
      }
      deployments {
        id
        ...DeploymentStage
      }
    }
    entries {
      id
      subject
      text
      ...Entry
    }
  }
`);

interface Props {
  timeline: FragmentType<typeof TimelineFields>;
  /** Id of the build whose output is open. */
  openLog: string | undefined;
}

/** Everything that became of a push: a stage for the push itself, for each build and for each deployment. */
export function Timeline({ timeline, openLog }: Props) {
  const { push, entries } = unmask(TimelineFields, timeline);
  return (
    <section aria-label="Timeline">
      {bySubject(entries).map(([subject, told]) => {
        const build = push.builds.find((b) => b.id === subject);
        if (build) return <BuildStage key={subject} build={build} entries={told} openLog={openLog} />;
        const deployment = push.deployments.find((d) => d.id === subject);
        if (deployment) return <DeploymentStage key={subject} deployment={deployment} entries={told} />;
        return <Stage key={subject} title="Push" tone="success"><EntryList entries={told} /></Stage>;
      })}
      <p className="hidden" aria-live="polite">{entries.at(-1)?.text}</p>
    </section>
  );
}

type Entries = TimelineFragment["entries"];

/** Groups entries by what they are about, in order of each one's first. */
function bySubject(entries: Entries): [string, Entries][] {
  const groups = new Map<string, Entries>();
  for (const entry of entries) groups.set(entry.subject, [...(groups.get(entry.subject) ?? []), entry]);
  return [...groups];
}
