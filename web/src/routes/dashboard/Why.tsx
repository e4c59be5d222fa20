import { Link } from "@tanstack/react-router";
import { useCallback } from "react";
import { Ago } from "../../components/Ago";
import { Diagnosis } from "../../components/Diagnosis";
import type { Tone } from "../../components/Icon";
import { words } from "../../components/tone";
import { clock, shortCommit } from "../../format";
import { graphql, unmask, type FragmentType } from "../../gql";
import type { WhyOutcome } from "../../gql/graphql";
import { useAt } from "../../log/useAt";
import { Failure } from "./Failure";
import { Loading } from "./Loading";
import { Stage } from "./Stage";
import styles from "./Why.module.css";

const StepFields = graphql(`
  fragment WhyStep on WhyStep {
    cursor
    event
    type
    at
    subject
    text
    who
    diagnosis {
      ...DiagnosisFields
    }
  }
`);

const WhyDocument = graphql(`
  query Why($project: ID!, $environment: ID!, $service: ID!, $atLeast: Cursor) {
    why(project: $project, environment: $environment, service: $service, atLeast: $atLeast) {
      environmentName
      serviceName
      asOf
      since
      release {
        commit
        image
      }
      steps {
        ...WhyStep
      }
      beside {
        subject
        commit
        outcome
        text
        steps {
          ...WhyStep
        }
      }
      more
    }
  }
`);

const toneOfOutcome: Record<WhyOutcome, Tone> = {
  IGNORED: "info", SUPERSEDED: "info", NOT_DEPLOYED: "info", REPLACED: "info", UNDER_WAY: "running", ROLLED_BACK: "warning", FAILED: "error",
};

interface Props {
  /** Name. */
  project: string;
  /** "<environment id>/<service id>" */
  place: string;
}

/** Why a service runs what it runs, back to the push and the person, and why the rest doesn't. */
export function Why({ project, place }: Props) {
  const [environment = "", service = ""] = place.split("/");
  const variables = useCallback((atLeast: string) => ({ project, environment, service, atLeast }), [project, environment, service]);
  const { data, error } = useAt(WhyDocument, variables);
  if (!data) return error ? <Failure error={error} /> : <Loading />;

  const { why } = data;
  return (
    <section aria-label="Why">
      <p className={styles.back}><Link to="/" search={{ project }}>To the last push</Link></p>
      {!why && <h2>There is no such environment</h2>}
      {why && <h2>{why.release
        ? <>{why.environmentName} runs <code title={why.release.commit}>{shortCommit(why.release.commit)}</code> of {why.serviceName}{why.since && <>, since <Ago time={why.since} /></>}</>
        : <>{why.environmentName} runs nothing of {why.serviceName} yet</>}</h2>}
      {why?.release && (
        <Stage title="Because" tone="success" took={<>as of {why.asOf}</>}>
          <p className={styles.image}><code>{why.release.image}</code></p>
          <Steps steps={why.steps} />
        </Stage>
      )}
      {why?.beside.map(({ subject, commit, outcome, text, steps }) => (
        <Stage key={subject} title={`Not running: ${shortCommit(commit)}`} tone={toneOfOutcome[outcome]} state={words(outcome)}>
          <p className={styles.because}>{text}</p>
          <Steps steps={steps} />
        </Stage>
      ))}
      {why && why.more > 0 && <p>and {why.more} older ones</p>}
    </section>
  );
}

/** Events, newest first, each with who it was and where it stands in the log. */
function Steps({ steps }: { steps: readonly FragmentType<typeof StepFields>[] }) {
  return (
    <ol className={styles.steps}>
      {unmask(StepFields, steps).map(({ cursor, event, type, at, subject, text, who, diagnosis }) => (
        <li key={event}>
          <span className={styles.text}>{text}</span>
          <span className={styles.who}>{who}</span>
          <time dateTime={at} title={`${type}, ${at}, at ${cursor}, ${subject}`}>{clock(at)}</time>
          {diagnosis && <div className={styles.below}><Diagnosis diagnosis={diagnosis} /></div>}
        </li>
      ))}
    </ol>
  );
}
