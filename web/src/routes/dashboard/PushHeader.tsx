import { Ago } from "../../components/Ago";
import { Badge } from "../../components/Badge";
import { Elapsed } from "../../components/Elapsed";
import { toneOfPush, words } from "../../components/tone";
import { shortCommit, subjectLine } from "../../format";
import { graphql, unmask, type FragmentType } from "../../gql";
import styles from "./PushHeader.module.css";

const PushHeaderFields = graphql(`
  fragment PushHeader on Push {
    status
    branch
    commit
    forced
    author
    message
    receivedAt
    finishedAt
  }
`);

/** What was pushed, by whom, and where it stands as a whole. */
export function PushHeader({ push }: { push: FragmentType<typeof PushHeaderFields> }) {
  const { status, branch, commit, forced, author, message, receivedAt, finishedAt } = unmask(PushHeaderFields, push);
  return (
    <header className={styles.header}>
      <div>
        <h2>{subjectLine(message) || `Push of ${shortCommit(commit)}`}</h2>
        <p>
          <code title={commit}>{shortCommit(commit)}</code> on <code>{branch}</code>
          {forced && " (forced)"}
          {author && <> by {author}</>}, pushed <Ago time={receivedAt} />
        </p>
      </div>
      <p className={styles.state}>
        <Badge tone={toneOfPush[status]}>{words(status)}</Badge>
        <span title="From the push on"><Elapsed from={receivedAt} to={finishedAt} /></span>
      </p>
    </header>
  );
}
