import { graphql, unmask, type FragmentType } from "../gql";
import type { DiagnosisFieldsFragment } from "../gql/graphql";
import { Command } from "./Command";
import styles from "./Diagnosis.module.css";
import { Icon } from "./Icon";

const DiagnosisFields = graphql(`
  fragment DiagnosisFields on Diagnosis {
    code
    title
    step
    error
    reason
    fixes
    run
    docs
    log
  }
`);

/** A diagnosis of the server, shown whole. */
export function Diagnosis({ diagnosis }: { diagnosis: FragmentType<typeof DiagnosisFields> }) {
  return <DiagnosisCard diagnosis={unmask(DiagnosisFields, diagnosis)} />;
}

export type DiagnosisText = Omit<DiagnosisFieldsFragment, " $fragmentName">;

/** What failed, where, the tool's own words, why, and what to do about it. */
export function DiagnosisCard({ diagnosis: d }: { diagnosis: DiagnosisText }) {
  return (
    <article className={styles.diagnosis} aria-label={d.title}>
      <h4><Icon tone="error" label="" />{d.title}</h4>
      <dl>
        {d.step && <><dt>Step</dt><dd><code>{d.step}</code></dd></>}
        <dt>Error</dt><dd><code className={styles.error}>{d.error}</code></dd>
        <dt>Reason</dt><dd>{d.reason}</dd>
      </dl>
      {d.log.length > 0 && (
        <pre className={styles.log} tabIndex={0} aria-label="Last lines of output">{d.log.join("\n")}</pre>
      )}
      {d.fixes.length > 0 && (
        <>
          <h5>Fix</h5>
          <ol>{d.fixes.map((fix) => <li key={fix}>{fix}</li>)}</ol>
        </>
      )}
      {d.run && <><h5>Run</h5><Command>{d.run}</Command></>}
      <p className={styles.code}>
        <code>{d.code}</code>
        {d.docs && <> · {/^https?:/.test(d.docs) ? <a href={d.docs}>Read more</a> : `Read more: ${d.docs}`}</>}
      </p>
    </article>
  );
}
