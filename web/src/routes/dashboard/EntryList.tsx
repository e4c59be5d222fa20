import { Fragment, type ReactNode } from "react";
import { Icon } from "../../components/Icon";
import { toneOfSeverity } from "../../components/tone";
import { between, clock, duration } from "../../format";
import { graphql, unmask, type FragmentType } from "../../gql";
import styles from "./EntryList.module.css";

const EntryFields = graphql(`
  fragment Entry on TimelineEntry {
    id
    type
    severity
    text
    at
  }
`);

interface Props {
  entries: readonly FragmentType<typeof EntryFields>[];
  /** What belongs below an entry, by its event's type. */
  below?: Record<string, ReactNode>;
  /** What a sentence need not say again, because the heading above has. */
  context?: string;
}

/** What happened, in sentences, each with its time and how long after the one before it came. */
export function EntryList({ entries, below = {}, context = "" }: Props) {
  const told = unmask(EntryFields, entries);
  return (
    <ol className={styles.entries}>
      {told.map(({ id, type, severity, text, at }, i) => {
        const before = told[i - 1];
        return (
          <Fragment key={id}>
            <li className={`${styles.entry} ${styles[toneOfSeverity[severity]]}`}>
              <Icon tone={toneOfSeverity[severity]} />
              <span className={styles.text}>{within(context, text)}</span>
              <span className={styles.after}>{before && `+${duration(between(before.at, at))}`}</span>
              <time dateTime={at} title={`${type}, ${at}`}>{clock(at)}</time>
            </li>
            {below[type] && <li className={styles.below}>{below[type]}</li>}
          </Fragment>
        );
      })}
    </ol>
  );
}

/** "Rollout started" of "hello to production: rollout started". */
function within(context: string, text: string): string {
  if (context === "" || !text.startsWith(context)) return text;
  const rest = text.slice(context.length);
  return rest.charAt(0).toUpperCase() + rest.slice(1);
}
